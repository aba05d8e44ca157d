"""docs/reference/cli.md, from the commands themselves: `python -m lora_studio.cli.reference > FILE`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

from typer.core import TyperArgument, TyperCommand, TyperGroup, TyperOption
from typer.main import get_command

from lora_studio.cli import GROUPS, app

if TYPE_CHECKING:
    from typer._click import Context

INTRODUCTION = """\
# Command line

`python -m lora_studio.cli.reference > docs/reference/cli.md` writes this page from the commands' help.

`lora-studio COMMAND --help` shows the same; `lora-studio --install-completion` lets your shell
complete commands and options. Exit codes: 0 for success; 1 for an invalid result, such as a file that fails
verification, a run that diverged or an error of the doctor; 2 for a mistake in the call or the recipe;
130 after Ctrl-C.
"""


def reference() -> str:
    """The page, Markdown: every visible command in its group, with arguments, options and defaults."""
    root = get_command(app)
    assert isinstance(root, TyperGroup)
    lines = [INTRODUCTION]
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
    sys.stdout.write(reference())
