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
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from inspect import signature
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from lora_studio.adapters.layer import NAME
from lora_studio.adapters.lora_products import (
    Copies,
    LinearProduct,
    product,
    product_at_each_place,
    products,
)
from lora_studio.adapters.rules import LayerOptions
from lora_studio.adapters.stack import Joined, Stack
from lora_studio.families.base import SameInput
from lora_studio.quiet import without_bitsandbytes

# Numbers in a weight up to which it and its update are added up for a pass, and up to which the gradient of
# the sum costs less than the more and smaller products that lead to the factors' (benchmarks/train_step.py).
SMALL, TINY = 2**17, 96 * 96
NOTHING: Mapping[str, Any] = MappingProxyType({})


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
    up: Tensor  # [k * r, k * out], or [k, r, out] of layers that get an input of the part
    merged: Tensor | None  # [out, in]: of one layer W with the update in it


class Unit:
    """Layers with one input; with an `argument`'s name that of the part, computed when the pass begins."""

    def __init__(self, layers: Sequence[PlainLayer], argument: str = "") -> None:
        self.argument, self._is_read = argument, True
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
        if torch.compiler.is_compiling():
            return self._beside(number, x)
        self._is_read = True
        if self.argument and x is self._input:
            return self._outputs[number]
        if not self.direct or (self.argument and len(self.values) == 1):
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
        if self.direct and self._is_read and len(self.values) == 1:
            down, up, _ = self.values[0]
            outputs = products(x.to(down.dtype), *self._frozen(), down, up)
            self._input, self._outputs, self._is_read = x, dict(enumerate(outputs.unbind(0))), False

    def _frozen(self) -> tuple[Tensor, Tensor | None]:
        """Weights [k * out, in] and biases [k * out] of all."""
        assert self._weight is not None
        return self._weight.flatten(0, 1), None if self._biases is None else self._biases.whole.flatten()

    def _beside(self, number: int, x: Tensor) -> Tensor:
        """The frozen layer as it is and the update beside it, in operations that a compiler looks through."""
        base = self.bases[number]
        output: Tensor = base(x)
        if len(self.values) == len(self.bases):
            down, up = self.values[number].down, self.values[number].up.t()
        else:
            down, up = (one.chunk(len(self.bases))[number] for one in self.values[0][:2])
            up = (up[0] if self.argument else up.chunk(len(self.bases), dim=1)[number]).t()
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


class LoraStack:
    """Units of one shape, whose factors are two stacks."""

    def __init__(self, units: Sequence[Sequence[PlainLayer]], argument: str) -> None:
        layers = [layer for unit in units for layer in unit]
        self.argument = argument
        self.first, self.k, self.scale = layers[0], len(units[0]), layers[0].options.scale
        self.stacks = tuple(Stack([getattr(one, end) for one in layers]) for end in ("down", "up"))
        self.units = [Unit(unit, argument) for unit in units]
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
        direct = direct and (weight.dim() == 2 or not is_small or weight.numel() <= TINY)
        merged: Sequence[Tensor | None] = [None] * len(down)
        if is_small and direct and self.weights is not None:
            with torch.set_grad_enabled(weight.numel() <= TINY and torch.is_grad_enabled()):
                merged = torch.baddbmm(self.weights.whole.flatten(2), up, down).unbind(0)
        downs = down.unflatten(0, (-1, k)).flatten(1, 2).unbind(0)
        ups = [up.transpose(1, 2)] if self.argument and k > 1 else _beside_each_other(up, k).unbind(0)
        values = [PassValues(*one) for one in zip(downs, ups, merged, strict=k == 1)]
        weights: Sequence[Tensor | None] = [None] * len(self.units)
        if k > 1 and direct and self.weights is not None:
            weights = self.weights.whole.unflatten(0, (-1, k)).unbind(0)
        of_unit = self.k // k
        for number, (unit, own) in enumerate(zip(self.units, weights, strict=True)):
            unit.set(values[number * of_unit : (number + 1) * of_unit], direct=direct, weight=own)


def _beside_each_other(up: Tensor, k: int) -> Tensor:
    """[n * k, out, r] -> [n, k * r, k * out] with zeros where a layer would meet another's ranks."""
    if k > 1:
        own = torch.eye(k, dtype=up.dtype, device=up.device)[:, None, :, None]
        up = (up.unflatten(0, (-1, k))[:, :, :, None] * own).flatten(3).flatten(1, 2)
    return up.transpose(1, 2)


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


def speed_up(part: nn.Module, layers: Sequence[PlainLayer], together: Sequence[SameInput]) -> list[Stack]:
    """Give layers that PEFT put in their fast passes, and the stacks of their factors."""
    groups: dict[tuple[object, ...], list[list[PlainLayer]]] = {}
    for of_unit, argument in _units(layers, together):
        groups.setdefault((argument, len(of_unit), *of_unit[0].likeness), []).append(of_unit)
    made = [LoraStack(units, str(argument)) for (argument, *_), units in groups.items()]
    places = {name: place for place, name in enumerate(signature(part.forward).parameters)}

    def begin(_: object = None, given: Sequence[Any] = (), named: Mapping[str, Any] = NOTHING) -> None:
        if layers[0].module._disable_adapters:
            return
        renew(made)
        for group in made if given or named else ():
            if group.argument:
                given_there = given[places[group.argument] :][:1]
                group.units[0].give(named[group.argument] if group.argument in named else given_there[0])

    part.register_forward_pre_hook(begin, with_kwargs=True)
    for group in made:
        for unit in group.units:
            unit.begin = begin
    return [stack for group in made for stack in group.stacks]


def _units(
    layers: Sequence[PlainLayer], together: Sequence[SameInput]
) -> Iterator[tuple[list[PlainLayer], str]]:
    """Layers that are computed together, as far as they are alike, and the argument that they get."""
    by_path = {layer.path: layer for layer in layers}
    for layer in layers:
        if layer.path not in by_path:  # with one before it
            continue
        unit, argument = [by_path.pop(layer.path)], ""
        for same in together if layer.is_direct else ():
            ending = next((one for one in same.endings if _ends(layer.path, one)), None)
            if ending is None:
                continue
            argument, before = same.argument, layer.path.removesuffix(ending)
            paths = [path for path in by_path if any(_ends(path, one) for one in same.endings)]
            if not argument:
                paths = [path for path in paths if path in {before + one for one in same.endings}]
            unit += [by_path.pop(path) for path in paths if by_path[path].likeness == layer.likeness]
        yield unit, argument


def _ends(path: str, ending: str) -> bool:
    return path.removesuffix(ending)[-1:] in ("", ".") and path.endswith(ending)


def inject_plain(part: nn.Module, ranks: Mapping[str, int]) -> None:
    """LoRA and nothing else in the layers at these paths: PEFT's."""
    usual = next(iter(ranks.values()))
    special = {f"^{re.escape(path)}$": rank for path, rank in ranks.items() if rank != usual}
    config = LoraConfig(r=usual, lora_alpha=usual, target_modules=[*ranks], rank_pattern=special, bias="none")
    with without_bitsandbytes():
        inject_adapter_in_model(config, part, adapter_name=NAME)
