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
from collections.abc import Iterator, Mapping, Sequence
from inspect import signature
from types import MappingProxyType
from typing import Any

import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor, nn

from lora_studio.adapters.layer import NAME
from lora_studio.adapters.lora_products import Copies
from lora_studio.adapters.lora_unit import TINY, PassValues, PlainLayer, Unit
from lora_studio.adapters.stack import Joined, Stack
from lora_studio.families.base import SameInput
from lora_studio.quiet import without_bitsandbytes

SMALL = 2**17  # numbers in a weight up to which it and its update are added up for a pass
NOTHING: Mapping[str, Any] = MappingProxyType({})


class LoraStack:
    """Units of one shape, whose factors are two stacks."""

    def __init__(self, units: Sequence[Sequence[PlainLayer]], argument: str) -> None:
        layers = [layer for unit in units for layer in unit]
        self.argument = argument
        self.first, self.k, self.scale = layers[0], len(units[0]), layers[0].options.scale
        self.stacks = tuple(Stack([getattr(one, end) for one in layers]) for end in ("down", "up"))
        self.units = [Unit(unit, argument) for unit in units]
        weight, self.direct = self.first.base.weight, self.first.is_direct  # as it is before any pass
        # Frozen weights that a pass reads in one: of all layers when it begins, else of a unit in its turn.
        at_once = bool(argument) or (weight.dtype == torch.float32 and weight.numel() <= SMALL)
        in_one = ([layers] if at_once else units) if self.direct and (at_once or self.k > 1) else []
        self.joined = [Joined([layer.base.weight for layer in some], at_once=at_once) for some in in_one]

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
        k = 1 if dtype == torch.float32 and not self.argument else self.k
        is_small = dtype == torch.float32 and weight.numel() <= SMALL
        is_tiny = is_small and weight.numel() <= TINY
        direct = self.direct and weight.dtype == dtype
        direct = direct and (weight.dim() == 2 or not is_small or is_tiny)
        merged: Sequence[Tensor | None] = [None] * len(down)
        if (is_tiny if self.argument else is_small) and direct:
            with torch.set_grad_enabled(is_tiny and torch.is_grad_enabled()):
                sums = torch.baddbmm(self.joined[0].whole.flatten(2), up, down)
            merged = [sums] if self.argument else sums.unbind(0)
        downs = down.unflatten(0, (-1, k)).flatten(1, 2).unbind(0)
        ups = [up.transpose(1, 2)] if self.argument else _beside_each_other(up, k).unbind(0)
        values = [PassValues(*one) for one in zip(downs, ups, merged, strict=len(merged) == len(downs))]
        weights: Sequence[Tensor | None] = [None] * len(self.units)
        if direct and self.argument:
            weights = self.joined[0].whole.unflatten(0, (-1, k)).unbind(0)
        elif direct and k > 1:
            weights = [one.whole for one in self.joined]  # as they are: they may have no memory yet
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


def speed_up(part: nn.Module, layers: Sequence[PlainLayer], together: Sequence[SameInput]) -> list[LoraStack]:
    """Give layers that PEFT put in their fast passes."""
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
    return made


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
