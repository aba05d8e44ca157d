"""The command line: parses and prints, computes nothing. Imports no torch, so that --help is instant."""

from __future__ import annotations

import errno
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.resources import files
from typing import Annotated, TextIO

import typer

from lora_studio.cli.captions import caption, captions
from lora_studio.cli.combine import combine, compare, extract, merge_into, resize
from lora_studio.cli.dataset import buckets, cache, class_images, regularization_images
from lora_studio.cli.doctor import doctor, env
from lora_studio.cli.export import convert, export, push
from lora_studio.cli.inspect import inspect, metadata, sidecars, verify
from lora_studio.cli.options import Command, Group
from lora_studio.cli.start import demo, init, plan, train
from lora_studio.console import console, errors
from lora_studio.errors import ExportMismatch, ProcessLost, RenamedOption, StudioError, TrainingDiverged
from lora_studio.processes import is_main
from lora_studio.version import __version__

app = typer.Typer(
    cls=Group, pretty_exceptions_enable=False, help="A folder of images becomes a verified LoRA file."
)

DATASET = "Dataset"
GROUPS: dict[str, tuple[Callable[..., None], ...]] = {
    "Start here": (init, doctor, plan, train, demo),
    DATASET: (caption, captions, buckets, regularization_images),
    "Results": (verify, export, metadata, sidecars, push),
    "LoRA files": (inspect, convert, combine, compare, resize, extract, merge_into),
    "Machine": (env,),
}
for group, verbs in GROUPS.items():
    for verb in verbs:
        app.command(cls=Command, rich_help_panel=group)(verb)
app.command(cls=Command, hidden=True)(class_images)
app.add_typer(cache, rich_help_panel=DATASET)


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
        console.say(text.rstrip("\n").format(version=__version__))


def guarded(command: Callable[[], None]) -> int:
    """Run a command; a user's mistake becomes its message and exit 2, an invalid result exit 1."""
    try:
        command()
    except StudioError as error:
        if is_main() or not error.told_by_main:
            errors.say(f"error: {error}")
        return 1 if isinstance(error, ExportMismatch | ProcessLost | TrainingDiverged) else 2
    except KeyboardInterrupt:
        errors.say("stopped")
        return 130
    return 0


def _show_warning(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, *_: object, **__: object
) -> None:
    """A recipe's old names in one line, by one process; the warnings of libraries as they always are."""
    if not issubclass(category, RenamedOption):
        sys.stderr.write(warnings.formatwarning(message, category, filename, lineno))
    elif is_main():
        errors.say(f"note: {message}")


class OutlivingStream:
    """A stream that falls silent when its terminal is gone; a run is saved and ends as it would with one."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> object:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        with _without_terminal():
            return self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with _without_terminal():
            self._stream.flush()


@contextmanager
def _without_terminal() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno != errno.EIO:
            raise


def main() -> None:
    warnings.showwarning = _show_warning
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if hasattr(stream, "reconfigure"):  # a file name in any script must not crash a console of another
            stream.reconfigure(errors="backslashreplace")
            setattr(sys, name, OutlivingStream(stream))
    sys.exit(guarded(app))


if __name__ == "__main__":
    main()
