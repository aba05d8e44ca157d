"""Plain LoRA's own forward and backward pass: few operations, with the same output as PEFT's layers.

PEFT puts the layers in, names them and holds their tensors; it takes seven operations forward and more than
twice as many backward for `W x + scale * up (down x)`, and casts both factors in every one. Here

- the factors of all layers of one shape are one tensor each, of which a copy in the precision of the pass is
  made once for every pass of the part, with the scale in it;
- layers with one input, as a family names them, are one product with it;
- a frozen layer and its adapter are one operation. In float32 a small layer's is `(W + scale * up down) x`,
  with one sum for all layers of a shape; in bfloat16 that would round the update away.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from lora_studio.adapters.layer import NAME
from lora_studio.adapters.lora_products import Copies, LinearProduct, factors_of
from lora_studio.adapters.rules import LayerOptions
from lora_studio.adapters.stack import Joined, Stack
from lora_studio.quiet import without_bitsandbytes

# Numbers in a weight up to which it and its update are added up for a pass, and up to which the gradient of
# the sum costs less than the more and smaller products that lead to the factors' (benchmarks/train_step.py).
SMALL, TINY = 2**17, 96 * 96


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
        return readable and (type(base) is nn.Linear or (type(base) is nn.Conv2d and _sees_one_place(base)))

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
    up: Tensor  # [k, r, out]
    merged: Tensor | None  # [out, in]: of one layer W with the update in it


class Unit:
    """Layers with one input."""

    def __init__(self, layers: Sequence[PlainLayer]) -> None:
        self.modules, self.bases = [one.module for one in layers], [one.base for one in layers]
        self.values: Sequence[PassValues] = ()  # of each layer, or of all in one
        self.direct = False  # whether this pass reads the frozen weights
        biases = [base.bias for base in self.bases if base.bias is not None]
        self._biases = Joined(biases) if len(layers) > 1 and biases else None
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
        if not self.direct or torch.compiler.is_compiling():
            return self._beside(number, x)
        if len(self.values) == len(self.bases):
            return _product(x, base.weight, base.bias, self.values[number])
        if x is not self._input or number not in self._outputs:
            assert self._weight is not None
            bias = None if self._biases is None else self._biases.whole.flatten()
            outputs = _product(x, self._weight.flatten(0, 1), bias, self.values[0])
            self._input, self._outputs = x, dict(enumerate(outputs.chunk(len(self.bases), dim=-1)))
        output = self._outputs.pop(number)
        if not self._outputs:
            self._input = None
        return output

    def _beside(self, number: int, x: Tensor) -> Tensor:
        """The frozen layer as it is and the update beside it, in operations that a compiler looks through."""
        base = self.bases[number]
        output: Tensor = base(x)
        if len(self.values) == len(self.bases):
            down, up = self.values[number].down, self.values[number].up.flatten(0, 1).t()
        else:
            down, up = self.values[0].down.chunk(len(self.bases))[number], self.values[0].up[number].t()
        x = x.to(down.dtype)
        if isinstance(base, nn.Conv2d):
            down = down.view(len(down), -1, *base.kernel_size)
            narrow = F.conv2d(x, down, None, base.stride, base.padding, base.dilation)
            return output + F.conv2d(narrow, up[:, :, None, None]).to(output.dtype)
        return output + F.linear(F.linear(x, down), up).to(output.dtype)


def _product(x: Tensor, weight: Tensor, bias: Tensor | None, values: PassValues) -> Tensor:
    """The output of layers with these frozen weights [k * out, in], and with the update."""
    down, up, merged = values
    if weight.dim() == 4:
        assert merged is not None
        return _at_each_place(x.flatten(2), merged, bias).view(len(x), -1, *x.shape[2:])
    if weight.numel() <= TINY and merged is not None:
        return F.linear(x, merged, bias)
    whole = weight if merged is None else merged
    x = x.to(down.dtype)
    factors = (None, None) if x.dtype == torch.float32 else factors_of(x)  # a GPU's memory is dear
    output: Tensor = LinearProduct.apply(x, whole, bias, down, up, (merged is not None, *factors))
    return output


def _at_each_place(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """W x + bias of x [B, in, N] and W [out, in]; as products, since convolutions are slow backward."""
    weights = weight.expand(len(x), -1, -1)
    return torch.bmm(weights, x) if bias is None else torch.baddbmm(bias[:, None], weights, x)


class LoraStack:
    """Units of one shape, whose factors are two stacks."""

    def __init__(self, units: Sequence[Sequence[PlainLayer]]) -> None:
        layers = [layer for unit in units for layer in unit]
        self.first, self.k, self.scale = layers[0], len(units[0]), layers[0].options.scale
        self.stacks = tuple(Stack([getattr(one, end) for one in layers]) for end in ("down", "up"))
        self.units = [Unit(unit) for unit in units]
        weight, self.direct = self.first.base.weight, self.first.is_direct  # as it is before any pass
        self.weights = None
        if self.direct and (self.k > 1 or weight.numel() <= SMALL):
            self.weights = Joined([one.base.weight for one in layers])

    def masters(self) -> list[Tensor]:
        """The factors as they are, down [n * k, r, in] with the scale in it and up [n * k, out, r]."""
        for stack in self.stacks:
            stack.match_gradients()
        down, up = (stack.whole.flatten(2) for stack in self.stacks)
        return [down if self.scale == 1 else down * self.scale, up]

    def renew(self, down: Tensor, up: Tensor) -> None:
        """Take these copies of its factors for a pass."""
        weight, dtype = self.first.base.weight, down.dtype
        # On a CPU in float32 one product for several layers is no faster, and its parts are copied once more.
        k = 1 if dtype == torch.float32 else self.k
        is_small = dtype == torch.float32 and weight.numel() <= SMALL
        direct = self.direct and weight.dtype == dtype
        direct = direct and (weight.dim() == 2 or (is_small and weight.numel() <= TINY))
        merged: Sequence[Tensor | None] = [None] * len(down)
        if is_small and direct and self.weights is not None:
            with torch.set_grad_enabled(weight.numel() <= TINY and torch.is_grad_enabled()):
                merged = torch.baddbmm(self.weights.whole.flatten(2), up, down).unbind(0)
        downs = down.unflatten(0, (-1, k)).flatten(1, 2).unbind(0)
        ups = up.transpose(1, 2).unflatten(0, (-1, k)).unbind(0)
        values = [PassValues(*one) for one in zip(downs, ups, merged, strict=k == 1)]
        weights: Sequence[Tensor | None] = [None] * len(self.units)
        if k > 1 and direct and self.weights is not None:
            weights = self.weights.whole.unflatten(0, (-1, k)).unbind(0)
        of_unit = self.k // k
        for number, (unit, own) in enumerate(zip(self.units, weights, strict=True)):
            unit.set(values[number * of_unit : (number + 1) * of_unit], direct=direct, weight=own)


def renew(groups: Sequence[LoraStack]) -> None:
    """What a pass needs, from the factors as they are, in the pass's precision."""
    device = groups[0].first.base.weight.device.type
    factors = [one for group in groups for one in group.masters()]
    if torch.is_autocast_enabled(device):
        factors = [*Copies.apply(torch.get_autocast_dtype(device), *factors)]
    for number, group in enumerate(groups):
        group.renew(*factors[2 * number : 2 * number + 2])


def _sees_one_place(layer: nn.Conv2d) -> bool:
    return (layer.kernel_size, layer.stride, layer.padding, layer.groups) == ((1, 1), (1, 1), (0, 0), 1)


def speed_up(part: nn.Module, layers: Sequence[PlainLayer], together: Sequence[Sequence[str]]) -> list[Stack]:
    """Give layers that PEFT put in their fast passes, and the stacks of their factors.

    `together`: the endings of the paths of layers that get the same input.
    """
    groups: dict[tuple[object, ...], list[list[PlainLayer]]] = {}
    for of_unit in _units(layers, together):
        groups.setdefault((len(of_unit), *of_unit[0].likeness), []).append(of_unit)
    made = [LoraStack(units) for units in groups.values()]

    def begin(*_: object) -> None:
        if not layers[0].module._disable_adapters:
            renew(made)

    part.register_forward_pre_hook(begin)
    for group in made:
        for unit in group.units:
            unit.begin = begin
    return [stack for group in made for stack in group.stacks]


def _units(layers: Sequence[PlainLayer], together: Sequence[Sequence[str]]) -> list[list[PlainLayer]]:
    """Layers that are computed together, as far as they are alike; in the model's order."""
    by_path, found = {layer.path: layer for layer in layers}, []
    for layer in layers:
        if layer.path not in by_path:  # with one before it
            continue
        unit = [by_path.pop(layer.path)]
        for endings in together if layer.is_direct else ():
            before = layer.path.removesuffix(endings[0])
            if before != layer.path and before[-1:] in ("", "."):
                beside = [by_path.get(before + ending) for ending in endings[1:]]
                alike = [one for one in beside if one is not None and one.likeness == layer.likeness]
                unit += [by_path.pop(one.path) for one in alike]
        found.append(unit)
    return found


def inject_plain(part: nn.Module, ranks: Mapping[str, int]) -> None:
    """LoRA and nothing else in the layers at these paths: PEFT's."""
    usual = next(iter(ranks.values()))
    special = {f"^{re.escape(path)}$": rank for path, rank in ranks.items() if rank != usual}
    config = LoraConfig(r=usual, lora_alpha=usual, target_modules=[*ranks], rank_pattern=special, bias="none")
    with without_bitsandbytes():
        inject_adapter_in_model(config, part, adapter_name=NAME)
