"""The verb `inspect`: it parses and prints."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from lora_studio.console.screen import console
from lora_studio.errors import StudioError
from lora_studio.quiet import quiet_libraries


def inspect(
    target: Annotated[
        Path, typer.Argument(metavar="FILE|FOLDER", help="a .safetensors file, or a folder of them")
    ],
    as_json: Annotated[bool, typer.Option("--json", help="print what is known as JSON")] = False,
    out: Annotated[
        Path | None, typer.Option(help="file: draw the norms of its changes, block by block, into this PNG")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="replace the PNG if it is there")] = False,
) -> None:
    """Say what a file is: its base, kind, rank, alpha, norms, triggers, hashes, and how UIs load it."""
    quiet_libraries()
    from lora_studio.tools.inspect import inspect_file, inspect_folder

    if out is not None and (target.is_dir() or (out.exists() and not force)):
        fault = "--out is for one file, not a folder" if target.is_dir() else f"{out} is there already"
        raise StudioError(f"{fault}; {'leave it out' if target.is_dir() else 'choose another, or --force'}.")
    if target.is_dir():
        found = inspect_folder(target)
        if as_json:
            console.print_json(json.dumps([one.to_json() for one in found]))
        else:
            from lora_studio.console.inspect import print_folder

            print_folder(found, console)
        return
    facts = inspect_file(target)
    if out is not None:
        _draw(out, facts.norms, facts.file)
    if as_json:
        console.print_json(json.dumps(facts.to_json()))
    else:
        from lora_studio.console.inspect import print_facts

        print_facts(facts, console)
        if out is not None:
            console.say(f"\nplot         {out}")


def _draw(out: Path, norms: dict[str, float | None], title: str) -> None:
    from lora_studio.files import write_atomically
    from lora_studio.tools.plots import norm_plot

    if not norms:
        raise StudioError(f"{title} holds no layers of a LoRA, so there is nothing to draw; leave out --out.")
    try:
        write_atomically(out, norm_plot(norms, title))
    except OSError as error:
        raise StudioError(f"{out} cannot be written ({error.strerror or error}).") from None
