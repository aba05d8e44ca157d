"""The verb `export`: it parses and prints."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lora_studio.console.screen import console, errors
from lora_studio.quiet import quiet_libraries

if TYPE_CHECKING:
    from lora_studio.training.events import Event


def export(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="a run's folder, finished or not")],
    to: Annotated[
        list[str],
        typer.Option(
            "--to",
            metavar="NAME",
            help="kohya, diffusers, native, embedding, a1111_bundle, merged or checkpoint; can be repeated",
        ),
    ],
    checkpoint: Annotated[
        int | None, typer.Option(metavar="STEP", help="of this step; default: the newest")
    ] = None,
    dtype: Annotated[
        str | None, typer.Option(help="float16, bfloat16 or float32; default: as the recipe says")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="the folder to write into; default: exports/step_<number> of the run")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="replace files that are there already")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="print what was written as JSON")] = False,
) -> None:
    """Write a run's checkpoint in other forms, verified: exit 0, 1 if one is faulty, 2 for a mistake."""
    quiet_libraries()
    from lora_studio.training.events import Note
    from lora_studio.training.finish.export import ExportRequest, export_run

    def tell(event: Event) -> None:
        if isinstance(event, Note):
            errors.say(event.text)

    wishes = ExportRequest(tuple(to), checkpoint, dtype, out, force)
    found = export_run(run, wishes, on_event=tell)
    if as_json:
        console.print_json(json.dumps([one.to_json() for one in found]))
        return
    from lora_studio.console.tools import print_exported

    print_exported(found, console)


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
    from lora_studio.tools.convert import convert as write

    converted = write(file, to, out=out, base=base, dtype=dtype, force=force)
    if as_json:
        console.print_json(json.dumps(converted.to_json()))
        return
    from lora_studio.console.tools import print_converted

    print_converted(converted, console)


def push(
    target: Annotated[
        Path, typer.Argument(metavar="RUN|FILE", help="a finished run's folder, or a LoRA file")
    ],
    repo: Annotated[str, typer.Argument(help="user/name of a repository on the Hugging Face hub")],
    public: Annotated[bool, typer.Option("--public", help="everybody may see it")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="only list what would be uploaded")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="print the list and the address as JSON")] = False,
) -> None:
    """Upload a file with its card and images, privately; the token comes from HF_TOKEN alone."""
    quiet_libraries()
    from lora_studio.console.inspect import print_uploads
    from lora_studio.tools.push import push as upload
    from lora_studio.tools.push import token_from_environment, uploads_of

    uploads = uploads_of(target)
    token = "" if dry_run else token_from_environment()
    if not as_json:
        print_uploads(uploads, repo, console, public=public, dry_run=dry_run)
    address = "" if dry_run else upload(repo, uploads, public=public, token=token)
    if as_json:
        files = {one.name: one.num_bytes for one in uploads}
        console.print_json(json.dumps({"repo": repo, "public": public, "files": files, "address": address}))
    elif address:
        console.say(f"done         {address}")
