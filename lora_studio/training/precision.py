"""The precision in which the frozen base draws pictures."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lora_studio.families.base import ModelFamily

if TYPE_CHECKING:
    from diffusers import AutoencoderKL


@contextmanager
def in_its_precision(family: ModelFamily) -> Iterator[None]:
    """What a pipeline runs in: its VAE's weights are float32, the other parts have the base's precision."""
    dtype = family.precision
    autocast = torch.autocast(family.device.type, dtype, enabled=dtype != torch.float32)
    with autocast, _decoding_in_float32(family) if dtype == torch.float16 else nullcontext():
        yield


@contextmanager
def _decoding_in_float32(family: ModelFamily) -> Iterator[None]:
    """SDXL's VAE overflows in float16 and gives black pictures."""
    vae: AutoencoderKL = family.parts["vae"]
    decode = vae.decode

    def in_float32(latents: Tensor, *arguments: object, **named: object) -> object:
        with torch.autocast(family.device.type, enabled=False):
            return decode(latents.float(), *arguments, **named)

    vae.decode = in_float32
    try:
        yield
    finally:
        del vae.decode
