"""The pages in docs/reference, from the recipe and the commands: `python docs/write_reference.py recipe`."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import UnionType
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt, MaxLen
from pydantic.fields import FieldInfo
from typer.core import TyperArgument, TyperCommand, TyperGroup, TyperOption
from typer.main import get_command

from lora_studio.cli import GROUPS, app
from lora_studio.recipe import Recipe
from lora_studio.recipe.load import names_elsewhere
from lora_studio.recipe.renamed import RENAMED
from lora_studio.recipe.section import Section

if TYPE_CHECKING:
    from typer._click import Context

_RECIPE_HEAD = """# Recipe reference

<!-- Written by `make docs` from the models in lora_studio/recipe/. Edit those, not this page. -->

A recipe is a TOML file. Only `name`, `base.model` and the images (`data.images` or `[[data.sources]]`) are
required; everything else has the default below. `--set training.steps=200` changes one option for one
command. An option that is not listed here is refused, with a suggestion.

*Resume* says whether `--resume` may go on with another value, because what is learned stays the same but for
rounding.
"""
_COLUMNS = ("option", "type", "default", "range", "what it does", "resume")
_TYPES: dict[Any, str] = {bool: "true or false", int: "integer", float: "number", str: "text", Path: "path"}
_BOUNDS = {Ge: ("≥", "ge"), Gt: (">", "gt"), Le: ("≤", "le"), Lt: ("<", "lt")}


def recipe_page() -> str:
    """The page docs/reference/recipe.md, in Markdown."""
    parts = [_RECIPE_HEAD, *_tables(Recipe, ""), _names("Names of earlier versions", _EARLIER, RENAMED)]
    return "\n".join([*parts, _names("Names of other trainers", _OTHERS, names_elsewhere())])


_EARLIER = "They work in this version, with a notice; the role `holdout` of a source is now `validation`."
_OTHERS = (
    "What kohya's scripts, OneTrainer and diffusers' scripts call an option; a recipe with them is told."
)


def _names(title: str, about: str, names: dict[str, str]) -> str:
    rows = [(f"`{there}`", f"`{here}`") for there, here in names.items()]
    return f"## {title}\n\n{about}\n\n{_table(('there', 'here'), rows)}"


def _tables(section: type[Section], name: str, *, many: bool = False) -> Iterator[str]:
    """A table of options for a section, then one for each section within it."""
    inner = {key: _section_in(field.annotation) for key, field in section.model_fields.items()}
    heading = f"## `[[{name}]]`" if many else f"## `[{name}]`" if name else "## At the top"
    rows = [
        _option_row(key, field, resume_safe=section.is_resume_safe(key))
        for key, field in section.model_fields.items()
        if inner[key] is None
    ]
    yield f"{heading}\n\n{_markdown((section.__doc__ or '').strip())}\n\n{_table(_COLUMNS, rows)}"
    for key, found in inner.items():
        if found is not None:
            is_list = get_origin(section.model_fields[key].annotation) is tuple
            yield from _tables(found, f"{name}.{key}" if name else key, many=is_list)


def _section_in(annotation: Any) -> type[Section] | None:
    """Of a table within a table, or of a list of tables."""
    kind = get_args(annotation)[0] if get_origin(annotation) is tuple else annotation
    return kind if isinstance(kind, type) and issubclass(kind, Section) else None


def _option_row(key: str, field: FieldInfo, *, resume_safe: bool) -> tuple[str, ...]:
    kind, limits = _kind(field.annotation)
    limits += _limits(field.metadata, is_list="list" in kind)
    default = (
        "required" if field.is_required() else "" if field.default is None else f"`{_toml(field.default)}`"
    )
    about = _markdown(field.description or "")
    return f"`{key}`", kind, default, ", ".join(limits), about, "yes" if resume_safe else ""


def _kind(annotation: Any) -> tuple[str, list[str]]:
    """What to write, and which values are allowed as far as the type says that."""
    origin, inner = get_origin(annotation), [one for one in get_args(annotation) if one is not type(None)]
    if origin is Literal:
        return "text", [" or ".join(f"`{_toml(value)}`" for value in inner)]
    if origin is Annotated:
        kind, limits = _kind(inner[0])
        bounds = [bound for one in inner[1:] if isinstance(one, FieldInfo) for bound in one.metadata]
        return kind, limits + _limits(bounds, is_list=False)
    if origin in (Union, UnionType):
        return _kind(float if set(inner) == {int, float} else inner[0])
    if origin is tuple:
        kind, limits = _kind(inner[0])
        kinds = kind if kind == "text" else f"{kind}s"
        return (f"list of {kinds}" if inner[1] is ... else f"list of {len(inner)} {kinds}"), [
            f"each {one}" for one in limits
        ]
    return ("table", []) if origin is dict else (_TYPES[annotation], [])


def _limits(metadata: Sequence[Any], *, is_list: bool) -> list[str]:
    found = [
        f"{sign} {_number(getattr(one, attribute))}"
        for one in metadata
        for bound, (sign, attribute) in _BOUNDS.items()
        if isinstance(one, bound)
    ]
    lengths = [one.max_length for one in metadata if isinstance(one, MaxLen)]
    return found + [f"at most {length} {'entries' if is_list else 'characters'}" for length in lengths]


def _number(value: float) -> str:
    return f"{value}" if isinstance(value, int) else f"{value:g}"


def _toml(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)  # the same as TOML for what options have


def _markdown(text: str) -> str:
    for plain in ("|", "*", "<", "[", "]"):
        text = text.replace(plain, f"\\{plain}")
    return text


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


_CLI_HEAD = """\
# Command line

`make docs` writes this page from the commands' help.

`lora-studio COMMAND --help` shows the same; `lora-studio --install-completion` lets your shell
complete commands and options. Exit codes: 0 for success; 1 for an invalid result, such as a file that fails
verification, a run that diverged or an error of the doctor; 2 for a mistake in the call or the recipe;
130 after Ctrl-C.
"""


def cli_page() -> str:
    """The page, Markdown: every visible command in its group, with arguments, options and defaults."""
    root = get_command(app)
    assert isinstance(root, TyperGroup)
    lines = [_CLI_HEAD]
    for group in GROUPS:
        lines.append(f"## {group}\n")
        for name, command in root.commands.items():
            if isinstance(command, TyperCommand | TyperGroup) and command.rich_help_panel == group:
                lines.extend(_sections(name, command))
    return "\n".join(lines)


def _sections(name: str, command: TyperCommand | TyperGroup) -> Iterator[str]:
    """The command's and its subcommands'."""
    with command.make_context(f"lora-studio {name}", [], resilient_parsing=True) as context:
        arguments = [one for one in command.params if isinstance(one, TyperArgument)]
        options = [one for one in command.params if isinstance(one, TyperOption)]
        usage = " ".join(
            ["lora-studio", name, *map(_placeholder, arguments), *(["[OPTIONS]"] if options else [])]
        )
        yield f"### {name}\n\n```\n{usage}\n```\n\n{command.help}\n"
        if arguments or options:
            yield "| argument or option | default | what it is |\n|---|---|---|"
            yield from (_row(f"`{_placeholder(one)}`", one, context) for one in arguments)
            yield from (_row(_spelled(one), one, context) for one in options)
            yield ""
    if isinstance(command, TyperGroup):
        for below, one in command.commands.items():
            if isinstance(one, TyperCommand):
                yield from _sections(f"{name} {below}", one)


def _placeholder(argument: TyperArgument) -> str:
    """FILE, [FILE] if it can be left out, FILE... if there can be several."""
    text = f"{argument.metavar or argument.name}{'...' if argument.nargs != 1 else ''}"
    return text if argument.required else f"[{text}]"


def _spelled(option: TyperOption) -> str:
    """`-o`, `--out FILE`"""
    *short, long = sorted(option.opts, key=len)
    value = "" if option.is_flag else f" {option.metavar or option.name.upper()}"
    return ", ".join(f"`{one}`" for one in [*short, f"{long}{value}"])


def _row(title: str, one: TyperArgument | TyperOption, context: Context) -> str:
    default = "required" if one.required else one.get_default(context)
    shown = "" if default is None or default is False or default == "" else f"{default}"
    return f"| {_cell(title)} | {_cell(shown)} | {_cell(one.help or '')} |"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;") if "`" not in text else text.replace("|", "\\|")


if __name__ == "__main__":
    sys.stdout.write({"recipe": recipe_page, "cli": cli_page}[sys.argv[1]]())
