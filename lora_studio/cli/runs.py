"""The verbs on several runs: `runs compare`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lora_studio.cli.options import Command, Force, Group, Json, argument, flag, print_json, value
from lora_studio.console import console
from lora_studio.errors import StudioError

runs = typer.Typer(name="runs", cls=Group, no_args_is_help=True, help="Look at several runs together.")


@runs.command(cls=Command)
def compare(
    targets: Annotated[
        list[Path], argument("RUN", "run folders, LoRA files or evaluation.json files: two or more")
    ],
    out: Annotated[
        Path | None, value("FILE", "plot fidelity against drift into this PNG", "-o", "--out")
    ] = None,
    markdown: Annotated[bool, flag("--markdown", "print the table as Markdown")] = False,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Compare evaluated runs: measures with intervals, and the options in which their recipes differ."""
    from lora_studio.console.evaluation import print_compared_runs
    from lora_studio.files import say_unwritable, write_atomically
    from lora_studio.tools.compare_runs import compare_runs, comparison_plot
    from lora_studio.tools.result import check_output

    if markdown and as_json:
        raise StudioError("--markdown and --json are both there; keep one of them.")
    if out is not None:
        check_output(out, force=force, inputs=targets, ending=".png")
    compared = compare_runs(targets)
    if out is not None:
        with say_unwritable(out):
            write_atomically(out, comparison_plot(compared))
    if as_json:
        print_json(compared.to_json())
    elif markdown:
        for line in compared.to_markdown().splitlines():
            console.say(line)
    else:
        print_compared_runs(compared, console, written=[out] if out is not None else [])
