"""LoHa, scale * (w1_a @ w1_b) * (w2_a @ w2_b) entry by entry, and LoKr, scale * kron(w1, w2)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from lora_studio.lora_file.kinds.base import (
    ALPHA,
    Arrays,
    LayerKind,
    Shapes,
    Tensors,
    flat,
    product_norm,
    tucker,
)

if TYPE_CHECKING:
    from torch import Tensor

    from lora_studio.adapters.layer import Layer
    from lora_studio.lora_file.factors import PlainLora

MAX_DENSE = 2**28  # numbers of a layer's change whose norm is still taken by multiplying it out


class LohaKind(LayerKind):
    """`hada_w1_a` [out, r], `hada_w1_b` [r, in * k * k], or [r, out], [r, in] and `hada_t1` [r, r, k, k]."""

    name = "loha"
    endings = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2")
    required = tuple((end,) for end in endings[:4])
    counted = ("hada_w1_b",)
    opaque = (*LayerKind.opaque, "hada_t1", "hada_t2")
    written_by: ClassVar = {"loha": "diffusers refuses it, kohya leaves it out"}

    def size(self, shapes: Shapes) -> tuple[int, int] | None:
        """(out, in * kernel) that both products have; None if the factors do not fit each other."""
        sides = []
        for number in "12":
            a, b = flat(shapes[f"hada_w{number}_a"]), flat(shapes[f"hada_w{number}_b"])
            core = shapes.get(f"hada_t{number}")
            if not (a[1] == b[0] if core is None else core[:2] == (a[0], b[0])):
                return None
            sides.append((a[0], b[1]) if core is None else (a[1], b[1] * math.prod(core[2:])))
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

        exact = None if "hada_t1" in tensors else ADAPTER.factors(_ours(tensors), scale)
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
        """LyCORIS' names and alpha; numbers are moved between two factors so that float16 can hold both."""
        import torch

        from lora_studio.lora_file.factors import in_range

        named = {f"hada_{end}": tensor.detach() for end, tensor in layer.tensors.items()}
        named["hada_w2_b"], named["hada_w2_a"] = in_range(named["hada_w2_b"], named["hada_w2_a"])
        return named | {ALPHA: torch.tensor(layer.scale * len(named["hada_w1_b"]))}


def _ours(tensors: Tensors) -> dict[str, Tensor]:
    """By the adapter's names, each with two sides."""
    return {end[5:]: tensor.float().flatten(1) for end, tensor in tensors.items() if "hada" in end}


class LokrKind(LayerKind):
    """`lokr_w1` [a, c], `lokr_w2` [b, d, k, k], or of either `_a` [b, r] and `_b` [r, d * k * k].

    With `lokr_t2` [r, r, k, k] between, `_a` is [r, b]. alpha counts against the rank of the last factor that
    has one; whole factors have no scale.
    """

    name = "lokr"
    endings = ("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2")
    required = tuple((whole, f"{whole}_{half}") for whole in ("lokr_w1", "lokr_w2") for half in "ab")
    counted = ("lokr_w1_b", "lokr_w2_b")
    opaque = (*LayerKind.opaque, "lokr_t2")
    written_by: ClassVar = {
        "lokr": "diffusers refuses it, kohya leaves it out, InvokeAI does not know some for what they are"
    }

    def size(self, shapes: Shapes) -> tuple[int, int] | None:
        """(out, in * kernel) of the Kronecker product, of whole or of factored matrices."""
        out = inputs = 1
        for name in ("lokr_w1", "lokr_w2"):
            if name in shapes:
                side = flat(shapes[name])
            else:
                a, b, core = shapes[f"{name}_a"], shapes[f"{name}_b"], shapes.get("lokr_t2")
                if core is not None and name == "lokr_w2":
                    side = (a[1], b[1] * math.prod(core[2:]))
                elif a[1] != b[0]:
                    return None
                else:
                    side = (a[0], math.prod(b[1:]))
            out, inputs = out * side[0], inputs * side[1]
        return out, inputs

    def delta(self, tensors: Tensors, scale: float, weight: Tensor | None) -> Tensor:
        """[out, in, k, k] where w2 tells of k."""
        from lora_studio.adapters.lycoris import LOKR as ADAPTER

        w1 = tensors["lokr_w1"] if "lokr_w1" in tensors else tensors["lokr_w1_a"] @ tensors["lokr_w1_b"]
        if "lokr_w2" in tensors:
            w2 = {"w2": tensors["lokr_w2"]}
        elif "lokr_t2" in tensors:
            w2 = {"w2": tucker(tensors, "lokr_t2", "lokr_w2_a", "lokr_w2_b")}
        else:
            w2 = {end: tensors[f"lokr_{end}"] for end in ("w2_a", "w2_b")}
        change = ADAPTER.change({"w1": w1} | w2, scale)
        whole = w2.get("w2")
        return change if whole is None or whole.ndim == 2 else change.view(len(change), -1, *whole.shape[2:])

    def norm(self, arrays: Arrays, shapes: Shapes) -> float | None:
        """||kron(a, b)|| = ||a|| ||b||."""
        return math.prod(
            float(np.linalg.norm(arrays(name).astype(np.float64)))
            if name in shapes
            else product_norm(arrays(f"{name}_a"), arrays(f"{name}_b"))
            for name in ("lokr_w1", "lokr_w2")
        )

    def spell(self, layer: Layer) -> dict[str, Tensor]:
        """Of two whole factors readers take no scale, so it goes into one of them."""
        import torch

        from lora_studio.lora_file.factors import in_range

        named = {f"lokr_{end}": tensor.detach() for end, tensor in layer.tensors.items()}
        if "lokr_w2" in named:
            w1, w2 = in_range(named["lokr_w1"], named["lokr_w2"] * layer.scale, alike=True)
            return {"lokr_w1": w1, "lokr_w2": w2, ALPHA: torch.tensor(1.0)}
        named["lokr_w2_a"], named["lokr_w2_b"] = in_range(named["lokr_w2_a"], named["lokr_w2_b"])
        return named | {ALPHA: torch.tensor(layer.scale * len(named["lokr_w2_b"]))}


LOHA, LOKR = LohaKind(), LokrKind()
