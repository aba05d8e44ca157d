"""Full fine-tuning: layers' own tensors are trained, in float32, and what the base has is kept beside them.

DreamBooth (arXiv 2208.12242) as it was, or of chosen layers. The module gets the trained tensor in place of
its own, which comes back while the model is to be the base: bit for bit, because nothing was done to it.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from lora_studio.adapters.kind import AdapterKind, Draws
from lora_studio.adapters.layer import Layer


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

    def start(
        self, shape: torch.Size, rank: int, draws: Draws, *, weight: Tensor | None
    ) -> dict[str, Tensor]:
        """The weight itself."""
        assert weight is not None
        return {"weight": weight.clone()}

    def change(
        self,
        tensors: Mapping[str, Tensor],
        scale: float,
        *,
        weight: Tensor | None = None,
        kept: Tensor | None = None,
    ) -> Tensor:
        """What was learned: the weight less the base's."""
        assert weight is not None
        return tensors["weight"].flatten(1) - weight


FULL = Full()


class SwappedParameters:
    """A module's trained tensors in place of its own; answers `Switched`.

    Its own stay where they lie, in main memory as a rule, and are copied to the device when they are asked
    for; `keep_on_device` leaves them there.
    """

    def __init__(self, module: nn.Module, trained: dict[str, nn.Parameter], *, keep_on_device: bool) -> None:
        self.module, self.trained, self._keep_on_device = module, trained, keep_on_device
        self._own: dict[str, nn.Parameter] = {}
        for end, tensor in trained.items():
            own = module._parameters[end]
            assert own is not None, end
            self._own[end] = own
            module._parameters[end] = tensor

    @property
    def own(self) -> Mapping[str, nn.Parameter]:
        """The base's values."""
        return self._own

    def get_base_layer(self) -> nn.Module:
        """The layer as the base has it."""
        base = copy.copy(self.module)
        base._parameters = {**self.module._parameters, **self._own}
        return base

    def enable_adapters(self, enabled: bool) -> None:
        """Whether the module has the trained tensors, or its own."""
        for end, tensor in self.trained.items():
            self.module._parameters[end] = tensor if enabled else self._beside(end, tensor.device)

    def _beside(self, end: str, device: torch.device) -> nn.Parameter:
        own = self._own[end]
        if own.device != device:
            own = nn.Parameter(own.detach().to(device), requires_grad=False)
            if self._keep_on_device:
                self._own[end] = own
        return own


@dataclass(frozen=True)
class OwnLayer(Layer):
    """A layer that is trained itself, or some of its tensors."""

    @property
    def originals(self) -> Mapping[str, Tensor]:
        """What the base has in place of the trained tensors."""
        own: Mapping[str, Tensor] = self.module.own
        return own

    def delta(self) -> Tensor:
        """Of its weight, if it has a trained one."""
        changes, name = self.changes(), f"{self.name}.weight"
        return changes[name] if name in changes else torch.zeros_like(self.module.module.weight)

    def changes(self) -> dict[str, Tensor]:
        """Every trained tensor's, in float32."""
        own = self.originals
        return {
            f"{self.name}.{end}": tensor.detach().float() - own[end].detach().to(tensor.device).float()
            for end, tensor in self.tensors.items()
        }

    def factors(self) -> None:
        """None: it may be of full rank."""
        return None
