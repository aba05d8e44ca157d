"""Finished LoRA files opened to be computed with: as plain LoRA, layer by layer, never whole in memory.

And whether they fit each other or a base, and the base that they are merged into.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from lora_studio.errors import RecipeError, StudioError, preview_names
from lora_studio.families.layer_names import DENOISER_TITLE, reads_text
from lora_studio.files import digest
from lora_studio.lora_file.lora_file import LoraFile, base_layers, open_lora, refuse_part
from lora_studio.text import be, plural

if TYPE_CHECKING:
    from torch import Tensor, nn

    from lora_studio.families.base import ModelFamily


def open_together(paths: Sequence[Path], *, skip_unknown: bool = False) -> list[LoraFile]:
    """Several as `open_plain`; of files that do not tell their base's kind it is taken to be the others'."""
    files = [open_plain(path, skip_unknown=skip_unknown, beside=paths) for path in paths]
    told = [file.layout for file in files if file.layout is not None]
    layout = told[0] if told and all(one == told[0] for one in told) else None
    return [file if file.layout else file.in_one_spelling(layout) for file in files]


def open_plain(path: Path, *, skip_unknown: bool = False, beside: Collection[Path] = ()) -> LoraFile:
    """Open a LoRA file of any kind in any spelling, with the names that UIs know.

    Raises StudioError if it is missing or damaged, holds what is not known, one layer twice with different
    contents, depends on its base's weights, or is one of several whose others are not `beside` it.
    """
    file = open_lora(path)
    refuse_part(file, beside)
    if file.stray:
        from lora_studio.lora_file.convertible import read_any

        file = read_any(path, skip_unknown=skip_unknown)
    elif file.transformer is not None:
        file = _single_layers(file, skip_unknown=skip_unknown)
    else:
        file = (without_extras(file) if skip_unknown else file).in_one_spelling()
    alphas = {name: one for name, one in file.layers.items() if "alpha" in one.entries}
    faults = {name: found[0] for name, one in file.layers.items() if (found := one.faults())}
    wrong = [name for name, one in alphas.items() if one.alpha is None or not math.isfinite(one.alpha)]
    if faults and [*faults] != wrong:
        names, (fault, *_) = preview_names(faults), faults.values()
        raise StudioError(
            f"{path.name} is not a complete LoRA file: {len(faults)} of {plural(len(file.layers), 'layer')} "
            f"without a tensor, or with tensors that do not fit together: {names} ({fault}); "
            "`lora-studio verify` says more."
        )
    if not file.layers:
        raise StudioError(f"{path.name} holds no layer of a LoRA; `lora-studio verify` says more.")
    if file.extras:
        what = f"{plural(len(file.extras), 'tensor')} of no layer: {preview_names(file.extras)}"
        raise StudioError(f"{path.name} holds {what}; --skip-unknown leaves them out.")
    if wrong:
        what = f"alpha of {preview_names(wrong)} is not one number"
        raise StudioError(f"{path.name}: {what}; the file is damaged.")
    if off := [name for name, one in alphas.items() if one.alpha == 0]:
        raise StudioError(
            f"{path.name}: alpha is 0 in {plural(len(off), 'layer')}, first {off[0]}; most UIs take that as "
            "switched off and kohya as the rank, so its meaning cannot be known. Export the file again with "
            "one."
        )
    return file


def _single_layers(file: LoraFile, *, skip_unknown: bool = False) -> LoraFile:
    """A transformer family's plain LoRA, each layer by itself and with the alpha that the file says apart."""
    from lora_studio.lora_file.convertible import read_places

    found = read_places(file.path, skip_unknown=skip_unknown)
    return replace(found.file, layers={one.name: one for one in found.layers.values()})


def without_extras(file: LoraFile) -> LoraFile:
    """It without the tensors that are of no layer, which is said."""
    what = f"{plural(len(file.extras), 'tensor')} of no layer: {preview_names(file.extras)}"
    said = (f"{file.name} is taken without {what}",) if file.extras else ()
    return replace(file, extras=[], said=(*file.said, *said))


def read_plain(path: Path, option: str) -> LoraFile:
    """A file of plain LoRA in the kohya format; `option` is where the recipe names it.

    Raises RecipeError if it is missing, damaged, or something else.
    """
    if path.is_dir():
        raise RecipeError(
            f"{option} is {path}, a folder; give a LoRA .safetensors file. A run is continued with --resume."
        )
    if not path.is_file():
        raise RecipeError(f"{option} is {path}, but there is no such file; give a LoRA .safetensors file.")
    file = open_lora(path)
    if file.shard:
        raise RecipeError(f"{option}: {path.name} is {file.shard}; give the whole LoRA as one file.")
    if file.stray:
        raise RecipeError(f"{option}: {path.name} {_what_else(file)}.")
    invalid = [
        name for name, one in file.layers.items() if one.faults(any_dtype=True) or one.state == "not finite"
    ] + file.extras
    if invalid or not file.layers:
        raise RecipeError(
            f"{option}: {path.name} is not a complete LoRA file: {len(invalid)} of "
            f"{plural(len(file.layers), 'layer')} without a tensor, with tensors that do not fit together, "
            "or not finite"
            f"{': ' + preview_names(invalid) if invalid else ''}; `lora-studio verify` says more."
        )
    try:
        return in_base_names(file)
    except StudioError as error:
        raise RecipeError(f"{option}: {error}") from None


def in_base_names(file: LoraFile) -> LoraFile:
    """A file in any spelling with its layers named as `base_layers` names a base's. Raises StudioError."""
    return file.in_one_spelling() if file.transformer is None else _single_layers(file)


def _what_else(file: LoraFile) -> str:
    if all(key.endswith((".down", ".up")) for key in file.stray):  # as a checkpoint's tensors
        return "is the checkpoint of a run; continue that run with --resume, or give the file it ended with"
    return (
        f"is not plain LoRA: {plural(len(file.stray), 'tensor')} of another kind, first {file.stray[0]}; "
        "give a file of lora_down, lora_up and alpha, as every run of a LoRA Studio adapter ends with"
    )


def fits(one: Sequence[int], other: Sequence[int]) -> bool:
    """Whether two shapes are of a weight of one size; their dimensions do not matter, nor do they to UIs."""
    return one[0] == other[0] and math.prod(one[1:]) == math.prod(other[1:])


def check_same_family(files: Sequence[LoraFile]) -> list[str]:
    """Refuse files of different kinds of bases; notes on what is to be known of them, and what differs.

    Told by what they say themselves, by the shape of layers that both have, and by the width of the text that
    cross-attention reads. Raises StudioError that names both.
    """
    notes = [note for file in files for note in file.notes]
    first = files[0]
    for other in files[1:]:
        titles = [file.transformer.title if file.transformer else "" for file in (first, other)]
        if first.transformer is not other.transformer and not _is_alike(first, other):
            what = [f"one of {title}" if title else f"a {DENOISER_TITLE}'s" for title in titles]
            raise _stranger(first, other, f"the layers are {what[0]} in one and {what[1]} in the other")
        shared = first.layers.keys() & other.layers.keys()
        for name in shared:
            one, two = first.layers[name].shape, other.layers[name].shape
            if not fits(one, two):
                why = f"{name} changes a weight of {one} in one and {two} in the other"
                raise _stranger(first, other, why)
        widths = [
            {one.shape[1] for name, one in file.layers.items() if reads_text(name)} for file in (first, other)
        ]
        if all(widths) and widths[0] != widths[1]:
            said = " and ".join(", ".join(map(str, sorted(width))) for width in widths)
            raise _stranger(first, other, f"their cross-attention reads text {said} wide")
        if first.version and other.version and first.version != other.version:
            if not shared:
                raise _stranger(first, other, "they have no layer in common")
            notes.append(
                f"{first.name} says it is for {first.version} and {other.name} for {other.version}; the "
                f"shapes fit in {plural(len(shared), 'shared layer')}, but what they learned may not"
            )
        elif not shared:
            notes.append(f"{first.name} and {other.name} have no layer in common")
    return notes


def _is_alike(one: LoraFile, other: LoraFile) -> bool:
    """Whether their families share the names and sizes of their layers."""
    layouts = (one.transformer, other.transformer)
    return None not in layouts and layouts[0].layers == layouts[1].layers  # type: ignore[union-attr]


def _stranger(one: LoraFile, other: LoraFile, why: str) -> StudioError:
    named = [f"{file.name} ({file.version or 'which names no base'})" for file in (one, other)]
    return StudioError(
        f"{named[0]} and {named[1]} are for different kinds of bases: {why}. Only files for one kind can be "
        "put together."
    )


def unknown_layers(file: LoraFile, known: Collection[str]) -> str:
    """What is wrong if some of its layers are not in the base at all; empty if they are."""
    if unknown := [name for name in file.layers if name not in known]:
        count = f"{len(unknown)} of {plural(len(file.layers), 'layer')} of {file.name}"
        return f"{count} {be(len(unknown))} not in this base, first {unknown[0]}; {_another_kind(file)}"
    return ""


def unfit_layers(file: LoraFile, shapes: Mapping[str, Sequence[int]]) -> str:
    """What is wrong if some of its layers have another size than the base's of that name; else empty."""
    for name, layer in file.layers.items():
        if name in shapes and not fits(layer.shape, shapes[name]):
            return (
                f"{name} of {file.name} changes a weight of {layer.shape}, but this base has one of "
                f"{tuple(shapes[name])}; {_another_kind(file)}"
            )
    return ""


def _another_kind(file: LoraFile) -> str:
    said = f" (it says that it is for {file.version})" if file.version else ""
    return f"it is for another kind of base{said}."


@dataclass(frozen=True)
class Merged:
    file: Path
    strength: float


def merge_plain(family: ModelFamily, wanted: Sequence[Merged]) -> tuple[str, ...]:
    """Add the files' changes to the weights of a base, in float32 before they are cast; what was done.

    Raises RecipeError for a file that is not plain LoRA of this base.
    """
    layers, said, merged = base_layers(family), [], dict[str, dict[str, None]]()
    places = _places(family)
    for number, one in enumerate(wanted):
        option = f"base.loras[{number}].file"
        file = read_plain(one.file, option)
        shapes = {name: layer.weight.shape for name, layer in layers.items()}
        if fault := unknown_layers(file, layers) or unfit_layers(file, shapes):
            raise RecipeError(f"{option}: {fault}")
        changed, mark = 0, f"{digest(one.file)} x {one.strength!r}"
        for name in file.layers:
            changed += bool(file.delta(name).any())
            part, path = places[layers[name]]
            if part in family.sources:
                change = partial(_add, file, name, one.strength)
                family.sources[part] = family.sources[part].changed(f"{path}.weight", change, mark)
                merged.setdefault(part, {})[f"{path}.weight"] = None
        said.append(
            f"{one.file.name} is merged into it with a strength of {one.strength:g}: "
            f"{plural(changed, 'layer')} {be(changed)} changed, and what is trained needs it to be there"
        )
    for part, keys in merged.items():
        family.sources[part] = family.sources[part].merged(family.parts[part], list(keys))
    return tuple(said)


def _add(file: LoraFile, name: str, strength: float, weight: Tensor) -> Tensor:
    return weight.add(file.delta(name).view(weight.shape), alpha=strength)


def _places(family: ModelFamily) -> dict[nn.Module, tuple[str, str]]:
    """Module -> its part, and its path there."""
    return {
        module: (part, path) for part, one in family.parts.items() for path, module in one.named_modules()
    }
