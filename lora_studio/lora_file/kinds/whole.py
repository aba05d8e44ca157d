"""Kinds whose change is no product of factors alone: whole weights, norms, OFT's turned outputs, GLoRA."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from lora_studio.lora_file.kinds.base import ALPHA, BIAS, Arrays, LayerKind, Shapes, Tensors, flat

if TYPE_CHECKING:
    from torch import Tensor

    from lora_studio.adapters.layer import Layer


class FullKind(LayerKind):
    """`diff` in the shape of the weight, `diff_b` in that of the bias."""

    name = "full"
    endings = ("diff", BIAS)
    beside = (ALPHA,)
    is_product = False
    written_by: ClassVar = {"full": "diffusers and kohya do not read it, others were not tried"}

    def size(self, shapes: Shapes) -> tuple[int, int] | None:
        return flat(shapes["diff"])

    def delta(self, tensors: Tensors, scale: float, weight: Tensor | None) -> Tensor:
        return tensors["diff"]

    def norm(self, arrays: Arrays, shapes: Shapes) -> float | None:
        return float(np.linalg.norm(arrays("diff").astype(np.float64)))

    def spell(self, layer: Layer) -> dict[str, Tensor]:
        """Differences from the base, those of norms by names of their own."""
        ends = endings_of(layer)
        return {ends[key.rpartition(".")[2]]: change for key, change in layer.changes().items()}


def endings_of(layer: Layer) -> dict[str, str]:
    """A trained tensor's name -> what its difference is called; empty if it has no name."""
    from torch import nn

    base = layer.module.get_base_layer()
    if not isinstance(base, nn.Linear | nn.Conv2d | nn.LayerNorm | nn.GroupNorm):
        return {}
    kind = FULL if isinstance(base, nn.Linear | nn.Conv2d) else NORM
    return dict(zip(("weight", "bias"), kind.endings, strict=True))


class SetKind(LayerKind):
    """ComfyUI's `set_weight`: the weight itself, in its shape."""

    name = "set"
    endings = ("set_weight",)
    beside = (ALPHA, BIAS)
    reads_weight = True
    is_product = False

    def size(self, shapes: Shapes) -> tuple[int, int] | None:
        return flat(shapes["set_weight"])

    def delta(self, tensors: Tensors, scale: float, weight: Tensor | None) -> Tensor:
        assert weight is not None
        return tensors["set_weight"].reshape(weight.shape) - weight


class GloraKind(LayerKind):
    """LyCORIS' GLoRA, scale * (W a1 a2 + b1 b2): a1 [in, r], a2 [r, in], b1 [out, r], b2 [r, in * k * k].

    With `bm` [r, r, k, k] between, b2 is [r, in].
    """

    name = "glora"
    endings = ("a1.weight", "a2.weight", "b1.weight", "b2.weight", "bm.weight")
    beside = (ALPHA,)
    required = tuple((end,) for end in endings[:4])
    counted = ("b2.weight",)
    reads_weight = True
    is_product = False

    def size(self, shapes: Shapes) -> tuple[int, int] | None:
        """None, too, where `a1 a2` does not turn as many inputs as the weight has."""
        (a1, a2, b1, b2), middle = (flat(shapes[end]) for end in self.endings[:4]), shapes.get("bm.weight")
        inputs = b2[1] * (math.prod(middle[2:]) if middle else 1)
        fit = (
            a1[1] == a2[0]
            and a1[0] == a2[1]
            and b1[1] == b2[0]
            and (not middle or middle[:2] == (b2[0],) * 2)
        )
        return (b1[0], inputs) if fit and inputs % a1[0] == 0 else None

    def delta(self, tensors: Tensors, scale: float, weight: Tensor | None) -> Tensor:
        """In the shape of the weight, whose inputs are turned at every place of a kernel alike."""
        import torch

        assert weight is not None
        a1, a2, b1, b2 = (tensors[end].flatten(1) for end in self.endings[:4])
        if "bm.weight" in tensors:
            b2 = torch.einsum("rshw,si->rihw", tensors["bm.weight"], b2).flatten(1)
        turned = torch.einsum("oi...,ij->oj...", weight, a1 @ a2)
        return scale * (turned + (b1 @ b2).view(weight.shape))


class NormKind(LayerKind):
    """`w_norm` and `b_norm`: what is added to a norm's weight and bias; no size, as it is no matrix."""

    name = "norm"
    endings = ("w_norm", "b_norm")
    tells_size = is_product = False


class OftKind(LayerKind):
    """LyCORIS' diagonal OFT, which turns the outputs: `oft_blocks` [blocks, b, b]; alpha bounds how far."""

    name = "oft"
    endings = ("oft_blocks", "oft_diag")
    beside = (ALPHA, "rescale")
    reads_weight = True
    tells_size = is_product = False

    def uses_alpha(self, shapes: Shapes) -> bool:
        return True

    def scale(self, alpha: float | None, shapes: Shapes) -> float:
        """The bound, for each output."""
        return alpha or 0.0

    def delta(self, tensors: Tensors, scale: float, weight: Tensor | None) -> Tensor:
        """Cayley's (1 + Q)(1 - Q)^-1 of every block, times the weight, less the weight."""
        import torch

        assert weight is not None
        blocks = tensors["oft_blocks"]
        skew = blocks - blocks.transpose(1, 2)
        most = scale * len(weight)
        if most > 0 and (size := skew.norm() + 1e-8) > most:
            skew = skew * most / size
        one = torch.eye(blocks.shape[-1])
        turn = (one + skew) @ torch.linalg.inv(one - skew)
        grouped = weight.reshape(len(blocks), blocks.shape[-1], -1)
        turned = torch.einsum("knm,kni->kmi", turn, grouped).reshape(weight.shape)
        if "rescale" in tensors:
            turned = turned * tensors["rescale"].reshape(-1, *(1 for _ in weight.shape[1:]))
        return turned - weight


FULL, NORM, OFT, SET, GLORA = FullKind(), NormKind(), OftKind(), SetKind(), GloraKind()
