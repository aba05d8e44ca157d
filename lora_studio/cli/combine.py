"""The verbs `combine`, `resize` and `compare`, on finished LoRA files: they parse and print."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lora_studio.cli.options import FILES, Dtype, Energy, Force, Json, Out, Rank
from lora_studio.console.screen import console
from lora_studio.errors import StudioError
from lora_studio.quiet import quiet_libraries

if TYPE_CHECKING:
    from lora_studio.lora_file.factors import RankLimit
    from lora_studio.tools.combine import BlockWeight, Term


def combine(
    files: Annotated[list[str], typer.Argument(metavar=FILES, help="LoRA files, e.g. a.safetensors:0.8")],
    out: Out,
    method: Annotated[str, typer.Option(help="concat, svd, ties, dare or project")] = "concat",
    rank: Rank = None,
    energy: Energy = None,
    density: Annotated[float | None, typer.Option(help="ties, dare: the share of entries kept")] = None,
    seed: Annotated[int, typer.Option(help="dare: of what is dropped")] = 0,
    blocks: Annotated[
        list[str],
        typer.Option(metavar="[N:]PATTERN=WEIGHT", help="more or less of some layers, of file N or of all"),
    ] = [],  # noqa: B006 - typer reads the default, nobody changes it
    dtype: Dtype = "float16",
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Make one LoRA file of several: concat is their exact sum, project keeps the first one untouched."""
    quiet_libraries()
    from lora_studio.tools.combine import check_wishes, combine
    from lora_studio.tools.methods import MergeOptions
    from lora_studio.tools.result import check_output

    wishes = MergeOptions(cut_of(rank, energy), density, seed)
    check_wishes(method, wishes)
    weights = [block_weight(text) for text in blocks]
    terms = terms_of(files, least=2)
    check_output(out, force=force, inputs=[term.file.path for term in terms])
    report = combine(terms, out, method=method, wishes=wishes, blocks=weights, dtype=dtype)
    if as_json:
        console.print_json(json.dumps(report.to_json()))
        return
    from lora_studio.console.tools import print_combined

    print_combined(report, out, console)


def resize(
    file: Annotated[Path, typer.Argument(help="a LoRA file")],
    out: Out,
    rank: Rank = None,
    energy: Energy = None,
    dtype: Dtype = "float16",
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Make a LoRA file smaller: the nearest one of a lower rank, by an exact SVD of each layer."""
    quiet_libraries()
    from lora_studio.lora_file.open import open_plain
    from lora_studio.tools.resize import resize
    from lora_studio.tools.result import check_output

    cut = needed(cut_of(rank, energy))
    check_output(out, force=force, inputs=[file])
    report = resize(open_plain(file), out, cut, dtype=dtype)
    if as_json:
        console.print_json(json.dumps(report.to_json()))
        return
    from lora_studio.console.tools import print_resized

    print_resized(report, out, console)


def compare(
    files: Annotated[list[str], typer.Argument(metavar=FILES, help="two LoRA files")],
    out: Annotated[Path | None, typer.Option("-o", "--out", help="write a heat map, a PNG")] = None,
    base: Annotated[
        str, typer.Option(help='draw images with it: "pocket", a diffusers folder, a file or a hub id')
    ] = "",
    images: Annotated[Path, typer.Option(help="with --base: the sheet of images")] = Path("compare.png"),
    prompt: Annotated[
        list[str], typer.Option(help="with --base: what is drawn; default: the files' triggers")
    ] = [],  # noqa: B006 - typer reads the default, nobody changes it
    seed: Annotated[int, typer.Option(help="with --base: of the noise")] = 0,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Say whether two LoRA files go together: combine, compete, or one dominates."""
    quiet_libraries()
    from lora_studio.files import write_atomically
    from lora_studio.tools.compare import compare
    from lora_studio.tools.result import check_output

    terms = terms_of(files, least=2)
    if len(terms) > 2:
        raise StudioError(f"compare takes two files, not {len(files)}.")
    written = [path for path in (out, images if base else None) if path is not None]
    for path in written:
        check_output(path, force=force, inputs=[term.file.path for term in terms])
    comparison = compare(*terms)
    if out is not None:
        from lora_studio.tools.plots import heat_map

        write_atomically(out, heat_map(comparison))
    if base:
        from lora_studio.evaluate.previews import as_png
        from lora_studio.tools.compare_images import compare_images, prompts_for

        prompts = prompt or prompts_for(terms)
        write_atomically(images, as_png(compare_images(base, terms, prompts, seed=seed)))
    if as_json:
        console.print_json(json.dumps(comparison.to_json()))
        return
    from lora_studio.console.tools import print_comparison

    print_comparison(comparison, written, console)


def terms_of(files: list[str], *, least: int = 1) -> list[Term]:
    """The opened files with their strengths, 1 where none is said."""
    from lora_studio.lora_file.open import open_plain
    from lora_studio.tools.combine import Term

    if len(files) < least:
        raise StudioError(f"give at least {least} files, not {len(files)}.")
    pairs = [file_and_strength(text) for text in files]
    return [Term(open_plain(path), strength) for path, strength in pairs]


def file_and_strength(text: str) -> tuple[Path, float]:
    """ "a.safetensors:0.8" as its path and number; a file that has such a name itself is that file."""
    path, colon, said = text.rpartition(":")
    if not colon or Path(text).is_file():
        return Path(text), 1.0
    try:
        strength = float(said)
    except ValueError:
        if Path(path).is_file():
            raise StudioError(f"{text}: the strength {said!r} is not a number, such as 0.8.") from None
        return Path(text), 1.0
    if not 0 < abs(strength) <= 100:
        raise StudioError(f"{text}: the strength must be between -100 and 100 and not 0; leave the file out.")
    return Path(path), strength


def block_weight(text: str) -> BlockWeight:
    """ "2:*_to_v=0.5" as what it says."""
    from lora_studio.tools.combine import BlockWeight

    pattern, equals, said = text.rpartition("=")
    number, colon, rest = pattern.partition(":")
    try:
        weight, chosen = float(said), int(number) if colon else None
    except ValueError:
        equals = ""
    if not equals or not pattern or not abs(weight) <= 100:
        raise StudioError(
            f"--blocks is {text!r}; it must be PATTERN=WEIGHT, or N:PATTERN=WEIGHT for file N, such as "
            "2:*_to_v=0.5."
        )
    return BlockWeight(rest if colon else pattern, weight, chosen)


def cut_of(rank: int | None, energy: float | None) -> RankLimit | None:
    """What --rank and --energy say together; None if nothing."""
    from lora_studio.lora_file.factors import RankLimit

    if rank is not None and energy is not None:
        raise StudioError("give --rank or --energy, not both.")
    if energy is not None and not 0 < energy <= 1:
        raise StudioError(f"--energy is {energy:g}; it must be above 0 and at most 1, e.g. 0.99.")
    return None if rank is None and energy is None else RankLimit(rank, energy)


def needed(cut: RankLimit | None) -> RankLimit:
    """Raise StudioError if nothing is said of how much is kept."""
    if cut is None:
        raise StudioError("say how much is kept: --rank 16, or --energy 0.99.")
    return cut
