"""LoHa: scale * (w1_a @ w1_b) * (w2_a @ w2_b), entry by entry."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from lora_studio.lora_file.kinds.base import ALPHA, Arrays, LayerKind, Shapes, Tensors, flat, tucker

if TYPE_CHECKING:
    from torch import Tensor

    from lora_studio.adapters.layer import Layer
    from lora_studio.lora_file.factors import PlainLora

MAX_DENSE = 2**28  # numbers of a layer's change whose norm is still taken by multiplying it out


class LohaKind(LayerKind):
    """`hada_w1_a` [out, r], `hada_w1_b` [r, in * k * k], or [r, out], [r, in] and `hada_t1` [r, r, k, k]."""

    name: ClassVar[str] = "loha"
    endings: ClassVar[tuple[str, ...]] = (
        *("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"),
        *("hada_t1", "hada_t2"),
    )
    required: ClassVar[tuple[tuple[str, ...], ...]] = tuple((end,) for end in endings[:4])
    counted: ClassVar[tuple[str, ...]] = ("hada_w1_b",)
    opaque: ClassVar[tuple[str, ...]] = (*LayerKind.opaque, "hada_t1", "hada_t2")
    written_by: ClassVar[Mapping[str, str]] = {"loha": "diffusers refuses it, kohya leaves it out"}

    def size(self, shapes: Shapes) -> tuple[int, int] | None:
        sides = []
        for number in "12":
            a, b = flat(shapes[f"hada_w{number}_a"]), flat(shapes[f"hada_w{number}_b"])
            core = shapes.get(f"hada_t{number}")
            if core is not None:
                fits, side = core[:2] == (a[0], b[0]), (a[1], b[1] * math.prod(core[2:]))
            else:
                fits, side = a[1] == b[0], (a[0], b[1])
            if not fits:
                return None
            sides.append(side)
        return sides[0] if sides[0] == sides[1] else None

    def delta(self, tensors: Tensors, scale: float, weight: Tensor | None) -> Tensor:
        """[out, in * k * k], or [out, in, k, k] with a core of its own."""
        from lora_studio.adapters.lycoris import LOHA as ADAPTER

        if "hada_t1" not in tensors:
            return ADAPTER.change(_ours(tensors), scale)
        one, other = (tucker(tensors, f"hada_t{n}", f"hada_w{n}_a", f"hada_w{n}_b") for n in "12")
        return scale * one * other

    def low_rank(self, tensors: Tensors, scale: float) -> PlainLora | None:
        """Every product of two ranks is a rank."""
        from lora_studio.adapters.lycoris import LOHA as ADAPTER
        from lora_studio.lora_file.factors import PlainLora

        if "hada_t1" in tensors:
            return None
        exact = ADAPTER.factors(_ours(tensors), scale)
        return None if exact is None else PlainLora(*exact, 1.0)

    def norm(self, arrays: Arrays, shapes: Shapes) -> float | None:
        """By pieces of rows: the product of two products has no small form."""
        size = self.size(shapes)
        if size is None or math.prod(size) > MAX_DENSE:
            return None
        (out, inputs), square = size, 0.0
        one, other = (
            [arrays(f"hada_w{n}_{s}").reshape(flat(shapes[f"hada_w{n}_{s}"])) for s in "ab"] for n in "12"
        )
        step = max(1, 2**22 // max(inputs, 1))
        for row in range(0, out, step):
            piece = (one[0][row : row + step] @ one[1]) * (other[0][row : row + step] @ other[1])
            square += np.square(piece, dtype=np.float64).sum()
        return math.sqrt(square)

    def spell(self, layer: Layer) -> dict[str, Tensor]:
        import torch

        from lora_studio.lora_file.factors import in_range

        named = {f"hada_{end}": tensor.detach() for end, tensor in layer.tensors.items()}
        named["hada_w2_b"], named["hada_w2_a"] = in_range(named["hada_w2_b"], named["hada_w2_a"])
        return named | {ALPHA: torch.tensor(layer.scale * len(named["hada_w1_b"]))}


def _ours(tensors: Tensors) -> dict[str, Tensor]:
    """By the adapter's names, each with two sides."""
    return {
        end.removeprefix("hada_"): tensor.float().flatten(1)
        for end, tensor in tensors.items()
        if "hada" in end
    }


LOHA = LohaKind()
