"""An adapter kind and a family that no release has: what adding one takes, for tests/test_adding.py."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from lora_studio.adapters.layer import NO_INPUTS, AdapterKind, ChangeInputs, Draws, Layer
from lora_studio.families.base import FileTraits
from lora_studio.families.unet import StableDiffusion15
from lora_studio.lora_file.kinds.base import LayerKind, Shapes, Tensors


class Gain(AdapterKind):
    """IA3 of outputs (arXiv 2205.05638): W' = diag(1 + scale * gain) W; `gain` [out], zero at first."""

    degree: ClassVar[int] = 1
    reads_weight: ClassVar[bool] = True

    def start(self, shape: torch.Size, rank: int, draws: Draws, weight: Tensor | None) -> dict[str, Tensor]:
        return {"gain": torch.zeros(shape[0])}

    def change(self, tensors: Tensors, scale: float, inputs: ChangeInputs = NO_INPUTS) -> Tensor:
        assert inputs.weight is not None
        return scale * tensors["gain"][:, None] * inputs.weight


class GainKind(LayerKind):
    """`gain` [out, 1], with the scale in it."""

    name: ClassVar[str] = "gain"
    endings: ClassVar[tuple[str, ...]] = ("gain",)
    beside: ClassVar[tuple[str, ...]] = ()
    required: ClassVar[tuple[tuple[str, ...], ...]] = (("gain",),)
    reads_weight: ClassVar[bool] = True
    tells_size: ClassVar[bool] = False
    written_by: ClassVar[Mapping[str, str]] = {"gain": "no UI was tried"}

    def size(self, shapes: Shapes) -> tuple[int, int] | None:
        return None

    def delta(self, tensors: Tensors, scale: float, weight: Tensor | None) -> Tensor:
        assert weight is not None
        return tensors["gain"].view(-1, *(1 for _ in weight.shape[1:])) * weight

    def spell(self, layer: Layer) -> dict[str, Tensor]:
        return {"gain": layer.tensors["gain"].detach()[:, None] * layer.scale}


GAIN, GAIN_FILE = Gain(), GainKind()


class Gelu(StableDiffusion15):
    """SD1 with another activation."""

    card_version = "GELU"
    file_traits: ClassVar[Mapping[str, FileTraits]] = {
        "epsilon": FileTraits("sd_v1_gelu", False, "stable-diffusion-v1-gelu/lora", "epsilon")
    }

    @classmethod
    def recognises(cls, configurations: dict[str, dict[str, object]]) -> bool:
        return configurations.get("unet", {}).get("act_fn") == "gelu"
