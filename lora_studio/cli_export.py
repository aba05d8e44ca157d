"""The verb `export`: it parses and prints."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from lora_studio.quiet import quiet_libraries

if TYPE_CHECKING:
    from lora_studio.training.events import Event

console = Console(highlight=False)
progress_console = Console(stderr=True, highlight=False)


def export(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="a run's folder, finished or not")],
    to: Annotated[
        list[str],
        typer.Option(
            "--to",
            metavar="NAME",
            help="kohya, diffusers, native, embedding, a1111_bundle, merged or checkpoint; can be repeated",
        ),
    ],
    checkpoint: Annotated[
        int | None, typer.Option(metavar="STEP", help="of this step; default: the newest")
    ] = None,
    dtype: Annotated[
        str | None, typer.Option(help="float16, bfloat16 or float32; default: as the recipe says")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="the folder to write into; default: exports/step_<number> of the run")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="replace files that are there already")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="print what was written as JSON")] = False,
) -> None:
    """Write a run's checkpoint in other forms, verified: exit 0, 1 if one is faulty, 2 for a mistake."""
    quiet_libraries()
    from lora_studio.training.events import Note
    from lora_studio.training.export_run import Wishes, export_run

    def tell(event: Event) -> None:
        if isinstance(event, Note):
            progress_console.print(event.text, markup=False)

    wishes = Wishes(tuple(to), checkpoint, dtype, out, force)
    found = export_run(run, wishes, on_event=tell)
    if as_json:
        console.print_json(json.dumps([one.to_json() for one in found]))
        return
    from lora_studio.printing_export import print_exported

    print_exported(found, console)
