"""The verb `push`: it parses and prints."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from lora_studio.quiet import quiet_libraries

console = Console(highlight=False)


def push(
    target: Annotated[
        Path, typer.Argument(metavar="RUN|FILE", help="a finished run's folder, or a LoRA file")
    ],
    repo: Annotated[str, typer.Argument(help="user/name of a repository on the Hugging Face hub")],
    public: Annotated[bool, typer.Option("--public", help="everybody may see it")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="only list what would be uploaded")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="print the list and the address as JSON")] = False,
) -> None:
    """Upload a file with its card and pictures, privately; the token comes from HF_TOKEN alone."""
    quiet_libraries()
    from lora_studio.compose.push import push as upload
    from lora_studio.compose.push import token_from_environment, uploads_of
    from lora_studio.printing_metadata import print_uploads

    uploads = uploads_of(target)
    token = "" if dry_run else token_from_environment()
    if not as_json:
        print_uploads(uploads, repo, console, public=public, dry_run=dry_run)
    address = "" if dry_run else upload(repo, uploads, public=public, token=token)
    if as_json:
        files = {one.name: one.num_bytes for one in uploads}
        console.print_json(json.dumps({"repo": repo, "public": public, "files": files, "address": address}))
    elif address:
        console.print(f"done         {address}", markup=False, soft_wrap=True)
