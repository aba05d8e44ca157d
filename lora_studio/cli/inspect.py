"""The verbs `inspect` and `verify`, on finished files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lora_studio.cli.metadata import check_origin
from lora_studio.cli.options import BASES, Force, Json, LoraPath, argument, flag, print_json, show, value
from lora_studio.console import console
from lora_studio.errors import StudioError
from lora_studio.quiet import quiet_libraries


def inspect(
    target: Annotated[Path, argument("FILE|FOLDER", "a .safetensors file, or a folder of them")],
    as_json: Json = False,
    out: Annotated[
        Path | None, value("FILE", "file: plot the norms of its layers into this PNG", "-o", "--out")
    ] = None,
    force: Force = False,
) -> None:
    """Show a LoRA file's base, kind, rank, alpha, norms, triggers and hashes, and how UIs load it."""
    quiet_libraries()
    from lora_studio.console.inspect import print_facts, print_folder
    from lora_studio.tools.inspect import inspect_file, inspect_folder

    if out is not None and (target.is_dir() or (out.exists() and not force)):
        fault = "--out is for one file, not a folder" if target.is_dir() else f"{out} is there already"
        raise StudioError(f"{fault}; {'leave it out' if target.is_dir() else 'choose another, or --force'}.")
    if target.is_dir():
        found = inspect_folder(target)
        if as_json:
            print_json([one.to_json() for one in found])
        else:
            print_folder(found, console)
        return
    facts = inspect_file(target)
    if out is not None:
        _draw(out, facts.norms, facts.file)
    show(facts, print_facts, as_json=as_json)
    if out is not None and not as_json:
        console.say(f"\nplot         {out}")


def verify(
    file: LoraPath,
    base: Annotated[str | None, value("BASE", f"{BASES}; default: the one that the file names")] = None,
    as_json: Json = False,
    provenance: Annotated[
        bool, flag("--provenance", "instead: was it made from the images in these folders?")
    ] = False,
    places: Annotated[
        list[Path] | None, argument("RUN|FOLDER", "for --provenance: a run's folder, or images")
    ] = None,
) -> None:
    """Check a LoRA file: exit 0 if it is valid, 1 if it is invalid, 2 for a mistake in the call."""
    quiet_libraries()
    if provenance or places:
        check_origin(file, places or [], provenance=provenance, as_json=as_json)
        return
    from lora_studio.console.inspect import print_report
    from lora_studio.verify import verify as check

    report = check(file, base=base)
    show(report, print_report, as_json=as_json)
    if not report.ok:
        raise typer.Exit(1)


def _draw(out: Path, norms: dict[str, float | None], title: str) -> None:
    from lora_studio.files import write_atomically
    from lora_studio.tools.plots import norm_plot

    if not norms:
        raise StudioError(f"{title} has no LoRA layers, so there is nothing to plot; leave out --out.")
    try:
        write_atomically(out, norm_plot(norms, title))
    except OSError as error:
        raise StudioError(f"{out} cannot be written ({error.strerror or error}).") from None
