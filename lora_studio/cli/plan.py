"""The verb `plan`: it parses and prints."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from lora_studio.console.screen import console, errors
from lora_studio.quiet import quiet_libraries
from lora_studio.recipe.load import load_recipe


def plan(
    recipe: Annotated[Path, typer.Argument(help="a TOML recipe; see recipes/")],
    changes: Annotated[
        list[str],
        typer.Option("--set", metavar="KEY=VALUE", help="change the recipe, e.g. training.steps=200"),
    ] = [],  # noqa: B006 - typer reads the default, nobody changes it
    memory: Annotated[
        float | None,
        typer.Option(min=0.1, metavar="GB", help="has it to fit into so much; default: what is free here"),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print everything as JSON")] = False,
) -> None:
    """Say what a run will train and take, by a trial step; fills the caches. Exit 0, or 1 if it won't fit."""
    loaded = load_recipe(recipe, changes=tuple(changes))
    quiet_libraries()
    from lora_studio.console.plan import print_needs, print_plan
    from lora_studio.console.run import RunScreen
    from lora_studio.training.planning.plan import plan as make

    with RunScreen(errors) as screen:
        found = make(loaded, memory_gib=memory, on_event=screen)
    if as_json:
        console.print_json(json.dumps(found.to_json()))
    else:
        print_plan(found.training, console)
        print_needs(found, console)
    if not found.memory.fits:
        raise typer.Exit(1)
