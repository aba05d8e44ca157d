"""The command line: parses and prints, computes nothing. Imports no torch, so that --help is instant."""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lora_studio.cli import bases as cli_extract
from lora_studio.cli import buckets as cli_buckets
from lora_studio.cli import cache as cli_cache
from lora_studio.cli import captions as cli_captions
from lora_studio.cli import combine as cli_combine
from lora_studio.cli import doctor as cli_doctor
from lora_studio.cli import env as cli_env
from lora_studio.cli import export as cli_convert
from lora_studio.cli import export as cli_export
from lora_studio.cli import export as cli_push
from lora_studio.cli import init as cli_init
from lora_studio.cli import inspect as cli_inspect
from lora_studio.cli import metadata as cli_metadata
from lora_studio.cli import plan as cli_plan
from lora_studio.console.screen import console, errors
from lora_studio.errors import ExportMismatch, ProcessLost, RenamedOption, StudioError, TrainingDiverged
from lora_studio.processes import is_main
from lora_studio.quiet import quiet_libraries
from lora_studio.recipe import Recipe
from lora_studio.recipe.load import PRESET_FOLDER, load_recipe
from lora_studio.runs.folder import run_folder
from lora_studio.version import __version__

if TYPE_CHECKING:
    from lora_studio.training.finish import Finished
    from lora_studio.training.session import Interrupted

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="A folder of images becomes a verified LoRA file.",
)

Changes = Annotated[
    list[str], typer.Option("--set", metavar="KEY=VALUE", help="change the recipe, e.g. training.steps=200")
]
Resume = Annotated[
    bool, typer.Option("--resume", help="go on from the newest checkpoint of the same run folder")
]


@app.command()
def train(
    recipe: Annotated[Path, typer.Argument(help="a TOML recipe; see recipes/")],
    out: Annotated[
        Path | None, typer.Option(help="the run folder; default: runs/<name of the recipe>")
    ] = None,
    resume: Resume = False,
    changes: Changes = [],  # noqa: B006 - typer reads the default, nobody changes it
) -> None:
    """Train a recipe and export, verify and show the LoRA."""
    loaded = load_recipe(recipe, changes=tuple(changes))
    _train(loaded, out or run_folder(loaded.name), resume=resume, again=f"lora-studio train {recipe}")


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="the run folder")] = Path("runs/demo"),
    resume: Resume = False,
    changes: Changes = [],  # noqa: B006 - typer reads the default, nobody changes it
) -> None:
    """Learn a woodcut style from the sample images on the pocket base: no GPU, download or account."""
    recipe = load_recipe(PRESET_FOLDER / "pocket_style.toml", changes=tuple(changes))
    if (out / "summary.json").is_file() and not resume:
        console.say(
            f"{out} holds a finished demo already; looking at its file again (--out DIR trains a new one)."
        )
        verify(out / f"{recipe.name}.safetensors")
        return
    _train(recipe, out, resume=resume, again="lora-studio demo")


@app.command()
def verify(
    file: Annotated[Path, typer.Argument(help="a LoRA .safetensors file from anywhere")],
    base: Annotated[
        str | None,
        typer.Option(help='"pocket", a diffusers folder, a file or a hub id; default: what the file names'),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print the report as JSON")] = False,
    provenance: Annotated[
        bool, typer.Option("--provenance", help="instead: was it made from the images in these folders?")
    ] = False,
    places: Annotated[
        list[Path] | None,
        typer.Argument(metavar="[RUN|FOLDER]...", help="for --provenance: a run's folder, or images"),
    ] = None,
) -> None:
    """Say whether a LoRA file is whole: exit 0 if it is, 1 if it is faulty, 2 for a mistake in the call."""
    quiet_libraries()
    if provenance or places:
        cli_metadata.check_origin(file, places or [], provenance=provenance, as_json=as_json)
        return
    from lora_studio.verify import verify as look

    report = look(file, base=base)
    if as_json:
        console.print_json(json.dumps(report.to_json()))
    else:
        from lora_studio.console.inspect import print_report

        print_report(report, console)
    if not report.ok:
        raise typer.Exit(1)


def _train(recipe: Recipe, folder: Path, *, resume: bool, again: str) -> None:
    quiet_libraries()
    console.quiet = not is_main()  # of several processes one speaks
    from lora_studio.console.run import RunScreen
    from lora_studio.training.session import Interrupted
    from lora_studio.training.session import train as run

    console.say("reading the base model and the images")
    with RunScreen(console) as screen:
        result: Finished | Interrupted = run(recipe, folder, resume=resume, on_event=screen)
    if isinstance(result, Interrupted):
        options = "" if folder == run_folder(recipe.name) else f" --out {folder}"
        console.say(f"stopped after step {result.step}; go on with: {again}{options} --resume")
        raise typer.Exit(130)
    from lora_studio.console.run import print_finished

    print_finished(result, console)


app.command()(cli_init.init)
app.command()(cli_inspect.inspect)
app.command()(cli_plan.plan)
app.command()(cli_buckets.buckets)
app.command()(cli_captions.caption)
app.command()(cli_captions.captions)
app.command()(cli_doctor.doctor)
app.command()(cli_env.env)
app.command()(cli_metadata.metadata)
app.command()(cli_metadata.sidecars)
app.command()(cli_push.push)
app.command()(cli_export.export)
app.command()(cli_convert.convert)
app.command()(cli_combine.combine)
app.command()(cli_combine.compare)
app.command()(cli_combine.resize)
app.command()(cli_extract.extract)
app.command("merge-into")(cli_extract.merge_into)
app.command("regularization-images")(cli_cache.regularization_images)
app.add_typer(cli_cache.cache)


def _version(asked: bool) -> None:
    if asked:
        console.say(__version__)
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="print the version")
    ] = False,
) -> None:
    """A folder of images becomes a verified LoRA file."""


def guarded(command: Callable[[], None]) -> int:
    """Run a command; a user's mistake becomes its message and exit 2, a faulty result exit 1."""
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


def main() -> None:
    """The entry point."""
    warnings.showwarning = _show_warning
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a file name in any script must not crash a console of another
            stream.reconfigure(errors="backslashreplace")
    sys.exit(guarded(app))


if __name__ == "__main__":
    main()
