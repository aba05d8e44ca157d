"""The command line: parses and prints, computes nothing. Imports no torch, so that --help is instant."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from importlib.resources import files
from typing import Annotated

import typer

from lora_studio.cli.assess import assess
from lora_studio.cli.captions import caption, captions
from lora_studio.cli.choose import choose
from lora_studio.cli.combine import combine, compare, extract, merge_into, resize
from lora_studio.cli.dataset import buckets, cache, class_images, regularization_images
from lora_studio.cli.doctor import doctor, env
from lora_studio.cli.evaluate import evaluate
from lora_studio.cli.export import convert, export, push
from lora_studio.cli.init import init, start
from lora_studio.cli.inspect import inspect, metadata, sidecars, verify
from lora_studio.cli.migrate import schema
from lora_studio.cli.options import Command, Group
from lora_studio.cli.queue import queue
from lora_studio.cli.runs import runs
from lora_studio.cli.sample import sample
from lora_studio.cli.start import demo, plan, train
from lora_studio.cli.sweep import sweep
from lora_studio.cli.web import web
from lora_studio.console import console, errors
from lora_studio.console.terminal import answer_interrupts, output_fault, use_terminal_streams
from lora_studio.errors import ExportMismatch, ProcessLost, RenamedOption, StudioError, TrainingDiverged
from lora_studio.processes import is_main
from lora_studio.text import cut, shown
from lora_studio.version import __version__

app = typer.Typer(
    cls=Group, pretty_exceptions_enable=False, help="A folder of images becomes a verified LoRA file."
)

DATASET, MANY = "Dataset", "Many runs"
GROUPS: dict[str, tuple[Callable[..., None], ...]] = {
    "Start here": (start, web, init, doctor, assess, plan, train, demo),
    DATASET: (caption, captions, buckets, regularization_images),
    "Results": (evaluate, choose, sample, verify, export, metadata, sidecars, push),
    "LoRA files": (inspect, convert, combine, compare, resize, extract, merge_into),
    MANY: (sweep,),
    "Machine": (env, schema),
}
for group, verbs in GROUPS.items():
    for verb in verbs:
        app.command(cls=Command, rich_help_panel=group)(verb)
app.command(cls=Command, hidden=True)(class_images)
app.add_typer(cache, rich_help_panel=DATASET)
app.add_typer(queue, rich_help_panel=MANY)
app.add_typer(runs, rich_help_panel=MANY)


def _version(asked: bool) -> None:
    if asked:
        console.say(__version__)
        raise typer.Exit


@app.callback(invoke_without_command=True)
def options(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="print the version")
    ] = False,
) -> None:
    """A folder of images becomes a verified LoRA file."""
    if context.invoked_subcommand is None:
        text = files(__package__).joinpath("first_run.txt").read_text("utf-8")
        for line in text.format(version=__version__).splitlines():
            console.say(line)


def guarded(command: Callable[[], None]) -> int:
    """Run a command; a user's mistake becomes its message and exit 2, an invalid result exit 1."""
    try:
        command()
    except StudioError as error:
        if is_main() or not error.told_by_main:
            errors.say(f"error: {cut(str(error))}")
        return 1 if isinstance(error, ExportMismatch | ProcessLost | TrainingDiverged) else 2
    except OSError as error:  # of a path that is in no place where one is expected: too long, say
        if error.filename is None or not error.strerror:
            raise
        errors.say(f"error: {shown(str(error.filename), limit=300)} cannot be used ({error.strerror}).")
        return 2
    except KeyboardInterrupt:
        errors.say("stopped")
        return 130
    return 0


def _show_warning(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, *_: object, **__: object
) -> None:
    """A recipe's old names in one line, by one process; the warnings of libraries as they always are."""
    if not issubclass(category, RenamedOption):
        errors.say(warnings.formatwarning(message, category, filename, lineno).rstrip("\n"))
    elif is_main():
        errors.say(f"note: {message}")


def main() -> None:
    """The program `lora-studio`: exit 0, 1 for an invalid result, 2 for a mistake, 130 if it was stopped."""
    warnings.showwarning = _show_warning
    use_terminal_streams()
    answer_interrupts()
    try:
        code = guarded(app)
    except SystemExit as ended:  # typer ends each verb so
        code = int(ended.code or 0)
    if fault := output_fault():
        errors.say(f"error: {fault}")
        code = code or 1
    sys.exit(code)


if __name__ == "__main__":
    main()
