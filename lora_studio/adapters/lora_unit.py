"""A layer with plain LoRA, and layers with one input, which are computed together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from lora_studio.adapters.layer import NAME
from lora_studio.adapters.lora_products import (
    LinearProduct,
    merged_products,
    product,
    product_at_each_place,
    products,
    sees_one_place,
)
from lora_studio.adapters.rules import LayerOptions
from lora_studio.adapters.stack import Joined

# Numbers in a weight up to which the gradient of its sum with its update costs less than the more and smaller
# products that lead to the factors' (benchmarks/train_step.py).
TINY = 96 * 768


class PlainLayer(NamedTuple):
    """One that PEFT put in, with nothing but two factors, and how it is trained."""

    path: str
    module: Any
    options: LayerOptions

    @property
    def base(self) -> Any:
        return self.module.get_base_layer()

    @property
    def down(self) -> nn.Parameter:
        """[r, in], or [r, in, k, k]"""
        found: nn.Parameter = self.module.lora_A[NAME].weight
        return found

    @property
    def up(self) -> nn.Parameter:
        """[out, r], or [out, r, 1, 1]"""
        found: nn.Parameter = self.module.lora_B[NAME].weight
        return found

    @property
    def is_direct(self) -> bool:
        """Whether its weight can be read: neither quantised nor spread over processes."""
        base, weight = self.base, self.base.weight
        readable = weight.is_floating_point() and not is_traceable_wrapper_subclass(weight.data)
        return readable and (type(base) is nn.Linear or (type(base) is nn.Conv2d and sees_one_place(base)))

    @property
    def likeness(self) -> tuple[object, ...]:
        """What layers have in common that are computed alike."""
        base = self.base
        around = (base.kernel_size, base.stride, base.padding) if isinstance(base, nn.Conv2d) else ()
        shapes, has_bias = (self.down.shape, self.up.shape), base.bias is not None
        return type(base), base.weight.dtype, *shapes, *self.options, has_bias, self.is_direct, around


class PassValues(NamedTuple):
    """What the outputs of k layers with one input are made of in a pass."""

    down: Tensor  # [k * r, in * ...], times the scale
    up: Tensor  # [k * r, k * out], or [k, r, out] of layers that get an input of the part
    merged: Tensor | None  # [out, in]: of one layer W with the update in it; or [k, out, in]


class Unit:
    """Layers with one input; with an `argument`'s name that of the part, computed when the pass begins."""

    def __init__(self, layers: Sequence[PlainLayer], argument: str = "") -> None:
        self.argument, self._is_read = argument, True
        self.modules, self.bases = [one.module for one in layers], [one.base for one in layers]
        self.values: Sequence[PassValues] = ()  # of each layer, or of all in one
        self.direct = False  # whether this pass reads the frozen weights
        biases = [base.bias for base in self.bases if base.bias is not None]
        self._biases = Joined(biases) if (argument or len(layers) > 1) and biases else None
        self.set(())
        self.begin: Callable[[], None] = lambda: None  # a pass
        for number, module in enumerate(self.modules):
            module.forward = partial(self.output, number)

    def set(
        self, values: Sequence[PassValues], *, direct: bool = False, weight: Tensor | None = None
    ) -> None:
        """`weight`: [k, out, in], the frozen ones of all layers."""
        self.values, self.direct, self._weight = values, direct, weight
        self._input: Tensor | None = None
        self._outputs: dict[int, Tensor] = {}  # that were not asked for yet

    def output(self, number: int, x: Tensor) -> Tensor:
        """Of the layer with this number, for x [..., in] or [B, in, H, W]; computed with those beside it."""
        base = self.bases[number]
        if self.modules[number]._disable_adapters:
            output: Tensor = base(x)
            return output
        if not self.values:  # asked for outside of a pass of the part
            self.begin()
        if torch.compiler.is_compiling():
            return self._beside(number, x)
        self._is_read = True
        if self.argument and x is self._input:
            return self._outputs[number]
        if self.argument or not self.direct:
            return self._beside(number, x)
        if len(self.values) == len(self.bases):
            return _product(x, base.weight, base.bias, self.values[number])
        if x is not self._input or number not in self._outputs:
            outputs = _product(x, *self._frozen(), self.values[0])
            self._input, self._outputs = x, dict(enumerate(outputs.chunk(len(self.bases), dim=-1)))
        output = self._outputs.pop(number)
        if not self._outputs:
            self._input = None
        return output

    def give(self, x: Tensor) -> None:
        """Compute the outputs of all for the part's own input, outside of what is checkpointed in it.

        Not if those of the pass before were not read: compiled blocks have products of their own.
        """
        if self.direct and self._is_read:
            down, up, merged = self.values[0]
            if merged is None:
                outputs = products(x.to(down.dtype), *self._frozen(), down, up)
            else:
                outputs = merged_products(x, merged, None if self._biases is None else self._biases.whole)
            self._input, self._outputs, self._is_read = x, dict(enumerate(outputs.unbind(0))), False

    def _frozen(self) -> tuple[Tensor, Tensor | None]:
        """Weights [k * out, in] and biases [k * out] of all."""
        assert self._weight is not None
        return self._weight.flatten(0, 1), None if self._biases is None else self._biases.whole.flatten()

    def _beside(self, number: int, x: Tensor) -> Tensor:
        """The frozen layer as it is and the update beside it, in operations that a compiler looks through."""
        base = self.bases[number]
        output: Tensor = base(x)
        k, each = len(self.bases), len(self.values) == len(self.bases) and not self.argument
        down, up, _ = self.values[number if each else 0]
        if not each:
            down = down.chunk(k)[number]
            up = up[number] if self.argument else up.chunk(k)[number].chunk(k, dim=1)[number]
        up, x = up.t(), x.to(down.dtype)
        if isinstance(base, nn.Conv2d):
            down = down.view(len(down), -1, *base.kernel_size)
            narrow = F.conv2d(x, down, None, base.stride, base.padding, base.dilation)
            return output + F.conv2d(narrow, up[:, :, None, None]).to(output.dtype)
        return output + F.linear(F.linear(x, down), up).to(output.dtype)


def _product(x: Tensor, weight: Tensor, bias: Tensor | None, values: PassValues) -> Tensor:
    """The output of layers with these frozen weights [k * out, in], and with the update."""
    down, up, merged = values
    if weight.dim() == 4:
        if merged is not None:
            return product_at_each_place(x, merged, bias)
        return product_at_each_place(x.to(down.dtype), weight.flatten(1), bias, down, up)
    if weight.numel() <= TINY and merged is not None:
        return F.linear(x, merged, bias)
    x = x.to(down.dtype)
    if x.dtype != torch.float32:
        return product(x, weight, bias, down, up)
    whole = weight if merged is None else merged
    output: Tensor = LinearProduct.apply(x, whole, bias, down, up, merged is not None)
    return output
