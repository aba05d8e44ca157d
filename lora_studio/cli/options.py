"""Arguments, options and output that verbs share, spelled and explained the same way everywhere."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Protocol

import typer
from typer.core import TyperArgument, TyperCommand, TyperGroup, TyperOption
from typer.models import ArgumentInfo, OptionInfo

from lora_studio.console import console
from lora_studio.console.terminal import missing_folder
from lora_studio.errors import RecipeError, StudioError
from lora_studio.quiet import quiet_libraries
from lora_studio.text import cut, shown

if TYPE_CHECKING:
    from typer._click import Context, Parameter


def argument(metavar: str, help: str) -> ArgumentInfo:
    return typer.Argument(metavar=metavar, help=help)


def value(metavar: str, help: str, *names: str, min: float | None = None) -> OptionInfo:
    """An option with a value; its name is the parameter's unless `names` are given."""
    return typer.Option(*names, metavar=metavar, help=help, min=min)


def flag(name: str, help: str) -> OptionInfo:
    return typer.Option(name, help=help)


MAY_BE_BLANK = {"negative", "prompts", "find", "replace", "prefix", "suffix", "blacklist"}  # parameters
BASES = '"pocket", a diffusers folder, a checkpoint file or a hub id'

RecipeFile = Annotated[Path, argument("RECIPE", "a TOML recipe; see recipes/")]
LoraPath = Annotated[Path, argument("FILE", "a LoRA .safetensors file from anywhere")]

Changes = Annotated[
    list[str] | None,
    value("KEY=VALUE", "change the recipe, e.g. training.steps=200; can be repeated", "--set"),
]
Resume = Annotated[bool, flag("--resume", "continue from the run folder's newest whole checkpoint")]
RunDir = Annotated[
    Path | None, value("DIR", "the run folder; default: runs/<name of the recipe>", "-o", "--out")
]
Out = Annotated[Path, value("FILE", "the file to write", "-o", "--out")]
Force = Annotated[bool, flag("--force", "replace files that exist already")]
SkipUnknown = Annotated[bool, flag("--skip-unknown", "leave out tensors that no LoRA has, and say which")]
Json = Annotated[bool, flag("--json", "print the result as JSON")]
Dtype = Annotated[str, value("DTYPE", "float16, bfloat16 or float32")]
Device = Annotated[str, value("DEVICE", "cpu, cuda, cuda:1; default: a GPU if there is one")]
RayAddress = Annotated[
    str | None, value("ADDRESS", 'on a Ray cluster: "auto", or ray://HOST:10001; docs/queue.md', "--ray")
]
Trigger = Annotated[str, value("WORDS", 'the trigger words, e.g. "zwx style"')]
Recursive = Annotated[
    bool, flag("--recursive", "also all subfolders; without it only those named <repeats>_<name>")
]


class Reportable(Protocol):
    """A result that can be written as JSON."""

    def to_json(self) -> Any: ...


def print_json(data: object) -> None:
    console.say_json(data)


def show(report: Reportable, in_words: Callable[..., None], *details: object, as_json: bool) -> None:
    """The report as JSON, or in words: `in_words(report, *details, console)`."""
    if as_json:
        print_json(report.to_json())
    else:
        in_words(report, *details, console)


class Command(TyperCommand):
    """With quiet libraries, and a help that says what to type; typer's has <bool> and <list[str]>, too."""

    def invoke(self, ctx: Context) -> Any:
        if fault := missing_folder():
            raise StudioError(fault)
        quiet_libraries()
        return super().invoke(ctx)

    def parse_args(self, ctx: Context, args: list[str]) -> list[str]:
        """As typer's. Raises RecipeError for an option that is none here but has the name of a recipe's, and
        StudioError for one that is given but empty, as a shell's unset variable makes it."""
        given = list(args)  # typer empties the list
        try:
            rest = super().parse_args(ctx, args)
            if not ctx.resilient_parsing:
                values, _, _ = self.make_parser(ctx).parse_args(args=given)
                _refuse_blanks(self.params, values)
            return rest
        except Exception as error:
            # click's own, of which newer versions of typer have a copy
            name = getattr(error, "option_name", "")
            if type(error).__name__ != "NoSuchOption" or not (option := _meant(name)):
                raise
            takes = any("--set" in parameter.opts for parameter in self.params)
            how = f"write --set {option}=VALUE" if takes else f"set {option} there"
            raise RecipeError(f"{name} is an option of the recipe: {how}.") from None

    def get_params(self, ctx: Context) -> list[Parameter]:
        return _without_types(super().get_params(ctx))


class Group(TyperGroup):
    """Likewise, of commands; mistakes in a call are typer's to print."""

    def make_context(self, *args: Any, **kwargs: Any) -> Context:
        with _harmless_mistakes():
            return super().make_context(*args, **kwargs)

    def invoke(self, ctx: Context) -> Any:
        with _harmless_mistakes():
            return super().invoke(ctx)

    def get_params(self, ctx: Context) -> list[Parameter]:
        return _without_types(super().get_params(ctx))


@contextmanager
def _harmless_mistakes() -> Iterator[None]:
    """A shell's `*` puts names of files into a call, and typer prints them on a console of its own."""
    try:
        yield
    except Exception as error:
        if hasattr(error, "format_message") and hasattr(error, "message"):  # its class has no public name
            error.message = shown(cut(str(error.message)))
        raise


def _refuse_blanks(parameters: list[Parameter], values: Mapping[str, Any]) -> None:
    """Defaults in place of what was given would be taken for it, and an empty path for the working folder."""
    for one in parameters:
        given = values.get(str(one.name))
        texts = given if isinstance(given, list | tuple) else [given]
        if one.name not in MAY_BE_BLANK and any(isinstance(text, str) and not text.strip() for text in texts):
            if isinstance(one, TyperArgument):
                raise StudioError(f"{one.metavar} is empty; write what it stands for.")
            raise StudioError(f"{max(one.opts, key=len)} is empty; give it a value, or leave it out.")


def _meant(name: str) -> str:
    """The recipe's option that is meant by an option of the command line that is not there, or "" ."""
    from lora_studio.recipe.load import option_named

    return option_named(name.lstrip("-")) if name.startswith("--") else ""


def _without_types(parameters: list[Parameter]) -> list[Parameter]:
    for one in parameters:
        if isinstance(one, TyperArgument) or (isinstance(one, TyperOption) and one.is_flag):
            vars(one)["display_type_rich"] = lambda ctx: None
    return parameters
