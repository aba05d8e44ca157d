"""Whether a LoRA file's layers fit a base, or each other; and a file merged into the base that it fits."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lora_studio.errors import RecipeError, preview_names
from lora_studio.lora_file.lora_file import LoraFile, open_lora

if TYPE_CHECKING:
    from torch import nn

    from lora_studio.families.base import ModelFamily

_OWN = (".down", ".up")  # tensors of a checkpoint


def fits(one: Sequence[int], other: Sequence[int]) -> bool:
    """Whether two shapes are of a weight of one size; their dimensions do not matter, nor do they to UIs."""
    return one[0] == other[0] and math.prod(one[1:]) == math.prod(other[1:])


def base_layers(family: ModelFamily) -> dict[str, nn.Linear | nn.Conv2d]:
    """UI name -> layer, for every linear layer and convolution of the base that a LoRA file can name."""
    from torch import nn

    found: dict[str, nn.Linear | nn.Conv2d] = {}
    for part in family.targets:
        for path, module in family.parts[part].named_modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                found[family.ui_name(part, family.canonical_path(part, path))] = module
    return found


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
    if file.stray:
        raise RecipeError(f"{option}: {path.name} {_what_else(file)}.")
    faulty = [
        name for name, one in file.layers.items() if one.faults(any_dtype=True) or not one.numbers.finite
    ] + file.extras
    if faulty or not file.layers:
        raise RecipeError(
            f"{option}: {path.name} is not a whole LoRA file: {len(faulty)} of {len(file.layers)} layers "
            "lack a tensor, do not fit together or are not finite"
            f"{': ' + preview_names(faulty) if faulty else ''}; `lora-studio verify` says more."
        )
    return file


def _what_else(file: LoraFile) -> str:
    if all(key.endswith(_OWN) for key in file.stray):
        return "is the checkpoint of a run; continue that run with --resume, or give the file it ended with"
    return (
        f"is not plain LoRA: {len(file.stray)} of its tensors are of another kind, first {file.stray[0]}; "
        "give a file of lora_down, lora_up and alpha, as every run of a LoRA Studio adapter ends with"
    )


def unknown_layers(file: LoraFile, known: Collection[str]) -> str:
    """What is wrong if some of its layers are not in the base at all; empty if they are."""
    unknown = [name for name in file.layers if name not in known]
    if not unknown:
        return ""
    return (
        f"{len(unknown)} of the {len(file.layers)} layers of {file.name} are not in this base, first "
        f"{unknown[0]}; {_another_kind(file)}"
    )


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
    """A file to be merged into a base, and how strongly."""

    file: Path
    strength: float


def merge_plain(family: ModelFamily, wanted: Sequence[Merged]) -> tuple[str, ...]:
    """Add the files' changes to the float32 weights of a base; what was done, in sentences.

    Raises RecipeError for a file that is not plain LoRA of this base.
    """
    layers, said = base_layers(family), []
    for number, one in enumerate(wanted):
        option = f"base.loras[{number}].file"
        file = read_plain(one.file, option)
        shapes = {name: layer.weight.shape for name, layer in layers.items()}
        if fault := unknown_layers(file, layers) or unfit_layers(file, shapes):
            raise RecipeError(f"{option}: {fault}")
        changed = 0
        for name in file.layers:
            weight, delta = layers[name].weight, file.delta(name)
            changed += bool(delta.any())
            if not weight.is_meta:
                weight.data.add_(delta.view(weight.shape).to(weight), alpha=one.strength)
        family.sources.clear()  # its parts are no longer what their files have
        said.append(
            f"{one.file.name} is merged into it with a strength of {one.strength:g}: {changed} layers are "
            "changed, and what is trained needs it to be there"
        )
    return tuple(said)
