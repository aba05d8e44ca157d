"""What a kind of layer in a LoRA file is: its tensors' names, the sizes that fit, and its change of weight.

Names, shapes and norms need no torch; `delta`, `low_rank` and `spell` import it when they are called.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

    from lora_studio.adapters.layer import Layer
    from lora_studio.lora_file.factors import PlainLora

Shapes = Mapping[str, tuple[int, ...]]
Tensors = Mapping[str, "Tensor"]
Array = np.ndarray[Any, Any]
Arrays = Callable[[str], Array]  # ending -> its numbers, float32

ALPHA, MAGNITUDE = "alpha", "dora_scale"
BESIDE = (ALPHA, MAGNITUDE, "rescale")  # endings that say nothing of a layer's kind
BIAS = "diff_b"  # a change of a layer's bias, beside that of its weight or alone


class LayerKind:
    """Of a layer whose weight is [out, in] or, of a convolution, [out, in, k, k]; tensors go by endings."""

    name: ClassVar[str]
    endings: ClassVar[tuple[str, ...]]  # by which a layer is known to be of this kind
    beside: ClassVar[tuple[str, ...]] = (ALPHA, MAGNITUDE, BIAS)  # what else it may have
    # One of each group there must be; the last one is named where there is none.
    required: ClassVar[tuple[tuple[str, ...], ...]] = ()
    counted: ClassVar[tuple[str, ...]] = ()  # their first side is the rank; the last that is there counts
    # With one of these, the norm cannot be told from the file alone, or not without much work.
    opaque: ClassVar[tuple[str, ...]] = (MAGNITUDE, "rescale")
    reads_weight: ClassVar[bool] = False  # its change depends on the frozen weight
    tells_size: ClassVar[bool] = True  # its tensors say what size of weight they change
    is_product: ClassVar[bool] = True  # one tensor of zeros makes all of its change zero
    # The kinds of adapters that are written so -> who does not read the file, "" if everything does.
    written_by: ClassVar[Mapping[str, str]] = {}

    def missing(self, endings: Collection[str]) -> list[str]:
        """Endings without which nothing can be made of the others."""
        lacking = [group[-1] for group in self.required if not any(one in endings for one in group)]
        return list(dict.fromkeys(lacking))

    def rank(self, shapes: Shapes) -> int | None:
        """How many columns its factors have; None if it has none, or does not say."""
        return next((shapes[end][0] for end in reversed(self.counted) if shapes.get(end)), None)

    def uses_alpha(self, shapes: Shapes) -> bool:
        """Whether its change depends on alpha, which may be anything where it does not."""
        return self.rank(shapes) is not None

    def scale(self, alpha: float | None, shapes: Shapes) -> float:
        rank = self.rank(shapes)
        return 1.0 if alpha is None or not rank else alpha / rank

    def size(self, shapes: Shapes) -> tuple[int, int] | None:
        """[out, in * k * k] of the weight that it changes, or None where the tensors do not go together."""
        return None

    def delta(self, tensors: Tensors, scale: float, weight: Tensor | None) -> Tensor:
        """Its change in float32, [out, in, k, k] or, where the file does not tell k, [out, in * k * k].

        `tensors` and `weight` are float32, the latter there if `reads_weight`.
        """
        raise NotImplementedError

    def low_rank(self, tensors: Tensors, scale: float) -> PlainLora | None:
        """Its change as plain LoRA, exactly; None where that takes more ranks than the weight has itself."""
        return None

    def norm(self, arrays: Arrays, shapes: Shapes) -> float | None:
        """The Frobenius norm of its change at a scale of 1, without multiplying it out; None: not known."""
        return None

    def spell(self, layer: Layer) -> dict[str, Tensor]:
        """The tensors that a trained layer's file has, float32 or as they are trained."""
        raise NotImplementedError


def flat(shape: tuple[int, ...]) -> tuple[int, int]:
    """With all sides but the first one as one. Raises IndexError for a shape that has none."""
    return shape[0], math.prod(shape[1:])


def rows(array: Array) -> Array:
    """[n, ...] -> [n, m], float64."""
    return array.reshape(len(array), -1).astype(np.float64)


def product_norm(up: Array, down: Array) -> float:
    """||up @ down|| of [out, r] and [r, in], by way of two [r, r]: sum of (up^T up) * (down down^T)."""
    up, down = rows(up), rows(down)
    return root(((up.T @ up) * (down @ down.T)).sum())


def root(square: float) -> float:
    """Of a sum that rounding may have made negative; not a number if it is none."""
    return math.sqrt(max(square, 0.0)) if math.isfinite(square) else math.nan


def decomposed(change: Tensor, weight: Tensor, magnitude: Tensor) -> Tensor:
    """DoRA: W + change with the norms `magnitude`, of the outputs or, in LyCORIS before 3.2, the inputs."""
    import torch

    whole = weight + change.reshape(weight.shape)
    by_inputs = magnitude.ndim > 1 and magnitude.shape[0] == 1 != len(weight)
    turned = whole.transpose(0, 1) if by_inputs else whole
    norms = turned.flatten(1).norm(dim=1).clamp(min=torch.finfo(torch.float32).eps)
    turned = turned * (magnitude.flatten() / norms).view(-1, *(1 for _ in turned.shape[1:]))
    return (turned.transpose(0, 1) if by_inputs else turned) - weight


def tucker(tensors: Tensors, core: str, across: str, along: str) -> Tensor:
    """core [r, r, k, k], across [r, out] and along [r, in] -> [out, in, k, k]"""
    import torch

    return torch.einsum("ijhw,jq,ip->pqhw", tensors[core], tensors[along], tensors[across]).contiguous()
