"""A finished plain LoRA file read to be used: as what a run begins with, or merged into a base."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from lora_studio.data.names import some
from lora_studio.errors import RecipeError
from lora_studio.export.verify import LoraFile, base_layers, open_lora
from lora_studio.families.base import ModelFamily

_OWN = (".down", ".up")  # tensors of a checkpoint


@dataclass(frozen=True)
class Merged:
    """A file to be merged into a base, and how strongly."""

    file: Path
    strength: float


def read_plain(path: Path, option: str) -> LoraFile:
    """A file in the kohya format, with its alphas as plain numbers; `option` is where the recipe names it.

    Raises RecipeError if it is missing, damaged, or something else than plain LoRA.
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
    layers = {name: _complete(tensors) for name, tensors in file.layers.items()}
    faulty = [name for name, tensors in layers.items() if _is_faulty(tensors)]
    if faulty or not layers:
        raise RecipeError(
            f"{option}: {path.name} is not a whole LoRA file: {len(faulty)} of {len(layers)} layers lack a "
            f"tensor, do not fit together or are not finite{': ' + some(faulty) if faulty else ''}; "
            "`lora-studio verify` says more."
        )
    return LoraFile(file.path, layers, [], file.metadata)


def _what_else(file: LoraFile) -> str:
    first = file.stray[0]
    if file.stray and all(key.endswith(_OWN) for key in file.stray):
        return "is the checkpoint of a run; continue that run with --resume, or give the file it ended with"
    return (
        f"is not plain LoRA: {len(file.stray)} of its tensors are of another kind, first {first}; give a "
        "file of lora_down, lora_up and alpha, as every run of a LoRA Studio adapter ends with"
    )


def _complete(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """alpha 0-dimensional and float32; without one it is the rank, as most readers take it."""
    found = dict(tensors)
    down = found.get("lora_down.weight")
    if down is not None and down.ndim:
        alpha = found.get("alpha", torch.tensor(float(down.shape[0])))
        if alpha.numel() == 1:
            found["alpha"] = alpha.float().reshape(())
    return found


def _is_faulty(tensors: Mapping[str, Tensor]) -> bool:
    down, up, alpha = (tensors.get(end) for end in ("lora_down.weight", "lora_up.weight", "alpha"))
    if down is None or up is None or alpha is None or down.ndim not in (2, 4) or up.ndim != down.ndim:
        return True
    is_split = up.shape[1] == down.shape[0] and up.shape[2:].numel() == 1
    return not is_split or alpha.ndim != 0 or not all(one.isfinite().all() for one in tensors.values())


def unknown_layers(file: LoraFile, known: Collection[str], option: str) -> list[str]:
    """A sentence if some of its layers are not in the base at all."""
    unknown = [name for name in file.layers if name not in known]
    if not unknown:
        return []
    version = file.metadata.get("ss_base_model_version", "")
    of = f" (it says that it is for {version})" if version else ""
    return [
        f"{option}: {len(unknown)} of the {len(file.layers)} layers of {file.path.name} are not in this "
        f"base, first {unknown[0]}; it is for another kind of base{of}."
    ]


def merge_plain(family: ModelFamily, wanted: Sequence[Merged]) -> tuple[str, ...]:
    """Add the files' changes to the float32 weights of a base; what was done, in sentences.

    Raises RecipeError for a file that is not plain LoRA of this base.
    """
    layers, said = base_layers(family), []
    for number, one in enumerate(wanted):
        option = f"base.loras[{number}].file"
        file = read_plain(one.file, option)
        faults = unknown_layers(file, layers, option) or unfit_layers(
            file, {name: layer.weight.shape for name, layer in layers.items()}, option
        )
        if faults:
            raise RecipeError("\n".join(faults))
        changed = 0
        for name in file.layers:
            weight, delta = layers[name].weight, file.delta(name)
            changed += bool(delta.any())
            if not weight.is_meta:
                weight.data.add_(delta.view(weight.shape).to(weight), alpha=one.strength)
        said.append(
            f"{one.file.name} is merged into it with a strength of {one.strength:g}: {changed} layers are "
            "changed, and what is trained needs it to be there"
        )
    return tuple(said)


def unfit_layers(file: LoraFile, shapes: Mapping[str, torch.Size], option: str) -> list[str]:
    """A sentence if some of its layers have another shape than the base's."""
    unfit = [name for name in file.layers if not _fits(file, name, shapes[name])]
    if not unfit:
        return []
    down, up = (file.layers[unfit[0]][end] for end in ("lora_down.weight", "lora_up.weight"))
    return [
        f"{option}: {unfit[0]} of {file.path.name} changes a weight of {(up.shape[0], *down.shape[1:])}, but "
        f"this base has one of {tuple(shapes[unfit[0]])}; it is for another kind of base."
    ]


def _fits(file: LoraFile, name: str, shape: torch.Size) -> bool:
    """1 x 1 convolutions and linear layers are written as either."""
    down, up = (file.layers[name][end] for end in ("lora_down.weight", "lora_up.weight"))
    kernel, wanted = down.shape[2:], shape[2:]
    plain = kernel == wanted or kernel.numel() == wanted.numel() == 1
    return plain and (up.shape[0], down.shape[1]) == tuple(shape[:2])


def digest(path: Path) -> str:
    """sha256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
