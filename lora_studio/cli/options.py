"""Options that several verbs have in common."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Out = Annotated[Path, typer.Option("-o", "--out", help="what is written")]
Force = Annotated[bool, typer.Option("--force", help="replace a file that is there already")]
Json = Annotated[bool, typer.Option("--json", help="print the report as JSON")]
Dtype = Annotated[str, typer.Option(help="float16, bfloat16 or float32")]
Rank = Annotated[int | None, typer.Option(min=1, help="the most ranks that a layer has")]
Energy = Annotated[
    float | None, typer.Option(help="instead: as few ranks as have this share of a layer's energy, e.g. 0.99")
]
FILES = "FILE[:STRENGTH]..."
