"""LoKr: scale * kron(w1, w2), each of them whole or of low rank."""

from __future__ import annotations

import math
from collections.abc import Mapping
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


class LokrKind(LayerKind):
    """`lokr_w1` [a, c], `lokr_w2` [b, d, k, k], or of either `_a` [b, r] and `_b` [r, d * k * k].

    With `lokr_t2` [r, r, k, k] between, `_a` is [r, b]. alpha counts against the rank of the last factor that
    has one; whole factors have no scale.
    """

    name: ClassVar[str] = "lokr"
    endings: ClassVar[tuple[str, ...]] = (
        *("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b"),
        "lokr_t2",
    )
    required: ClassVar[tuple[tuple[str, ...], ...]] = (
        *(("lokr_w1", "lokr_w1_a"), ("lokr_w1", "lokr_w1_b")),
        *(("lokr_w2", "lokr_w2_a"), ("lokr_w2", "lokr_w2_b")),
    )
    counted: ClassVar[tuple[str, ...]] = ("lokr_w1_b", "lokr_w2_b")
    opaque: ClassVar[tuple[str, ...]] = (*LayerKind.opaque, "lokr_t2")
    written_by: ClassVar[Mapping[str, str]] = {
        "lokr": "diffusers refuses it, kohya leaves it out, InvokeAI does not know some for what they are"
    }

    def size(self, shapes: Shapes) -> tuple[int, int] | None:
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
        norm = 1.0
        for name in ("lokr_w1", "lokr_w2"):
            if name in shapes:
                norm *= float(np.linalg.norm(arrays(name).astype(np.float64)))
            else:
                norm *= product_norm(arrays(f"{name}_a"), arrays(f"{name}_b"))
        return norm

    def spell(self, layer: Layer) -> dict[str, Tensor]:
        """Of two whole factors readers take no scale, so it goes into one of them."""
        import torch

        from lora_studio.lora_file.factors import in_range

        named = {f"lokr_{end}": tensor.detach() for end, tensor in layer.tensors.items()}
        if "lokr_w2" in named:
            w1, w2 = in_range(named["lokr_w1"], named["lokr_w2"] * layer.scale)
            return {"lokr_w1": w1, "lokr_w2": w2, ALPHA: torch.tensor(1.0)}
        named["lokr_w2_a"], named["lokr_w2_b"] = in_range(named["lokr_w2_a"], named["lokr_w2_b"])
        return named | {ALPHA: torch.tensor(layer.scale * len(named["lokr_w2_b"]))}


LOKR = LokrKind()
