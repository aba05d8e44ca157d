"""The verbs that make LoRA files or bases of others: combine, compare, resize, extract and merge-into."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from lora_studio.cli.options import (
    BASES,
    Dtype,
    Force,
    Json,
    LoraPath,
    Out,
    SkipUnknown,
    argument,
    show,
    value,
)
from lora_studio.console import Bars, errors
from lora_studio.errors import StudioError
from lora_studio.quiet import paused_collector

if TYPE_CHECKING:
    from lora_studio.lora_file.factors import RankLimit
    from lora_studio.tools.combine import BlockWeight, Term

FILES = "FILE[:STRENGTH]"
LoraFiles = Annotated[list[str], argument(FILES, "LoRA files, e.g. a.safetensors:0.8")]
Rank = Annotated[int | None, value("N", "the highest rank of a layer", min=1)]
Energy = Annotated[
    float | None, value("SHARE", "instead: the lowest rank with this share of a layer's energy, e.g. 0.99")
]


@paused_collector()
def combine(
    files: LoraFiles,
    out: Out,
    method: Annotated[str, value("METHOD", "concat, svd, ties, dare or project")] = "concat",
    rank: Rank = None,
    energy: Energy = None,
    density: Annotated[float | None, value("SHARE", "ties, dare: the share of entries kept")] = None,
    seed: Annotated[int, value("N", "dare: seed of what is dropped")] = 0,
    blocks: Annotated[
        list[str] | None, value("[N:]PATTERN=WEIGHT", "more or less of some layers, of file N or of all")
    ] = None,
    dtype: Dtype = "float16",
    force: Force = False,
    skip_unknown: SkipUnknown = False,
    as_json: Json = False,
) -> None:
    """Make one LoRA file of several: concat is their exact sum, project keeps the first one untouched."""
    from lora_studio.console.tools import print_combined
    from lora_studio.tools.combine import check_options, combine
    from lora_studio.tools.methods import MergeOptions
    from lora_studio.tools.result import check_output

    options = MergeOptions(cut_of(rank, energy), density, seed)
    check_options(method, options)
    weights = [block_weight(text) for text in blocks or ()]
    terms = terms_of(files, least=2, skip_unknown=skip_unknown)
    check_output(out, force=force, inputs=[term.file.path for term in terms])
    report = combine(terms, out, method=method, options=options, blocks=weights, dtype=dtype)
    show(report, print_combined, out, as_json=as_json)


@paused_collector()
def resize(
    file: LoraPath,
    out: Out,
    rank: Rank = None,
    energy: Energy = None,
    dtype: Dtype = "float16",
    force: Force = False,
    skip_unknown: SkipUnknown = False,
    as_json: Json = False,
) -> None:
    """Make a LoRA file smaller: the nearest one of a lower rank, by an exact SVD of each layer."""
    from lora_studio.console.tools import print_resized
    from lora_studio.lora_file.open import open_plain
    from lora_studio.tools.combine import resize
    from lora_studio.tools.result import check_output

    cut = needed(cut_of(rank, energy))
    check_output(out, force=force, inputs=[file])
    report = resize(open_plain(file, skip_unknown=skip_unknown), out, cut, dtype=dtype)
    show(report, print_resized, out, as_json=as_json)


def compare(
    files: Annotated[list[str], argument(FILES, "two LoRA files")],
    out: Annotated[Path | None, value("FILE", "write a heat map, a PNG", "-o", "--out")] = None,
    base: Annotated[str, value("BASE", f"draw images with it: {BASES}")] = "",
    images: Annotated[Path, value("FILE", "with --base: the sheet of images")] = Path("compare.png"),
    prompts: Annotated[
        list[str] | None,
        value("PROMPT", "with --base: what is drawn; default: the files' triggers", "--prompt"),
    ] = None,
    seed: Annotated[int, value("N", "with --base: seed of the noise")] = 0,
    force: Force = False,
    skip_unknown: SkipUnknown = False,
    as_json: Json = False,
) -> None:
    """Say whether two LoRA files go together: combine, compete, or one dominates."""
    from lora_studio.console.tools import print_comparison
    from lora_studio.files import write_atomically
    from lora_studio.tools.compare import compare
    from lora_studio.tools.result import check_output

    terms = terms_of(files, least=2, skip_unknown=skip_unknown)
    if len(terms) > 2:
        raise StudioError(f"compare takes two files, not {len(files)}.")
    named = {"-o": out, "--images": images if base else None}
    written = {option: path for option, path in named.items() if path is not None}
    for option, path in written.items():
        read = [term.file.path for term in terms]
        check_output(path, force=force, inputs=read, ending=".png", option=option)
    comparison = compare(*terms)
    if out is not None:
        from lora_studio.tools.plots import heat_map

        write_atomically(out, heat_map(comparison))
    if base:
        from lora_studio.evaluate.previews import as_png
        from lora_studio.tools.compare import compare_images, prompts_for

        drawn = prompts or prompts_for(terms)
        write_atomically(images, as_png(compare_images(base, terms, drawn, seed=seed)))
    show(comparison, print_comparison, list(written.values()), as_json=as_json)


def extract(
    tuned: Annotated[str, argument("TUNED", f"the fine-tuned base: {BASES}")],
    base: Annotated[str, argument("BASE", "the base it was trained from, likewise")],
    out: Out,
    rank: Rank = None,
    energy: Energy = None,
    dtype: Dtype = "float16",
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Make a LoRA file of what a fine-tuned base has learned, and say what of that is not in it."""
    from lora_studio.console.tools import print_extracted
    from lora_studio.lora_file.base_weights import open_weights
    from lora_studio.tools.extract import extract as write
    from lora_studio.tools.result import check_output

    cut = needed(cut_of(rank, energy))
    learned, before = open_weights(tuned), open_weights(base)
    check_output(out, force=force, inputs=[learned.path, before.path])
    with Bars(errors, transient=True) as bars:
        on_tensor = partial(bars.show, "comparing tensors")
        report = write(learned, before, out, cut, dtype=dtype, on_tensor=on_tensor)
    show(report, print_extracted, out, as_json=as_json)


def merge_into(
    base: Annotated[str, argument("BASE", BASES)],
    files: LoraFiles,
    out: Annotated[
        Path, value("PATH", "what to write: a file of a file, a folder of a folder", "-o", "--out")
    ],
    dtype: Annotated[
        str | None, value("DTYPE", "float16, bfloat16 or float32; default: the base's own")
    ] = None,
    force: Force = False,
    skip_unknown: SkipUnknown = False,
    as_json: Json = False,
) -> None:
    """Write a base with LoRA files in its weights, in its own layout; the base stays as it is."""
    from lora_studio.console.tools import print_merged
    from lora_studio.lora_file.base_weights import open_weights
    from lora_studio.tools.merge_into import merge_into
    from lora_studio.tools.result import check_output

    terms = terms_of(files, skip_unknown=skip_unknown)
    weights = open_weights(base)
    read = [weights.path, *(term.file.path for term in terms)]
    check_output(out, force=force, inputs=read, ending=".safetensors" if weights.path.is_file() else "")
    report = merge_into(weights, terms, out, dtype=dtype)
    show(report, print_merged, out, as_json=as_json)


def terms_of(files: list[str], *, least: int = 1, skip_unknown: bool = False) -> list[Term]:
    """The opened files with their strengths, 1 where none is said."""
    from lora_studio.lora_file.open import open_together
    from lora_studio.tools.combine import Term

    if len(files) < least:
        raise StudioError(f"give at least {least} files, not {len(files)}.")
    pairs = [file_and_strength(text) for text in files]
    opened = open_together([path for path, _ in pairs], skip_unknown=skip_unknown)
    return [Term(file, strength) for file, (_, strength) in zip(opened, pairs, strict=True)]


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
