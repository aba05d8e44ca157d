"""The caches of a run: which VAE they stand for, in which precision it works, and how much they keep."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from lora_studio.data.cache.encode import ImageEncoders, LatentCache
from lora_studio.data.cache.latents import Latents
from lora_studio.data.manifest import Record
from lora_studio.errors import preview_names
from lora_studio.families.base import ModelFamily
from lora_studio.files import cache_folder
from lora_studio.processes import ALONE, Processes
from lora_studio.training.events import Listener, Note, progress

GIGABYTE = 10**9
BATCH_PIXELS = 2**20  # on a GPU: four images of 512x512 at a time, or one of 1024x1024


def latent_cache(family: ModelFamily, vae_dtype: torch.dtype, device: torch.device) -> LatentCache:
    """The cache of what this VAE says in this precision."""
    precision = "" if vae_dtype == torch.float32 else f" in {vae_dtype}"
    batch_pixels = 0 if device.type == "cpu" else BATCH_PIXELS
    fingerprint = family.fingerprint("vae") + precision
    return LatentCache(cache_folder() / "latents", fingerprint, batch_pixels=batch_pixels)


def encode_images(
    cache: LatentCache,
    records: Sequence[Record],
    family: ModelFamily,
    vae_dtype: torch.dtype,
    *,
    memory_gb: float,
    listener: Listener,
    processes: Processes = ALONE,
) -> Latents:
    """The latents of the records; those that needed float32 are named in a note.

    Of several processes each encodes some. What it then does not find, because the others are on another
    machine with a cache of its own, it encodes, too.
    """
    encoders, on_progress = image_encoders(family, vae_dtype), progress(listener, "latents")

    def encode(some_records: Sequence[Record], memory_bytes: int) -> Latents:
        return cache.load_or_encode(
            some_records, encoders, memory_bytes=memory_bytes, on_progress=on_progress
        )

    if processes.count > 1:
        processes.each(lambda: len(encode(records[processes.rank :: processes.count], 0)))
    latents = encode(records, round(memory_gb * GIGABYTE))
    retried = processes.each(lambda: cache.retried)
    if found := list(dict.fromkeys(name for names in retried for name in names)):
        names, dtype = preview_names(found), str(vae_dtype).removeprefix("torch.")
        listener(Note(f"the VAE gave NaN in {dtype} for {names}: encoded again in float32"))
    return latents


def image_encoders(family: ModelFamily, vae_dtype: torch.dtype) -> ImageEncoders:
    """The family's VAE, whose weights stay in float32 whatever it computes in, so that a retry is exact."""
    if vae_dtype == torch.float32:
        return ImageEncoders(family.encode_image)
    return ImageEncoders(_under_autocast(family, vae_dtype), in_float32=family.encode_image)


def _under_autocast(family: ModelFamily, dtype: torch.dtype) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    def encode(pixels: Tensor) -> tuple[Tensor, Tensor]:
        with torch.autocast(family.device.type, dtype):
            return family.encode_image(pixels)

    return encode
