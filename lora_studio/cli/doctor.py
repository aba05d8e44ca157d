"""The verb `doctor`: it parses and prints."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lora_studio.console.screen import Bars, console, errors
from lora_studio.errors import DatasetError, RecipeError
from lora_studio.quiet import quiet_libraries

if TYPE_CHECKING:
    from lora_studio.data.doctor.finding import DoctorReport
    from lora_studio.data.doctor.folder import DoctorOptions
    from lora_studio.data.manifest import Manifest


Progress = Callable[[int, int], None]


def doctor(
    target: Annotated[Path, typer.Argument(metavar="FOLDER|RECIPE", help="images, or a recipe's .toml file")],
    as_json: Annotated[bool, typer.Option("--json", help="print findings and plan as JSON")] = False,
    html: Annotated[
        Path | None, typer.Option(help="also write a page with thumbnails into this file")
    ] = None,
    write_exclude: Annotated[
        Path | None, typer.Option(help="write a list of what to leave out, for data.exclude of a recipe")
    ] = None,
    trigger: Annotated[str, typer.Option(help="folder: the trigger words that captions should hold")] = "",
    base: Annotated[
        str,
        typer.Option(help='folder: judge for this base: "pocket", a diffusers folder, a file or a hub id'),
    ] = "",
    resolution: Annotated[int, typer.Option(min=0, help="folder: pixels; default 512, or the base's")] = 0,
    recursive: Annotated[
        bool, typer.Option("--recursive", help="folder: also search all subfolders")
    ] = False,
) -> None:
    """Say what is wrong with images and captions; changes nothing. Exit 0, or 1 if there are errors."""
    quiet_libraries()
    from lora_studio.data.doctor.folder import DoctorOptions

    wishes = DoctorOptions(base, resolution, trigger, recursive)
    with Bars(errors, transient=True) as bars:
        report, manifest = _examined(target, wishes, partial(bars.show, "looking at images"))
    if html is not None:
        from lora_studio.data.doctor.page import write_page

        write_page(html, report, manifest, title=_title(target))
    suggested = 0
    if write_exclude is not None:
        from lora_studio.data.doctor.suggestion import write_suggestion

        suggested = write_suggestion(write_exclude, report, manifest.records)
    if as_json:
        console.print_json(json.dumps(report.to_json()))
    else:
        _print(report, _title(target), html, write_exclude, suggested)
    if report.count("error"):
        raise typer.Exit(1)


def _examined(target: Path, wishes: DoctorOptions, on_progress: Progress) -> tuple[DoctorReport, Manifest]:
    if target.is_dir():
        from lora_studio.data.doctor.folder import examine_folder

        return examine_folder(target, wishes, on_progress=on_progress)
    if not target.is_file():
        raise DatasetError(f"there is no {target}; give a folder of images or a recipe's .toml file.")
    if wishes != type(wishes)():
        raise RecipeError(
            "--trigger, --base, --resolution and --recursive are for folders; a recipe says that itself."
        )
    from lora_studio.recipe.load import load_recipe
    from lora_studio.training.prepare.doctor import examine_recipe

    return examine_recipe(load_recipe(target), on_progress=on_progress)


def _title(target: Path) -> str:
    return target.resolve().name


def _print(
    report: DoctorReport, title: str, html: Path | None, write_exclude: Path | None, suggested: int
) -> None:
    from lora_studio.console.dataset import print_findings
    from lora_studio.text import plural

    print_findings(report, console, title=title)
    if html is not None:
        console.say(f"\npage         {html}")
    if write_exclude is not None:
        what = f"{plural(suggested)} to look at, in {write_exclude}"
        console.say(f"\nto leave out {what}")
