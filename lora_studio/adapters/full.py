"""Full fine-tuning: layers' own tensors are trained, in float32, and what the base has is kept beside them.

DreamBooth (arXiv 2208.12242) as it was, or of chosen layers. The module gets the trained tensor in place of
its own, which comes back while the model is to be the base: bit for bit, because nothing was done to it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from lora_studio.adapters.adapter_set import AdapterSet
from lora_studio.adapters.layer import NO_INPUTS, AdapterKind, ChangeInputs, Draws, Layer, Tensors
from lora_studio.adapters.rules import AdapterOptions, LayerOptions, check_rules, tensor_options
from lora_studio.quantization import has_tensors, layer_paths


class Full(AdapterKind):
    """`weight`, `bias` and whatever else a layer has; they begin as the base has them."""

    degree: ClassVar[int] = 1
    reads_weight: ClassVar[bool] = True
    trains_layers: ClassVar[bool] = True
    unused: ClassVar[frozenset[str]] = frozenset(
        {
            *("rank", "alpha", "rslora", "conv", "conv_rank", "conv_alpha", "start"),
            *("lora_plus_ratio", "rank_dropout", "module_dropout", "max_norm"),
        }
    )

    def start(self, shape: torch.Size, rank: int, draws: Draws, weight: Tensor | None) -> dict[str, Tensor]:
        assert weight is not None
        return {"weight": weight.clone()}

    def change(self, tensors: Tensors, scale: float, inputs: ChangeInputs = NO_INPUTS) -> Tensor:
        assert inputs.weight is not None
        return tensors["weight"].flatten(1) - inputs.weight


FULL = Full()


class SwappedParameters:
    """A module's trained tensors in place of its own; a `Toggleable`.

    Its own stay where they lie, in main memory as a rule, and are copied to the device when they are asked
    for; `keep_on_device` leaves them there.
    """

    def __init__(self, module: nn.Module, trained: dict[str, nn.Parameter], *, keep_on_device: bool) -> None:
        self.module, self.trained, self._keep_on_device = module, trained, keep_on_device
        self.own: dict[str, nn.Parameter] = {}
        for end, tensor in trained.items():
            own = module._parameters[end]
            assert own is not None, end
            self.own[end] = own
            module._parameters[end] = tensor

    def get_base_layer(self) -> nn.Module:
        base = copy.copy(self.module)
        base._parameters = {**self.module._parameters, **self.own}
        return base

    def enable_adapters(self, enabled: bool) -> None:
        """Whether the module has the trained tensors, or its own."""
        for end, tensor in self.trained.items():
            self.module._parameters[end] = tensor if enabled else self._beside(end, tensor.device)

    def _beside(self, end: str, device: torch.device) -> nn.Parameter:
        own = self.own[end]
        if own.device != device:
            own = nn.Parameter(own.detach().to(device), requires_grad=False)
            if self._keep_on_device:
                self.own[end] = own
        return own


@dataclass(frozen=True)
class OwnLayer(Layer):
    """A layer that is trained itself, or some of its tensors."""

    @property
    def originals(self) -> Mapping[str, Tensor]:
        own: Mapping[str, Tensor] = self.module.own
        return own

    def delta(self) -> Tensor:
        changes, name = self.changes(), f"{self.name}.weight"
        return changes[name] if name in changes else torch.zeros_like(self.module.module.weight)

    def changes(self) -> dict[str, Tensor]:
        """Canonical name -> what was learned, in float32: the tensor now less what the base has."""
        own = self.originals
        return {
            f"{self.name}.{end}": tensor.detach().float() - own[end].detach().to(tensor.device).float()
            for end, tensor in self.tensors.items()
        }

    def factors(self) -> None:
        return None


Parts = Mapping[str, nn.Module]
Targets = Mapping[str, tuple[str, ...]]  # part -> endings of the paths of its layers
CanonicalPath = Callable[[str, str], str]  # of a part and a path in it


class TensorPlace(NamedTuple):
    """A tensor of a part, or a whole layer that adapters stand beside."""

    part: str
    path: str  # of its module
    end: str = ""  # the tensor's name in it; empty: all of the layer


class Chosen(dict[TensorPlace, LayerOptions]):
    """The tensors or layers that learn, and how each."""

    @property
    def layers(self) -> dict[tuple[str, str], LayerOptions]:
        """The layers that have some; of several ways in one layer the first."""
        found: dict[tuple[str, str], LayerOptions] = {}
        for place, one in self.items():
            found.setdefault((place.part, place.path), one)
        return found


def choose_tensors(
    parts: Parts, targets: Targets, options: AdapterOptions, *, canonical_path: CanonicalPath
) -> Chosen:
    """What is trained by the rules, of layers or `<layer>.<tensor>`; RecipeError if one matches nothing."""
    places = list(_places(parts, targets))
    named = [(place.part, canonical_path(place.part, place.path), place.end) for place in places]
    ways = [tensor_options(*name, options) for name in named]
    trained = Chosen({place: one for place, one in zip(places, ways, strict=True) if one is not None})
    layers = list(dict.fromkeys((part, path) for part, path, _ in named))
    inside = [(part, f"{path}.{end}") for part, path, end in named]
    check_rules(options, layers, sum(one.last_step is None for one in trained.values()), inside=inside)
    return trained


def _places(parts: Parts, targets: Targets) -> Iterator[TensorPlace]:
    for part, endings in targets.items():
        for path in layer_paths(parts[part], endings, has_tensors):
            for end, tensor in parts[part].get_submodule(path)._parameters.items():
                if tensor is not None:
                    yield TensorPlace(part, path, end)


def exact_values(
    exact: Callable[[str, Sequence[str]], Mapping[str, Tensor]], chosen: Chosen
) -> dict[TensorPlace, Tensor]:
    """The chosen tensors, of which `exact` says by part and names what they are in float32."""
    found: dict[TensorPlace, Tensor] = {}
    for part in dict.fromkeys(place.part for place in chosen):
        places = {f"{place.path}.{place.end}": place for place in chosen if place.part == part}
        found |= {places[name]: tensor for name, tensor in exact(part, [*places]).items()}
    return found


def train_tensors(
    parts: Parts,
    chosen: Chosen,
    options: AdapterOptions,
    *,
    canonical_path: CanonicalPath,
    exact: Mapping[TensorPlace, Tensor],
) -> AdapterSet:
    """Put float32 copies of the chosen tensors in their places; of `exact` instead, as far as it has them."""
    grouped: dict[tuple[str, str, LayerOptions], dict[str, nn.Parameter]] = {}
    for place, one in chosen.items():
        own = _parameter(parts, place)
        value = torch.empty_like(own, dtype=torch.float32).copy_(exact.get(place, own.detach()))
        grouped.setdefault((place.part, place.path, one), {})[place.end] = nn.Parameter(value)
    layers: list[Layer] = []
    for (part, path, one), tensors in grouped.items():
        module = parts[part].get_submodule(path)
        swapped = SwappedParameters(module, tensors, keep_on_device=options.keep_base_on_device)
        layers.append(OwnLayer(part, canonical_path(part, path), swapped, tensors, FULL, *one))
    trained = dict.fromkeys(place.part for place in chosen)
    return AdapterSet(
        layers, options, beside=[one for part in trained for one in _in_float32(parts[part], options)]
    )


def _in_float32(part: nn.Module, options: AdapterOptions) -> list[SwappedParameters]:
    """Frozen normalisations exchanged for float32 ones, which a CPU needs; on a GPU autocast does that."""
    found = []
    for module in part.modules():
        own = module._parameters if isinstance(module, nn.LayerNorm | nn.GroupNorm) else {}
        low = {end: one for end, one in own.items() if one is not None and one.dtype != torch.float32}
        wide = {end: nn.Parameter(one.detach().float(), requires_grad=False) for end, one in low.items()}
        if wide:
            found.append(SwappedParameters(module, wide, keep_on_device=options.keep_base_on_device))
    return found


def _parameter(parts: Parts, place: TensorPlace) -> nn.Parameter:
    return parts[place.part].get_submodule(place.path).get_parameter(place.end)
