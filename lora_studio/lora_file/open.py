"""Finished LoRA files opened to be computed with: as plain LoRA, layer by layer, never whole in memory."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from lora_studio.errors import StudioError, preview_names
from lora_studio.families.layer_names import reads_text
from lora_studio.lora_file.fit import fits
from lora_studio.lora_file.lora_file import LoraFile, open_lora


def open_plain(path: Path) -> LoraFile:
    """Open a LoRA file of any kind in any spelling; one that is plain LoRA keeps its layers' names.

    Raises StudioError if it is missing or damaged, holds what is not known, or depends on its base's weights.
    """
    file = open_lora(path)
    if file.stray:
        from lora_studio.lora_file.convertible import read_any

        file = read_any(path)
    alphas = {name: one for name, one in file.layers.items() if "alpha" in one.entries}
    faulty = [name for name, one in file.layers.items() if one.faults()] + file.extras
    wrong = [name for name, one in alphas.items() if one.alpha is None or not math.isfinite(one.alpha)]
    if faulty and faulty != wrong:
        count = len(file.layers) + len(file.extras)
        raise StudioError(
            f"{path.name} is not a whole LoRA file: {len(faulty)} of {count} layers lack "
            f"a tensor or do not fit together: {preview_names(faulty)}; `lora-studio verify` says more."
        )
    if not file.layers:
        raise StudioError(f"{path.name} holds no layer of a LoRA; `lora-studio verify` says more.")
    if wrong:
        raise StudioError(
            f"{path.name}: alpha of {preview_names(wrong)} is not one number; the file is damaged."
        )
    if off := [name for name, one in alphas.items() if one.alpha == 0]:
        raise StudioError(
            f"{path.name}: alpha is 0 in {len(off)} layers, first {off[0]}; most UIs take that as switched "
            "off and kohya as the rank, so its meaning cannot be known. Export the file again with an alpha."
        )
    return file


def check_same_family(files: Sequence[LoraFile]) -> list[str]:
    """Refuse files of different kinds of bases; notes on what is to be known of them, and what differs.

    Told by what they say themselves, by the shape of layers that both have, and by the width of the text that
    cross-attention reads. Raises StudioError that names both.
    """
    notes = [note for file in files for note in file.notes]
    first = files[0]
    for other in files[1:]:
        shared = first.layers.keys() & other.layers.keys()
        for name in shared:
            one, two = first.layers[name].shape, other.layers[name].shape
            if not fits(one, two):
                raise _stranger(
                    first, other, f"{name} changes a weight of {one} in one and {two} in the other"
                )
        widths = [_text_widths(file) for file in (first, other)]
        if all(widths) and widths[0] != widths[1]:
            said = " and ".join(", ".join(map(str, sorted(width))) for width in widths)
            raise _stranger(first, other, f"their cross-attention reads text {said} wide")
        if first.version and other.version and first.version != other.version:
            if not shared:
                raise _stranger(first, other, "and they have no layer in common")
            notes.append(
                f"{first.name} says it is for {first.version} and {other.name} for {other.version}; their "
                f"{len(shared)} shared layers fit, but what they learned may not"
            )
        elif not shared:
            notes.append(f"{first.name} and {other.name} have no layer in common")
    return notes


def _text_widths(file: LoraFile) -> set[int]:
    return {one.shape[1] for name, one in file.layers.items() if reads_text(name)}


def _stranger(one: LoraFile, other: LoraFile, why: str) -> StudioError:
    named = [f"{file.name} ({file.version or 'which names no base'})" for file in (one, other)]
    return StudioError(
        f"{named[0]} and {named[1]} are for different kinds of bases: {why}. Only files for one kind can be "
        "put together."
    )
