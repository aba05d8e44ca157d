"""Finished LoRA files opened to be computed with: layer by layer, and never whole in memory."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from lora_studio.adapters.kind import Factors
from lora_studio.errors import RecipeError, StudioError, preview_names
from lora_studio.families.layer_names import reads_text
from lora_studio.lora_file.header import Stored, TensorEntry
from lora_studio.lora_file.lora_file import ENDINGS, LoraFile, open_lora
from lora_studio.lora_file.spellings import read_any
from lora_studio.lora_file.values import DTYPES, MAX_RANK

_DOWN, _UP, _ALPHA = ENDINGS


@dataclass(frozen=True)
class PlainFile:
    """A file as plain LoRA. One that is plain LoRA is read layer by layer, when it is asked for."""

    path: Path
    layers: Mapping[str, Mapping[str, Tensor]]
    shapes: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]]  # of down and up
    metadata: Mapping[str, str]
    notes: tuple[str, ...] = ()  # what its user should know of how it was read

    @property
    def name(self) -> str:
        """For people: without its folder."""
        return self.path.name

    @property
    def trigger(self) -> str:
        """The words that call it, as it says itself; empty if it does not."""
        return self.metadata.get("modelspec.trigger_phrase", "").strip()

    @property
    def version(self) -> str:
        """What it says of its base, in UIs' word for it; empty if it does not."""
        return self.metadata.get("ss_base_model_version", "")

    def rank(self, name: str) -> int:
        """Of a layer."""
        return self.shapes[name][0][0]

    def shape(self, name: str) -> tuple[int, ...]:
        """Of the weight that a layer changes: [out, in], or with the sides of a kernel."""
        down, up = self.shapes[name]
        return (up[0], *down[1:])

    def factors(self, name: str, strength: float = 1.0) -> Factors:
        """A layer's change in float64: `up @ down`, with alpha / rank and the strength in `up`.

        Raises StudioError if it holds a number that is not finite.
        """
        tensors = self.layers[name]
        down, up = tensors[_DOWN].double().flatten(1), tensors[_UP].double().flatten(1)
        scale = float(tensors[_ALPHA].item()) / len(down) if _ALPHA in tensors else 1.0
        if not (down.isfinite().all() and up.isfinite().all()):
            raise StudioError(
                f"{self.name}: {name} holds numbers that are not finite; the file is damaged or its training "
                "diverged. Take another checkpoint of it."
            )
        return Factors(down, up * (scale * strength))


def open_plain(path: Path) -> PlainFile:
    """Open a LoRA file of any kind in any spelling.

    Raises StudioError if it is missing or damaged, holds what is not known, or depends on its base's weights.
    """
    file = open_lora(path)
    if file.stray:
        file = read_any(path)
    faulty = [name for name, tensors in file.layers.items() if _is_faulty(tensors)]
    if faulty or not file.layers:
        raise StudioError(
            f"{path.name} is not a whole LoRA file: {len(faulty)} of {len(file.layers)} layers lack a tensor "
            f"or do not fit together{': ' + preview_names(faulty) if faulty else ''}; `lora-studio verify` says more."
        )
    _check_alphas(path.name, file.layers)
    shapes = {
        name: (tuple(_looks(tensors, _DOWN).shape), tuple(_looks(tensors, _UP).shape))
        for name, tensors in file.layers.items()
    }
    return PlainFile(path, file.layers, shapes, file.metadata, _notes(path.name, file.layers))


def _looks(tensors: Mapping[str, Tensor], end: str) -> TensorEntry | Tensor:
    """Shape and dtype of a layer's tensor, which is not read for that."""
    return tensors.entry(end) if isinstance(tensors, Stored) else tensors[end]


def _is_faulty(tensors: Mapping[str, Tensor]) -> bool:
    if _DOWN not in tensors or _UP not in tensors:
        return True
    down, up = _looks(tensors, _DOWN), _looks(tensors, _UP)
    if len(down.shape) not in (2, 4) or len(up.shape) != len(down.shape):
        return True
    fits = up.shape[1] == down.shape[0] and math.prod(up.shape[2:]) == 1 and 0 < down.shape[0] <= MAX_RANK
    return not fits or not all(one.dtype in DTYPES and math.prod(one.shape) for one in (down, up))


def _check_alphas(name: str, layers: Mapping[str, Mapping[str, Tensor]]) -> None:
    given = {layer: tensors[_ALPHA] for layer, tensors in layers.items() if _ALPHA in tensors}
    wrong = [layer for layer, alpha in given.items() if alpha.numel() != 1 or not alpha.isfinite().all()]
    if wrong:
        raise StudioError(f"{name}: alpha of {preview_names(wrong)} is not one number; the file is damaged.")
    off = [layer for layer, alpha in given.items() if alpha.item() == 0]
    if off:
        raise StudioError(
            f"{name}: alpha is 0 in {len(off)} layers, first {off[0]}; most UIs take that as switched off "
            "and kohya as the rank, so what is meant cannot be known. Export the file again with an alpha."
        )


def _notes(name: str, layers: Mapping[str, Mapping[str, Tensor]]) -> tuple[str, ...]:
    lacking = sum(_ALPHA not in tensors for tensors in layers.values())
    if not lacking:
        return ()
    return (f"{name}: {lacking} of {len(layers)} layers have no alpha; taken as a scale of 1, as UIs do",)


def squeezed(shape: Sequence[int]) -> tuple[int, ...]:
    """Of a weight: 1 x 1 convolutions are written as linear layers, too."""
    return tuple(shape[:2]) if all(side == 1 for side in shape[2:]) else tuple(shape)


def check_same_family(files: Sequence[PlainFile]) -> list[str]:
    """Refuse files of different kinds of bases; notes on what differs and may be added all the same.

    Told by what they say themselves, by the shape of layers that both have, and by the width of the text that
    cross-attention reads. Raises StudioError that names both.
    """
    notes: list[str] = []
    first = files[0]
    for other in files[1:]:
        for name in first.layers.keys() & other.layers.keys():
            one, two = squeezed(first.shape(name)), squeezed(other.shape(name))
            if one != two:
                raise _stranger(
                    first, other, f"{name} changes a weight of {one} in one and {two} in the other"
                )
        widths = [_text_widths(file) for file in (first, other)]
        if all(widths) and widths[0] != widths[1]:
            said = " and ".join(", ".join(map(str, sorted(width))) for width in widths)
            raise _stranger(first, other, f"their cross-attention reads text {said} wide")
        if first.version and other.version and first.version != other.version:
            shared = len(first.layers.keys() & other.layers.keys())
            if not shared:
                raise _stranger(first, other, "and they have no layer in common")
            notes.append(
                f"{first.name} says it is for {first.version} and {other.name} for {other.version}; their "
                f"{shared} shared layers fit, but what they learned may not"
            )
        elif not first.layers.keys() & other.layers.keys():
            notes.append(f"{first.name} and {other.name} have no layer in common")
    return notes


def _text_widths(file: PlainFile) -> set[int]:
    return {file.shape(name)[1] for name in file.layers if reads_text(name)}


def _stranger(one: PlainFile, other: PlainFile, why: str) -> StudioError:
    named = [f"{file.name} ({file.version or 'which names no base'})" for file in (one, other)]
    return StudioError(
        f"{named[0]} and {named[1]} are for different kinds of bases: {why}. Only files for one kind can be "
        "put together."
    )


_OWN = (".down", ".up")  # tensors of a checkpoint


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
    faulty = [name for name, tensors in layers.items() if _is_unmergeable(tensors)]
    if faulty or not layers:
        raise RecipeError(
            f"{option}: {path.name} is not a whole LoRA file: {len(faulty)} of {len(layers)} layers lack a "
            f"tensor, do not fit together or are not finite{': ' + preview_names(faulty) if faulty else ''}; "
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


def _is_unmergeable(tensors: Mapping[str, Tensor]) -> bool:
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
