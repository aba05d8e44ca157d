"""The verbs `export`, `convert` and `push`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from lora_studio.cli.options import (
    Dtype,
    Force,
    Json,
    LoraPath,
    SkipUnknown,
    argument,
    flag,
    print_json,
    show,
    value,
)
from lora_studio.console import console, errors
from lora_studio.errors import RecipeError
from lora_studio.quiet import paused_collector

if TYPE_CHECKING:
    from lora_studio.training.events import Event

KOHYA = "kohya (or comfyui, a1111, forge)"
TARGETS = f"{KOHYA}, diffusers, comfy, sd_scripts, native, embedding, a1111_bundle, merged or checkpoint"


def export(
    run: Annotated[Path, argument("RUN", "a run's folder, finished or not")],
    to: Annotated[
        list[str] | None, value("NAME", f"{TARGETS}; can be repeated; default: kohya", "--to")
    ] = None,
    checkpoint: Annotated[
        str,
        value(
            "STEP", "of this step, or best, by best.json or else the validation images; default: its file's"
        ),
    ] = "",
    dtype: Annotated[
        str | None, value("DTYPE", "float16, bfloat16 or float32; default: as the recipe says")
    ] = None,
    out: Annotated[
        Path | None,
        value("DIR", "the folder to write into; default: exports/step_<number> of the run", "-o", "--out"),
    ] = None,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Write a run's checkpoint in other formats, verified: exit 0, 1 if one is invalid, 2 for a mistake."""
    from lora_studio.console.tools import print_exported
    from lora_studio.training.events import Note
    from lora_studio.training.finish.export import ExportRequest, export_run

    def tell(event: Event) -> None:
        if isinstance(event, Note):
            errors.say(event.text)

    request = ExportRequest(tuple(to or ["kohya"]), step_named(checkpoint), dtype, out, force)
    found = export_run(run, request, on_event=tell)
    if as_json:
        print_json([one.to_json() for one in found])
    else:
        print_exported(found, console)


def step_named(text: str) -> int | Literal["best", "newest"] | None:
    """Raises RecipeError for what is neither a step, "best" nor "newest"."""
    if not text:
        return None
    if text == "best":
        return "best"
    if text in ("newest", "last"):
        return "newest"
    if not text.isdecimal():
        raise RecipeError(f"--checkpoint is {text!r}; it must be a step, such as 300, best or newest.")
    return int(text)


@paused_collector()
def convert(
    file: LoraPath,
    to: Annotated[str, value("NAME", f"{KOHYA}, diffusers, comfy or sd_scripts", "--to")],
    out: Annotated[
        Path | None, value("FILE", "the file to write; default: <name>_<to> beside it", "-o", "--out")
    ] = None,
    base: Annotated[
        str | None, value("BASE", "the base it is for, which DoRA and OFT need: as in verify")
    ] = None,
    dtype: Dtype = "float16",
    force: Force = False,
    skip_unknown: SkipUnknown = False,
    as_json: Json = False,
) -> None:
    """Write a finished LoRA file in another spelling, and of another kind as plain LoRA."""
    from lora_studio.console.tools import print_converted
    from lora_studio.tools.convert import convert as write

    converted = write(file, to, out=out, base=base, dtype=dtype, force=force, skip_unknown=skip_unknown)
    show(converted, print_converted, as_json=as_json)


def push(
    target: Annotated[Path, argument("RUN|FILE", "a finished run's folder, or a LoRA file")],
    repo: Annotated[str, argument("REPO", "user/name of a repository on the Hugging Face hub")],
    public: Annotated[bool, flag("--public", "make the repository public")] = False,
    dry_run: Annotated[bool, flag("--dry-run", "only list what would be uploaded")] = False,
    as_json: Json = False,
) -> None:
    """Upload a file with its card and images, privately; the token comes from HF_TOKEN alone."""
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
        print_json({"repo": repo, "public": public, "files": files, "address": address})
    elif address:
        console.say(f"done         {address}")
