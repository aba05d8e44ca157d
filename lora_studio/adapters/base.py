"""All adapters of a run: injected by PEFT, named canonically, switchable; the base weights never change."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from peft import inject_adapter_in_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from lora_studio.adapters import ADAPTERS
from lora_studio.adapters.fast import make_fast
from lora_studio.errors import CheckpointError
from lora_studio.rng import generator

NAME = "studio"  # PEFT's name for our adapter


@dataclass(frozen=True)
class AdapterOptions:
    """What is injected: a kind of the table, its rank and alpha, and the seed of its first values."""

    kind: str
    rank: int
    alpha: float
    seed: int


@dataclass(frozen=True)
class Layer:
    """One adapted layer. `down` is PEFT's lora_A [r, in] (or [r, in, k, k]), `up` its lora_B [out, r]."""

    part: str
    path: str  # canonical
    module: BaseTunerLayer
    down: nn.Parameter
    up: nn.Parameter
    scale: float  # alpha / rank

    @property
    def name(self) -> str:
        """`<part>.<path>`: the canonical key without its tensor."""
        return f"{self.part}.{self.path}"

    def delta(self) -> Tensor:
        """The layer's weight change in float32, in the shape of its weight."""
        change = self.up.detach().float().flatten(1) @ self.down.detach().float().flatten(1)
        return self.scale * change.view(self.up.shape[0], *self.down.shape[1:])


class AdapterSet:
    """The adapters of every adapted part, by their layers."""

    def __init__(self, layers: list[Layer], options: AdapterOptions) -> None:
        self.layers, self.options = layers, options

    def parameters(self, part: str) -> list[nn.Parameter]:
        """The trainable tensors of one part, in the layers' order."""
        return [tensor for layer in self.layers if layer.part == part for tensor in (layer.down, layer.up)]

    @property
    def parts(self) -> list[str]:
        """The parts that have adapters."""
        return list(dict.fromkeys(layer.part for layer in self.layers))

    @property
    def num_parameters(self) -> int:
        """How many numbers are trained."""
        return sum(layer.down.numel() + layer.up.numel() for layer in self.layers)

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """Within it the model is the base."""
        for layer in self.layers:
            layer.module.enable_adapters(False)
        try:
            yield
        finally:
            for layer in self.layers:
                layer.module.enable_adapters(True)

    def delta(self) -> dict[str, Tensor]:
        """Canonical layer name -> its weight change, float32."""
        return {layer.name: layer.delta() for layer in self.layers}

    def named_parameters(self) -> dict[str, nn.Parameter]:
        """Every trained tensor by its canonical key, `<part>.<path>.down` or `.up`."""
        return {f"{layer.name}.{end}": getattr(layer, end) for layer in self.layers for end in ("down", "up")}

    def state(self) -> dict[str, Tensor]:
        """Copies of all trained tensors: `<part>.<path>.down` and `.up`, float32 on the CPU."""
        return {key: tensor.detach().float().cpu().clone() for key, tensor in self.named_parameters().items()}

    def load(self, state: dict[str, Tensor]) -> None:
        """Put a `state()` back; raises CheckpointError when its keys or shapes are not these adapters'."""
        own = self.named_parameters()
        check_fit(own, state)
        with torch.no_grad():
            for key, parameter in own.items():
                parameter.copy_(state[key])


def check_fit(own: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> None:
    """Raise CheckpointError when the keys or shapes of `state` are not those of `own`."""
    wrong = sorted(own.keys() ^ state.keys())
    wrong += [key for key in own.keys() & state.keys() if own[key].shape != state[key].shape]
    if wrong:
        raise CheckpointError(
            f"the checkpoint does not fit these adapters: {len(wrong)} tensors differ, first {wrong[0]}; "
            "resume with the recipe that made it."
        )


def target_paths(module: nn.Module, endings: tuple[str, ...]) -> list[str]:
    """Paths of the linear and convolutional layers that end in one of `endings`, in the model's order."""
    return [
        path
        for path, child in module.named_modules()
        if isinstance(child, nn.Linear | nn.Conv2d)
        and any(path == e or path.endswith(f".{e}") for e in endings)
    ]


def inject(
    parts: dict[str, nn.Module],
    targets: dict[str, tuple[str, ...]],
    options: AdapterOptions,
    *,
    canonical_path: Callable[[str, str], str],
) -> AdapterSet:
    """Put adapters of one kind into the target layers of the given parts, and give them keyed first values.

    The adapters are float32 whatever the base's dtype, so that small updates are not rounded away.
    """
    configuration = ADAPTERS[options.kind]
    layers: list[Layer] = []
    for part, endings in targets.items():
        paths = target_paths(parts[part], endings)
        inject_adapter_in_model(
            configuration(options.rank, options.alpha, paths), parts[part], adapter_name=NAME
        )
        for path in paths:
            module: BaseTunerLayer = parts[part].get_submodule(path)
            make_fast(module, NAME)
            down, up = module.lora_A[NAME].weight, module.lora_B[NAME].weight
            scale = options.alpha / options.rank
            layers.append(Layer(part, canonical_path(part, path), module, down, up, scale))
    for layer in layers:
        _start(layer, options.seed)
    return AdapterSet(layers, options)


def _start(layer: Layer, seed: int) -> None:
    """`down` uniform within 1/sqrt(in), as PEFT's kaiming start, but keyed by the layer's name; `up` zero."""
    layer.down.data, layer.up.data = layer.down.data.float(), layer.up.data.float()
    if layer.down.is_meta:
        return
    bound = 1 / math.sqrt(layer.down[0].numel())
    values = torch.rand(layer.down.shape, generator=generator(seed, "adapter", layer.name))
    with torch.no_grad():
        layer.down.copy_((2 * values - 1) * bound)
        layer.up.zero_()
