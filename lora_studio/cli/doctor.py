"""The verbs `doctor` and `env`: what is wrong with images and captions, and what works on this machine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lora_studio.cli.options import BASES, Json, Recursive, Trigger, argument, flag, print_json, value
from lora_studio.console import Bars, console, errors
from lora_studio.errors import DatasetError, RecipeError, StudioError
from lora_studio.text import file_size

if TYPE_CHECKING:
    from lora_studio.data.doctor import DoctorOptions
    from lora_studio.data.doctor.finding import DoctorReport
    from lora_studio.data.manifest import Manifest
    from lora_studio.training.machine.self_test import OptionTest


def doctor(
    target: Annotated[Path, argument("FOLDER|RECIPE", "images, or a recipe's .toml file")],
    as_json: Json = False,
    html: Annotated[Path | None, value("FILE", "also write a page with thumbnails into this file")] = None,
    write_exclude: Annotated[
        Path | None, value("FILE", "write a list of what to leave out, for a recipe's data.exclude")
    ] = None,
    trigger: Trigger = "",
    base: Annotated[str, value("BASE", f"folder: judge for this base: {BASES}")] = "",
    resolution: Annotated[int | None, value("PIXELS", "folder: default 512, or the base's", min=1)] = None,
    recursive: Recursive = False,
) -> None:
    """Say what is wrong with images and captions; changes nothing. Exit 0, or 1 if there are errors."""
    from lora_studio.console.dataset import print_findings
    from lora_studio.data.doctor import DoctorOptions
    from lora_studio.text import plural

    options = DoctorOptions(base, resolution or 0, trigger, recursive)
    with Bars(errors, transient=True) as bars:
        report, manifest = _examined(target, options, partial(bars.show, "looking at images"))
    title, suggested = target.resolve().name, 0
    if html is not None:
        from lora_studio.data.doctor.page import write_page

        write_page(html, report, manifest, title=title)
    if write_exclude is not None:
        from lora_studio.data.doctor.finding import write_suggestion

        suggested = write_suggestion(write_exclude, report, manifest.records)
    if as_json:
        print_json(report.to_json())
    else:
        print_findings(report, console, title=title)
        if html is not None:
            console.say()
            console.say(f"page         {html}")
        if write_exclude is not None:
            console.say()
            console.say(f"to leave out {plural(suggested)} to look at, in {write_exclude}")
    if report.count("error"):
        raise typer.Exit(1)


def _examined(
    target: Path, options: DoctorOptions, on_progress: Callable[[int, int], None]
) -> tuple[DoctorReport, Manifest]:
    if target.is_dir():
        from lora_studio.data.doctor import examine_folder

        return examine_folder(target, options, on_progress=on_progress)
    if not target.is_file():
        raise DatasetError(f"there is no {target}; give a folder of images or a recipe's .toml file.")
    if options != type(options)():
        raise RecipeError(
            "--trigger, --base, --resolution and --recursive are for folders; a recipe says that itself."
        )
    from lora_studio.recipe.load import load_recipe
    from lora_studio.training.prepare.dataset import examine_recipe

    return examine_recipe(load_recipe(target), on_progress=on_progress)


def env(
    device: Annotated[str, value("DEVICE", '"auto", "cpu", "cuda" or "cuda:1"')] = "auto",
    quick: Annotated[bool, flag("--quick", "leave out compile, which can take minutes")] = False,
    as_json: Json = False,
) -> None:
    """Show device, memory and versions, and try every option with a small training step."""
    from lora_studio.processes import find_device
    from lora_studio.training.machine.self_test import environment, try_all

    chosen = find_device(device)
    if chosen is None:
        raise StudioError(f'--device is {device!r}, which this machine does not have; use "auto" or "cpu".')
    facts = environment(chosen)
    if as_json:
        options = [asdict(one) for one in try_all(chosen, lambda outcome: None, quick=quick)]
        print_json(facts | {"options": options})
        return
    _print_facts(facts)
    console.say()
    console.say("options, each tried with a small training step")
    try_all(chosen, _print_outcome, quick=quick)


def _print_facts(facts: dict[str, Any]) -> None:
    memory, main = facts["memory_bytes"], facts["main_memory_bytes"]
    rows = [
        ("device", f"{facts['device']} ({facts['name']})"),
        ("driver", f"{facts['driver']}, CUDA {facts['cuda']}" if facts["driver"] else ""),
        ("memory", f"{file_size(memory['free'])} of {file_size(memory['total'])} free" if memory else ""),
        ("main memory", file_size(main) if main else ""),
        ("system", f"{facts['system']}, {facts['cpus']} CPUs, Python {facts['python']}"),
        *((name, found or "not installed") for name, found in facts["versions"].items()),
    ]
    console.print_rows([(title, text) for title, text in rows if text])


def _print_outcome(outcome: OptionTest) -> None:
    console.say(f"{outcome.option}: {'works' if outcome.works else f'does not work: {outcome.why}'}")
