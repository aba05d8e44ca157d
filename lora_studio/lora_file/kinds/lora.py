"""LoRA, LoCon and, with `dora_scale`, DoRA: scale * up @ down, of a convolution maybe with a middle one."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from lora_studio.lora_file.kinds.base import (
    ALPHA,
    MAGNITUDE,
    Arrays,
    LayerKind,
    Shapes,
    Tensors,
    product_norm,
    root,
    rows,
)

if TYPE_CHECKING:
    from torch import Tensor

    from lora_studio.adapters.layer import Layer
    from lora_studio.lora_file.factors import PlainLora

DOWN, UP, MID = "lora_down.weight", "lora_up.weight", "lora_mid.weight"


class LoraKind(LayerKind):
    """`lora_down` [r, in] or [r, in, k, k], `lora_up` [out, r] or [out, r, 1, 1], `lora_mid` [r, r, k, k]."""

    name = "lora"
    endings = (DOWN, UP, MID)
    required = ((DOWN,), (UP,))
    counted = (DOWN,)
    written_by: ClassVar = {
        "lora": "",
        "locon": "",
        "dora": "A1111 and InvokeAI make garbage of it without a word, ComfyUI and Forge come within 2.5 %, "
        "stable-diffusion.cpp, diffusers and kohya leave out the magnitudes",
    }

    def size(self, shapes: Shapes) -> tuple[int, int] | None:
        """Whatever number of sides they have, as readers flatten them."""
        down, up, mid = shapes[DOWN], shapes[UP], shapes.get(MID)
        if len(down) < 2 or down[0] != up[1] or math.prod(up[2:]) != 1:
            return None
        if mid is not None and mid[:2] != (down[0], down[0]):
            return None
        return up[0], math.prod(down[1:]) * (math.prod(mid[2:]) if mid is not None else 1)

    def delta(self, tensors: Tensors, scale: float, weight: Tensor | None) -> Tensor:
        """scale * up @ down, in the shape of its weight."""
        down, up, scale, _ = self.low_rank(tensors, scale)
        change = up.flatten(1).float() @ down.flatten(1).float()
        return scale * change.view(up.shape[0], *down.shape[1:])

    def low_rank(self, tensors: Tensors, scale: float) -> PlainLora:
        """As it is; of a convolution in three parts the first two are made one, which is exact."""
        from lora_studio.lora_file.factors import PlainLora

        down, up = tensors[DOWN], tensors[UP]
        if MID in tensors:
            import torch

            down = torch.einsum("rshw,si->rihw", tensors[MID].float(), down.float().flatten(1))
        if down.ndim == 4 and up.ndim == 2:
            up = up[:, :, None, None]
        return PlainLora(down, up, scale)

    def norm(self, arrays: Arrays, shapes: Shapes) -> float | None:
        """Of `up @ down`, or of the Tucker form `up mid down`, without making the whole matrix."""
        up, down = arrays(UP), arrays(DOWN)
        if MID not in shapes:
            return product_norm(up, down)
        up, down, mid = rows(up), rows(down), arrays(MID)
        inner = mid.reshape(*mid.shape[:2], -1).astype(np.float64)  # [r, r, k * k]
        return root(np.einsum("ab,ack,bdk,cd->", up.T @ up, inner, inner, down @ down.T, optimize=True))

    def spell(self, layer: Layer) -> dict[str, Tensor]:
        """Plain LoRA; of DoRA with the magnitudes of the outputs, as in PEFT and LyCORIS 3.2."""
        import torch

        from lora_studio.lora_file.factors import as_plain, in_range

        if "magnitude" not in layer.tensors:
            plain, more = as_plain(layer), {}
            down, up, scale = plain.down, plain.up, plain.scale
        else:
            down, up, magnitude = (layer.tensors[end].detach() for end in ("down", "up", "magnitude"))
            scale, more = layer.scale, {MAGNITUDE: magnitude.view(-1, *(1,) * (layer.delta().ndim - 1))}
        down, up = in_range(*(one.detach().float().cpu() for one in (down, up)))
        return {DOWN: down, UP: up, ALPHA: torch.tensor(scale * len(down))} | more


LORA = LoraKind()
