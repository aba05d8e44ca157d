"""The verb `sweep`: a recipe with other values, trained, measured and compared."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lora_studio.cli.options import Changes, Json, RayAddress, RecipeFile, flag, print_json, value
from lora_studio.console import console, errors

if TYPE_CHECKING:
    from lora_studio.sweep import SweepPlan
    from lora_studio.sweep.folder import SweepFolder

_VARY = "e.g. adapter.rank=4,8,16 or training.learning_rate=log:1e-4..1e-3; repeated for others"
_TRIALS = "settings that are drawn; default: all that lists make"
_SEEDS = "trainings of each setting; default: 1, where 2 say how much a seed changes"
_COUNT = "prompts of each of the four groups that every trial is asked; default: 5"
_BY = "evaluation (fidelity within the budgets), or validation (the loss); default: evaluation"
_SEARCH = "chance, or tpe: after 8 settings by what was found, with Optuna; default: chance"
_STOP_EARLY = "end trainings that are not among the best third after a ninth or a third of their steps"
_DEVICES = "e.g. cuda:0,cuda:1, or cpu; default: every GPU, or the processor"
_OUT = "the sweep's folder; default: runs/<name of the recipe>_sweep"


def sweep(
    recipe: RecipeFile,
    vary: Annotated[list[str] | None, value("KEY=VALUES", _VARY, "--vary")] = None,
    trials: Annotated[int | None, value("N", _TRIALS, min=1)] = None,
    seeds: Annotated[int | None, value("N", _SEEDS, min=1)] = None,
    changes: Changes = None,
    by: Annotated[str | None, value("WHAT", _BY)] = None,
    count: Annotated[int | None, value("N", _COUNT, min=1)] = None,
    search: Annotated[str | None, value("HOW", _SEARCH)] = None,
    stop_early: Annotated[bool, flag("--stop-early", _STOP_EARLY)] = False,
    search_seed: Annotated[int | None, value("N", "other values are drawn; default: 0", min=0)] = None,
    devices: Annotated[str, value("DEVICES", _DEVICES)] = "",
    ray: RayAddress = None,
    retry: Annotated[bool, flag("--retry", "train again what failed")] = False,
    dry_run: Annotated[bool, flag("--dry-run", "say what will be trained, and how long that takes")] = False,
    out: Annotated[Path | None, value("DIR", _OUT, "-o", "--out")] = None,
    as_json: Json = False,
) -> None:
    """Train a recipe with other values, one after the other, measure each, and recommend one of them.

    What is varied may stand in the recipe's [sweep]. Stopped or killed, it goes on when it is called again.
    """
    from lora_studio.jobs.cluster import slots_of
    from lora_studio.jobs.worker import devices_named
    from lora_studio.recipe.load import load_recipe
    from lora_studio.runs import run_folder
    from lora_studio.sweep import plan_sweep
    from lora_studio.sweep.folder import SweepFolder
    from lora_studio.sweep.varied import read_vary

    asked = (*(changes or ()), *(() if count is None else (f"evaluate.prompts={count}",)))
    loaded = load_recipe(recipe, changes=asked)
    given = None if vary is None else read_vary(vary)
    how = {"search": search, "search_seed": search_seed, "stop_early": stop_early or None}
    found = plan_sweep(loaded, given, trials=trials, seeds=seeds, by=by, **how)
    place = out or run_folder(f"{loaded.name}_sweep")
    folder, slots = SweepFolder(place), devices_named(devices) if ray is None else slots_of(ray)
    folder.check(found)
    screen = errors if as_json else console
    if dry_run:
        _tell(found, place, slots, as_json=as_json)
        return
    _tell(found, place, slots, is_new=not place.exists(), quiet=as_json)
    screen.say(f"at work on {', '.join(slots)}; Ctrl-C stops behind a checkpoint, and the same call goes on")
    _work(found, folder, slots, ray=ray, retry=retry, as_json=as_json)


def _tell(
    plan: SweepPlan,
    place: Path,
    slots: list[str],
    *,
    as_json: bool = False,
    is_new: bool = True,
    quiet: bool = False,
) -> None:
    """What will be trained; of a sweep that goes on the time is told by its trials."""
    from lora_studio.console.sweep import print_sweep_plan
    from lora_studio.sweep.running import estimate

    found = estimate(plan, devices=len(slots)) if is_new else None
    if as_json and found is not None:
        print_json(plan.to_json() | {"folder": str(place), "seconds": found.seconds, "note": found.why})
    else:
        print_sweep_plan(plan, place, found, errors if quiet else console)


def _work(
    plan: SweepPlan,
    folder: SweepFolder,
    slots: list[str],
    *,
    ray: str | None,
    retry: bool,
    as_json: bool,
) -> None:
    from lora_studio.console.sweep import print_sweep, trial_in_words
    from lora_studio.sweep.report import files_of
    from lora_studio.sweep.running import run_sweep

    screen = errors if as_json else console
    result = run_sweep(
        plan,
        folder,
        devices=slots,
        ray=ray,
        retry=retry,
        on_change=lambda change: screen.say(trial_in_words(change)),
        on_trouble=lambda error: errors.say(f"note: {error}"),
        on_stop=lambda: screen.say("stopping: trials write their checkpoints"),
    )
    if as_json:
        print_json(result.to_json())
    else:
        console.say()
        print_sweep(result, files_of(folder), console)
    if not result.pooled:
        raise typer.Exit(1)
