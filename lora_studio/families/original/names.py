"""Which tensor of the file becomes which of a part in diffusers' layout, and what is left over or missing.

The names are diffusers' business: its conversion functions are run on a stand-in of one number for each
tensor, and where a number comes out says what its tensor becomes. The weights can then be read one by one.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from lora_studio.families.original import UNET_PREFIX, VAE_PREFIX, BaseKind, Shapes, TextEncoder
from lora_studio.families.original.configurations import num_layers

if TYPE_CHECKING:
    from torch import Tensor

_JOINED = (".in_proj_weight", ".in_proj_bias")  # OpenCLIP's q, k and v, one below the other


@dataclass(frozen=True)
class TensorOrigin:
    """Where a tensor lies in the file, and what is done to it."""

    name: str
    third: int | None = None  # of q, k and v
    transposed: bool = False

    def shape(self, shapes: Shapes) -> tuple[int, ...]:
        shape = shapes[self.name]
        if self.third is not None:
            return (shape[0] // 3, *shape[1:])
        return shape[::-1] if self.transposed else shape

    def take(self, tensor: Tensor) -> Tensor:
        """The file's tensor -> what the part wants of it."""
        if self.third is not None:
            return tensor.chunk(3)[self.third]
        return tensor.T if self.transposed else tensor


def origins(
    kind: BaseKind, shapes: Shapes, configurations: Mapping[str, dict[str, Any]]
) -> dict[str, dict[str, TensorOrigin]]:
    """Part -> its tensors' names in diffusers' layout -> where they lie."""
    from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint, convert_ldm_vae_checkpoint

    parts = {
        "unet": (UNET_PREFIX, lambda tensors: convert_ldm_unet_checkpoint(tensors, configurations["unet"])),
        "vae": (VAE_PREFIX, lambda tensors: convert_ldm_vae_checkpoint(tensors, configurations["vae"])),
    }
    found = {}
    for part, (prefix, convert) in parts.items():
        found[part] = _origins([key for key in shapes if key.startswith(prefix)], shapes, convert)
    for encoder in kind.text_encoders:
        found[encoder.part] = _text_origins(encoder, shapes)
    return found


def _text_origins(encoder: TextEncoder, shapes: Shapes) -> dict[str, TensorOrigin]:
    """Without the layers that are not asked; `text_model.` as the installed class has it."""
    from diffusers.loaders.single_file_utils import convert_ldm_clip_checkpoint, convert_open_clip_checkpoint

    names = [key for key in shapes if key.startswith(encoder.prefix) and not _unasked(encoder, shapes, key)]
    if not encoder.open_clip:
        found = _origins(names, shapes, convert_ldm_clip_checkpoint)
    else:
        narrow = SimpleNamespace(config=SimpleNamespace(hidden_size=1))  # as wide as the stand-ins
        found = _origins(
            names, shapes, lambda tensors: convert_open_clip_checkpoint(narrow, tensors, encoder.prefix)
        )
    if encoder.projects:
        return found
    return {key.removeprefix("text_model."): origin for key, origin in found.items()}


def _origins(names: Iterable[str], shapes: Shapes, convert: Any) -> dict[str, TensorOrigin]:
    import torch

    names = list(names)
    stand_ins = {}
    for number, name in enumerate(names):
        rank = len(shapes[name])
        sides = (3, *(1,) * (rank - 1)) if name.endswith(_JOINED) else (1,) * rank
        stand_ins[name] = torch.full(sides, number)
    found = {}
    for key, stand_in in convert(stand_ins).items():
        name = names[int(stand_in.flatten()[0])]
        third = "qkv".index(key.split(".")[-2][0]) if name.endswith(_JOINED) else None
        found[key] = TensorOrigin(name, third, transposed=name.endswith(".text_projection"))
    return found


def _unasked(encoder: TextEncoder, shapes: Shapes, name: str) -> bool:
    """Whether a tensor belongs to what the file's text encoder has beyond the base's."""
    if not encoder.drops_last:
        return False
    layer = re.match(rf"{re.escape(encoder.prefix)}transformer\.resblocks\.(\d+)\.", name)
    if layer:
        return num_layers(shapes, encoder) == int(layer[1])
    return name == f"{encoder.prefix}text_projection"


# What a file may hold beside its parts; all else that is not used is an error.
_EMA = re.compile(r"^(first_stage_model\.)?model_ema\.")
_LEFTOVERS = re.compile(
    r"^(betas|alphas_cumprod(_prev)?|sqrt_\w+|log_one_minus_\w+|posterior_\w+|logvar|lvlb_weights|global_step"
    r"|v_pred|ztsnr|denoiser\.\w+|first_stage_model\.loss\..*"
    r"|(cond_stage_model|conditioner)\..*(position_ids|logit_scale|attn_mask)"
    r"|(cond_stage_model|conditioner\.embedders\.0)\.(transformer\.)?text_projection(\.weight)?)$"
)


def sort_rest(kind: BaseKind, shapes: Shapes, used: set[str]) -> tuple[list[str], list[str], list[str]]:
    """Names that no part uses: averaged weights, harmless leftovers, and what should not be there."""
    averaged: list[str] = []
    harmless: list[str] = []
    unexpected: list[str] = []
    for name in shapes:
        if name in used:
            continue
        if _EMA.match(name):
            averaged.append(name)
        elif _LEFTOVERS.match(name) or any(_unasked(e, shapes, name) for e in kind.text_encoders):
            harmless.append(name)
        else:
            unexpected.append(name)
    return averaged, harmless, unexpected
