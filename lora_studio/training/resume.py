"""Resuming with a changed recipe: what changes nothing in what is learned may change, and is said aloud."""

from __future__ import annotations

import json
from collections.abc import Sequence

from lora_studio.errors import RecipeError
from lora_studio.export.plain_file import digest
from lora_studio.recipe import Recipe, load_recipe
from lora_studio.recipe_adapter import Stopping
from lora_studio.recipe_changes import Change, changes
from lora_studio.run import Run
from lora_studio.training.events import Listener, Note
from lora_studio.training.schedule import factor, make_schedule

RECIPE_FILE = "recipe.toml"
STEPS = "training.steps"


INPUTS = "inputs.json"  # sha256 of the LoRA files and the denoiser that the run was made from


def base_lora(number: int) -> str:
    """The option that names one of [[base.loras]], counted from 0."""
    return f"base.loras[{number}].file"


def inputs_of(recipe: Recipe) -> dict[str, str]:
    """Option -> sha256 of the LoRA file that it names. Raises RecipeError for one that is not there."""
    named = {base_lora(number): one.file for number, one in enumerate(recipe.base.loras)}
    if recipe.adapter.init_from is not None:
        named["adapter.init_from"] = recipe.adapter.init_from
    missing = [
        f"{option} is {path}, but there is no such file."
        for option, path in named.items()
        if not path.is_file()
    ]
    if missing:
        raise RecipeError("\n".join(missing))
    return {option: digest(path) for option, path in named.items()}


def inputs_before(run: Run) -> dict[str, str]:
    """What the run was made from when it began; empty of runs that did not write it down."""
    path = run.folder / INPUTS
    return json.loads(path.read_text("utf-8")) if path.is_file() else {}


def refuse_other_inputs(run: Run, recipe: Recipe) -> dict[str, str]:
    """`inputs_of` the recipe; raises RecipeError if a file that the run began with holds something else."""
    before, inputs = inputs_before(run), inputs_of(recipe)
    other = [option for option, found in inputs.items() if before.get(option, found) != found]
    if other:
        raise RecipeError(
            f"{run.folder} was started when {', '.join(other)} held another file (its sha256 was "
            f"{before[other[0]][:12]}...); put that one back to resume, or start another run with --out."
        )
    return inputs


def allowed_changes(run: Run, recipe: Recipe) -> list[Change]:
    """What is different from the recipe in the run folder.

    Raises RecipeError with a list if something of it changes what is learned.
    """
    old = load_recipe(run.folder / RECIPE_FILE)
    found = changes(old, recipe)
    fixed = [one for one in found if not (one.free or (one.option == STEPS and _same_rates(old, recipe)))]
    if not fixed:
        refuse_other_inputs(run, recipe)
        return found
    lines = [f"{run.folder} was started with another recipe, and these options change what is learned:"]
    lines += [f"  {one}{_why(one, old)}" for one in fixed]
    lines.append("start another run with --out, or go on with the recipe as it was.")
    raise RecipeError("\n".join(lines))


def take_over(run: Run, found: Sequence[Change], listener: Listener) -> None:
    """Say what is different, and let go of the base's previews if they would be other pictures now."""
    if not found:
        return
    listener(Note(f"going on with a changed recipe: {'; '.join(map(str, found))}"))
    if any(one.option.startswith("preview.") and one.option != "preview.every" for one in found):
        with run.writing():
            for path in sorted((run.folder / "previews").glob("base_*.png")):
                path.unlink()


def _same_rates(old: Recipe, new: Recipe) -> bool:
    """Whether another number of steps leaves the learning rate of every step as it was."""
    both = (old.training, new.training)
    if len({(one.schedule, one.schedule_floor) for one in both}) > 1:
        return False
    if _stops(old) != _stops(new):
        return False
    schedule = make_schedule(old.training.schedule, old.training.schedule_floor)
    return all(
        len({factor(schedule, step, steps=one.steps, warmup_steps=one.warmup) for one in both}) == 1
        for step in range(1, min(one.steps for one in both) + 1)
    )


def _stops(recipe: Recipe) -> list[int | None]:
    stopping: list[Stopping] = [*recipe.adapter.layers, *recipe.tokens]
    return [one.last_step(recipe.training.steps) for one in stopping]


def _why(change: Change, old: Recipe) -> str:
    if change.option == "adapter.init_from":
        return " (it is what a new run begins with; a resumed one goes on from its own checkpoint)"
    if change.option != STEPS:
        return ""
    stops = [one.stop_at for one in old.adapter.layers] + [one.stop_at for one in old.tokens]
    if any(stop is not None and stop <= 1 for stop in stops):
        return " (a stop_at is a share of the steps, so it would be at another step)"
    return (
        f" (the schedule {old.training.schedule!r} runs to the last step, so steps that are done would have "
        "had other learning rates; only a run with the schedule 'constant' can become longer)"
    )
