"""The verb `convert`: it parses and prints."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from lora_studio.quiet import quiet_libraries

console = Console(highlight=False)


def convert(
    file: Annotated[Path, typer.Argument(help="a LoRA .safetensors file from anywhere, in any spelling")],
    to: Annotated[str, typer.Option("--to", metavar="NAME", help="kohya or diffusers")],
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="the file to write; default: <name>_<to> beside it")
    ] = None,
    base: Annotated[
        str | None,
        typer.Option(help="the base it is for, which DoRA and OFT need: as in verify"),
    ] = None,
    dtype: Annotated[str, typer.Option(help="float16, bfloat16 or float32")] = "float16",
    force: Annotated[bool, typer.Option("--force", help="replace a file that is there already")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="print what was written as JSON")] = False,
) -> None:
    """Write a finished LoRA file in another spelling, and of another kind as plain LoRA."""
    quiet_libraries()
    from lora_studio.compose.convert import convert as write

    converted = write(file, to, out=out, base=base, dtype=dtype, force=force)
    if as_json:
        console.print_json(json.dumps(converted.to_json()))
        return
    from lora_studio.printing_export import print_converted

    print_converted(converted, console)
