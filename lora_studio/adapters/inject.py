"""Adapters are put into a base here; what they are then is an `AdapterSet`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from lora_studio.adapters import ADAPTERS
from lora_studio.adapters.adapter_set import AdapterSet
from lora_studio.adapters.full import (
    CanonicalPath,
    Chosen,
    Parts,
    Targets,
    TensorPlace,
    choose_tensors,
    train_tensors,
)
from lora_studio.adapters.layer import NAME, Adapted, Layer, shape_of
from lora_studio.adapters.lora import Lora, principal
from lora_studio.adapters.rules import (
    AdapterOptions,
    LayerOptions,
    LayerPlace,
    check_options,
    check_rules,
    layer_options,
)
from lora_studio.errors import RecipeError
from lora_studio.families.base import SameInput
from lora_studio.quantization import layer_paths
from lora_studio.quiet import bitsandbytes_on_demand
from lora_studio.rng import generator

if TYPE_CHECKING:
    from lora_studio.adapters.fast_lora import LoraStack

Together = Mapping[str, Sequence[SameInput]]


def target_paths(module: nn.Module, endings: tuple[str, ...]) -> list[str]:
    """Paths of the linear and convolutional layers that end in one of `endings`, in the model's order."""
    return layer_paths(module, endings, lambda layer: isinstance(layer, nn.Linear | nn.Conv2d))


def choose_layers(
    parts: Parts, targets: Targets, options: AdapterOptions, *, canonical_path: CanonicalPath
) -> Chosen:
    """What is trained of the target layers, and how each, by the rules; nothing is touched.

    Raises RecipeError for options that do not go with the kind, and rules that match nothing.
    """
    check_options(options)
    if ADAPTERS[options.kind].trains_layers:
        return choose_tensors(parts, targets, options, canonical_path=canonical_path)
    found: dict[tuple[str, str], LayerOptions | None] = {
        (part, path): layer_options(
            part, canonical_path(part, path), parts[part].get_submodule(path), options
        )
        for part, endings in targets.items()
        for path in target_paths(parts[part], endings)
    }
    trained = {place: one for place, one in found.items() if one is not None}
    names = [(part, canonical_path(part, path)) for part, path in found]
    check_rules(options, names, sum(one.last_step is None for one in trained.values()))
    return Chosen({TensorPlace(*place): one for place, one in trained.items()})


def inject(
    parts: Parts,
    targets: Targets,
    options: AdapterOptions,
    *,
    canonical_path: CanonicalPath,
    together: Together = MappingProxyType({}),
) -> AdapterSet:
    """Choose the layers of the given parts, and put adapters into them. Raises RecipeError as that does."""
    chosen = choose_layers(parts, targets, options, canonical_path=canonical_path)
    return inject_chosen(parts, chosen, options, canonical_path=canonical_path, together=together)


def inject_chosen(
    parts: Parts,
    chosen: Chosen,
    options: AdapterOptions,
    *,
    canonical_path: CanonicalPath,
    exact: Mapping[TensorPlace, Tensor] = MappingProxyType({}),
    together: Together = MappingProxyType({}),
) -> AdapterSet:
    """Put adapters of one kind into the layers that `choose_layers` chose, and give them keyed first values.

    The adapters are float32 whatever the base's dtype, so that small updates are not rounded away. `exact`:
    what layers that are trained themselves begin with, where the base has lost digits since. `together`: part
    -> which of its layers get the same input.
    """
    kind = ADAPTERS[options.kind]
    if kind.trains_layers:
        return train_tensors(parts, chosen, options, canonical_path=canonical_path, exact=exact)
    is_plain, trained = isinstance(kind, Lora) and options.is_plain, chosen.layers
    adapted = dict.fromkeys(part for part, _ in trained) if is_plain else {}
    for part in adapted:
        bitsandbytes_on_demand()
        from lora_studio.adapters.fast_lora import inject_plain  # PEFT takes seconds to import

        inject_plain(parts[part], {path: one.rank for (of, path), one in trained.items() if of == part})
    make = _pefts_layer if is_plain else _own_layer
    layers = []
    for (part, path), one in trained.items():
        place = part, canonical_path(part, path)
        module, tensors = make(parts[part], place, path, one, options)
        layers.append(Layer(part, place[1], module, tensors, kind, *one))
    fast = [one for part in adapted for one in _speed_up(parts, part, chosen, together)]
    return AdapterSet(
        layers,
        options,
        stacks=[stack for one in fast for stack in one.stacks],
        joined=[weights for one in fast for weights in one.joined],
    )


def _speed_up(parts: Parts, part: str, chosen: Chosen, together: Together) -> list[LoraStack]:
    """Its layers that PEFT made get our passes."""
    from lora_studio.adapters.fast_lora import speed_up
    from lora_studio.adapters.lora_unit import PlainLayer

    layers = [
        PlainLayer(path, parts[part].get_submodule(path), one)
        for (of, path), one in chosen.layers.items()
        if of == part
    ]
    return speed_up(parts[part], layers, together.get(part, ()))


Made = tuple[Any, dict[str, nn.Parameter]]  # an adapted layer's module, and its trained tensors


def _pefts_layer(
    part: nn.Module, place: LayerPlace, path: str, one: LayerOptions, options: AdapterOptions
) -> Made:
    """Of PEFT's layer, whose tensors get our first values."""
    module: Any = part.get_submodule(path)
    module.scaling[NAME] = one.scale
    tensors = {"down": module.lora_A[NAME].weight, "up": module.lora_B[NAME].weight}
    first = _first_values(place, module.get_base_layer(), one, options)
    for end, tensor in tensors.items():
        tensor.data = tensor.data.float()
        if not tensor.is_meta:
            tensor.data.copy_(first[end])
    return module, tensors


def _own_layer(
    part: nn.Module, place: LayerPlace, path: str, one: LayerOptions, options: AdapterOptions
) -> Made:
    """Of our own, in place of the frozen one."""
    base: Any = part.get_submodule(path)
    values = _first_values(place, base, one, options)
    tensors = {end: value.to(base.weight.device) for end, value in values.items()}
    module = Adapted(base, ADAPTERS[options.kind], tensors, one.scale)
    above, _, name = path.rpartition(".")
    setattr(part.get_submodule(above), name, module)
    return module, dict(getattr(module, NAME).items())


def _first_values(
    place: LayerPlace, base: nn.Module, one: LayerOptions, options: AdapterOptions
) -> dict[str, Tensor]:
    """Keyed by the layer's name, so that they depend on nothing else; float32, on the CPU."""
    kind, name, shape = ADAPTERS[options.kind], ".".join(place), shape_of(base)

    def draws(end: str) -> torch.Generator:
        keys = (name,) if end == "down" else (name, end)
        return generator(options.seed, "adapter", *keys)

    weight = None
    if kind.reads_weight or options.start == "pissa":
        weight = _readable(base, name, options).detach().cpu().float()
    if options.start == "pissa" and weight is not None and not weight.is_meta:
        return principal(weight, one.rank, one.scale, draws("pissa"))
    return kind.start(shape, one.rank, draws, weight)


def _readable(base: nn.Module, name: str, options: AdapterOptions) -> Tensor:
    weight: Tensor = base.weight  # type: ignore[assignment]
    if (
        is_traceable_wrapper_subclass(weight.data)
        or not weight.is_floating_point()
        or weight.shape != shape_of(base)
    ):
        raise RecipeError(
            f"adapter.kind {options.kind!r} with adapter.start {options.start!r} reads the frozen weights, "
            f"but that of {name} is quantised or spread over processes; take the kind 'lora' with its "
            "default start, or the base as it is."
        )
    return weight
