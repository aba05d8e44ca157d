"""The verbs of a run: plan, train and demo."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lora_studio.cli.inspect import verify
from lora_studio.cli.options import (
    Changes,
    Json,
    RecipeFile,
    Resume,
    RunDir,
    argument,
    show,
    value,
)
from lora_studio.console import console, errors
from lora_studio.errors import Interrupted, RecipeError
from lora_studio.processes import is_main
from lora_studio.quiet import paused_until_told, shorten_waits
from lora_studio.text import command_of

if TYPE_CHECKING:
    from lora_studio.recipe import Recipe
    from lora_studio.training.finish import Finished

DEMO_FOLDER = Path("runs/demo")


def plan(
    recipe: RecipeFile,
    changes: Changes = None,
    memory: Annotated[
        float | None,
        value("GIB", "the memory it has to fit into; default: what is free here, or the card's", min=0.1),
    ] = None,
    card: Annotated[
        str | None,
        value(
            "CARD",
            'on a GPU that is not here, e.g. "RTX 4060", or cuda with --memory; needs no weights or images',
            "--for",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Say what a run trains and needs, from a trial step; fills the caches. Exit 0, or 1 if it won't fit."""
    from lora_studio.recipe.load import load_recipe

    loaded = load_recipe(recipe, changes=tuple(changes or ()))
    if card is not None:
        _plan_for(loaded, card, memory, as_json=as_json)
        return
    shorten_waits(loaded.machine.device)  # as train does: it takes the time of a step
    from lora_studio.console import print_needs, print_plan
    from lora_studio.console.run import run_screen
    from lora_studio.training.planning import plan as make
    from lora_studio.training.planning.for_card import fewest_blocks_in_main_memory

    with run_screen(errors) as screen:
        found = make(loaded, memory_gib=memory, on_event=screen, choose_offload=fewest_blocks_in_main_memory)
    if not as_json:
        print_plan(found.training, console)
    show(found, print_needs, as_json=as_json)
    if not found.memory.fits:
        raise typer.Exit(1)


def _plan_for(recipe: Recipe, card: str, memory: float | None, *, as_json: bool) -> None:
    from lora_studio.console import print_card_plan
    from lora_studio.training.planning.for_card import plan_for

    found = plan_for(recipe, card, memory_gib=memory)
    show(found, print_card_plan, as_json=as_json)
    if not found.fits:
        raise typer.Exit(1)


def train(
    recipe: Annotated[Path, argument("RECIPE|RUN", "a TOML recipe, or the folder of a run to resume")],
    out: RunDir = None,
    resume: Resume = False,
    changes: Changes = None,
) -> None:
    """Train a recipe and export, verify and show the LoRA."""
    from lora_studio.recipe.load import load_recipe
    from lora_studio.recipe.run_recipe import load_run_recipe
    from lora_studio.runs import run_folder

    if resume and recipe.is_dir():
        if out is not None and out.resolve() != recipe.resolve():
            raise RecipeError(f"--resume {recipe} and --out {out} are two run folders; give one of them.")
        out = recipe
        loaded = load_run_recipe(recipe, tuple(changes or ()))
    else:
        loaded = load_recipe(recipe, changes=tuple(changes or ()))
    _train(loaded, out or run_folder(loaded.name), resume=resume)


def demo(
    out: Annotated[Path, value("DIR", "the run folder", "-o", "--out")] = DEMO_FOLDER,
    resume: Resume = False,
    changes: Changes = None,
) -> None:
    """Learn a woodcut style from the sample images on the pocket base: no GPU, download or account."""
    from lora_studio.recipe.load import PRESET_FOLDER, load_recipe

    recipe = load_recipe(PRESET_FOLDER / "pocket_style.toml", changes=tuple(changes or ()))
    if (out / "summary.json").is_file() and not resume:
        console.say(f"{out} holds a finished demo already; verifying its file (--out DIR trains a new one).")
        verify(out / f"{recipe.name}.safetensors")
        console.say()
        console.say_rows([("next", f"your own images: {command_of('start')}")])
        return
    _train(recipe, out, resume=resume)


def _train(recipe: Recipe, folder: Path, *, resume: bool) -> None:
    console.quiet = not is_main()  # of several processes one speaks
    shorten_waits(recipe.machine.device)
    from lora_studio.runs import ReadOnlyRun, resuming

    console.say(f"{recipe.name}: reading the base model and the images")
    try:
        with paused_until_told() as told:
            from lora_studio.console.run import run_screen
            from lora_studio.training.session import train as run

            with run_screen(console) as screen:
                result = run(recipe, folder, resume=resume, on_event=told(screen))
    except Interrupted as stopped:
        console.say(f"stopped after step {stopped.step}; go on with: {resuming(stopped.folder)}")
        raise typer.Exit(130) from None
    except KeyboardInterrupt:
        there = ReadOnlyRun(folder).checkpoints()
        again = f"go on from {there[-1]} with: {resuming(folder)}" if there else ""
        errors.say(f"stopped at once; {again or 'no checkpoint was written yet'}")
        raise typer.Exit(130) from None
    _print_end(result, recipe)


def _print_end(result: Finished, recipe: Recipe) -> None:
    from lora_studio.console import print_finished
    from lora_studio.console.next_steps import RunFacts, next_steps
    from lora_studio.pocket import EMBEDDED

    print_finished(result, console)
    own = (one.trigger for one in recipe.data.sources if one.role == "instance" and one.trigger)
    triggers = tuple(dict.fromkeys(filter(None, (recipe.data.trigger, *own))))
    prompt = next(iter((*recipe.samples.prompts, *triggers)), "a prompt")
    facts = RunFacts(triggers, prompt, recipe.base.model in EMBEDDED)
    console.say()
    console.say_rows(next_steps(result, facts))
