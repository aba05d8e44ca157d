"""The verbs on finished files: `inspect`, `verify`, `metadata` and `sidecars`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lora_studio.cli.options import BASES, Force, Json, LoraPath, argument, flag, print_json, show, value
from lora_studio.console import console
from lora_studio.errors import StudioError
from lora_studio.files import check_ending


def inspect(
    target: Annotated[Path, argument("FILE|FOLDER", "a .safetensors file, or a folder of them")],
    as_json: Json = False,
    out: Annotated[
        Path | None, value("FILE", "file: plot the norms of its layers into this PNG", "-o", "--out")
    ] = None,
    force: Force = False,
) -> None:
    """Show a LoRA file's base, kind, rank, alpha, norms, triggers and hashes, and how UIs load it."""
    from lora_studio.console.inspect import print_facts, print_folder
    from lora_studio.tools.inspect import inspect_file, inspect_folder

    if out is not None and (target.is_dir() or (out.exists() and not force)):
        fault = "--out is for one file, not a folder" if target.is_dir() else f"{out} is there already"
        raise StudioError(f"{fault}; {'leave it out' if target.is_dir() else 'choose another, or --force'}.")
    if out is not None:
        check_ending(out, ".png")
    if target.is_dir():
        found = inspect_folder(target)
        if as_json:
            print_json([one.to_json() for one in found])
        else:
            print_folder(found, console)
        return
    facts = inspect_file(target)
    if out is not None:
        _draw(out, facts.norms, facts.file)
    show(facts, print_facts, as_json=as_json)
    if out is not None and not as_json:
        console.say()
        console.say(f"plot         {out}")


def verify(
    file: LoraPath,
    base: Annotated[str | None, value("BASE", f"{BASES}; default: the one that the file names")] = None,
    as_json: Json = False,
    provenance: Annotated[
        bool, flag("--provenance", "instead: was it made from the images in these folders?")
    ] = False,
    places: Annotated[
        list[Path] | None, argument("RUN|FOLDER", "for --provenance: a run's folder, or images")
    ] = None,
) -> None:
    """Check a LoRA file: exit 0 if it is valid, 1 if it is invalid, 2 for a mistake in the call."""
    if provenance or places:
        check_origin(file, places or [], provenance=provenance, as_json=as_json)
        return
    from lora_studio.console.inspect import print_report
    from lora_studio.verify import verify as check

    report = check(file, base=base)
    show(report, print_report, as_json=as_json)
    if not report.ok:
        raise typer.Exit(1)


def _draw(out: Path, norms: dict[str, float | None], title: str) -> None:
    from lora_studio.files import say_unwritable, write_atomically
    from lora_studio.tools.plots import norm_plot

    if not norms:
        raise StudioError(f"{title} has no LoRA layers, so there is nothing to plot; leave out --out.")
    with say_unwritable(out):
        write_atomically(out, norm_plot(norms, title))


def metadata(
    file: LoraPath,
    changes: Annotated[
        list[str] | None, value("KEY=VALUE", "e.g. modelspec.title=Woodcut; KEY= takes it out", "--set")
    ] = None,
    evaluation: Annotated[
        Path | None, value("RUN|FILE", "write the figures of its evaluation into it", "--evaluation")
    ] = None,
    strip: Annotated[bool, flag("--strip", "take out all but what UIs need")] = False,
    out: Annotated[Path | None, value("FILE", "the file to write", "-o", "--out")] = None,
    in_place: Annotated[bool, flag("--in-place", "change the file itself")] = False,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Show what a file says about itself, or change it without touching the tensors."""
    from lora_studio.console.inspect import print_metadata
    from lora_studio.metadata.edit import edit, parse_changes
    from lora_studio.tensor_file.header import read_header, tensor_hash

    target = _target(file, out, in_place=in_place, force=force)
    wanted = parse_changes(tuple(changes or ()))
    if evaluation is not None:
        wanted |= _evaluated(evaluation)
    if target is None and (wanted or strip):
        what = "--set, --evaluation and --strip write a file"
        raise StudioError(f"{what}: name it with -o, or change it with --in-place.")
    before = None
    if target is not None:
        before = read_header(file).metadata
        edit(file, target, wanted, strip=strip)
    shown = target or file
    header = read_header(shown)
    whole = tensor_hash(header.block())
    if as_json:
        print_json({"file": str(shown), "metadata": header.metadata, "tensor_hash": whole})
    else:
        print_metadata(shown, header.metadata, whole, console, before=before)


def _evaluated(target: Path) -> dict[str, str]:
    from lora_studio.evaluate.saved import saved_evaluation
    from lora_studio.metadata.evaluated import evaluation_keys

    return evaluation_keys(saved_evaluation(target))


def _target(file: Path, out: Path | None, *, in_place: bool, force: bool) -> Path | None:
    if out is not None and in_place:
        raise StudioError("-o and --in-place are both there; keep one of them.")
    if out is not None and out.is_dir():
        raise StudioError(f"{out} is a folder; name the file to write with -o.")
    if out is not None:
        check_ending(out, ".safetensors")
    if out is not None and out.exists() and out.resolve() == file.resolve():
        raise StudioError(f"{out} is the file itself; to change that, say --in-place instead of -o.")
    if out is not None and out.exists() and not force:
        raise StudioError(f"{out} is there already; take another name, or --force to write over it.")
    return file if in_place else out


def sidecars(
    target: Annotated[Path, argument("RUN|FILE", "a finished run's folder, or a LoRA file")],
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Write what UIs show beside a LoRA: an image, its facts, and a model card."""
    from lora_studio.metadata.sidecars import write_sidecars

    written = write_sidecars(target, overwrite=force)
    if as_json:
        print_json({"written": [str(path) for path in written]})
        return
    for path in written:
        console.say(f"written      {path}")
    if target.is_dir() and not any(path.suffix == ".png" for path in written):
        console.say("no image: the run kept no previews; set samples.prompts in its recipe")
    if target.is_file() and not target.with_suffix(".png").is_file():
        console.say(f"no image: put one beside it, called {target.with_suffix('.png').name}")


def check_origin(file: Path, places: list[Path], *, provenance: bool, as_json: bool) -> None:
    """`verify --provenance`: exit 0 if the file was made from what is there, 1 if not."""
    from lora_studio.console.inspect import print_origin
    from lora_studio.metadata.provenance import check_provenance

    if not provenance:
        raise StudioError(f"{places[0]} is for --provenance only; verify looks at one file.")
    origin = check_provenance(file, places)
    show(origin, print_origin, as_json=as_json)
    if not origin.proven:
        raise typer.Exit(1)
