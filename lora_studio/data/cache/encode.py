"""Latents and text conditioning on disk, under names made of what they depend on.

Editing an image or caption, or taking another VAE or text encoder, changes the name, so there is nothing to
invalidate. What an entry holds must not depend on what was cached before, or a run would no longer repeat
exactly, and in a batch the last bits depend on its size (3e-7 measured on a CPU). So captions are encoded one
at a time, and images in batches of a size that their bucket decides, the last one filled up with copies of
its last image: at one size a row's bits do not depend on the other rows (a test sees to that).

On a CPU images are encoded one by one: on two cores (benchmarks/results/dataset.json) batches of four are
slower at 512x512 (1.0 images a second instead of 1.2), and twice as fast at 64x64, where an image takes 15 ms
anyway. A GPU, which one small image does not fill, gets batches of a megapixel (not measured).
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from lora_studio.data.batches import cut_by_bucket
from lora_studio.data.cache.store import Latent, Latents, TensorStore, load_latent
from lora_studio.data.images.decode import framed, reopen
from lora_studio.data.images.threads import in_threads
from lora_studio.data.manifest import Record
from lora_studio.errors import DatasetError, preview_names

_FORMAT = 3  # raise it when pixels or files are made differently

ImageEncoder = Callable[[Tensor], tuple[Tensor, Tensor]]  # [B, 3, H, W] in -1..1 -> mean, std [B, C, h, w]
TextEncoder = Callable[[list[str]], dict[str, Tensor]]
OnProgress = Callable[[int, int], None]  # entries encoded, entries to encode


class LatentCache:
    """Latents of images for one VAE, whose weights and precision `fingerprint` names.

    As many images of a bucket as have `batch_pixels` altogether are encoded in one batch; at least one.
    """

    def __init__(self, folder: Path, fingerprint: str, *, batch_pixels: int = 0) -> None:
        self._store, self._fingerprint, self._batch_pixels = TensorStore(folder), fingerprint, batch_pixels
        self.ready = ReadyPixels(lambda record: None if self._store.has(key := self.key(record)) else key)
        self.encoded = 0
        self.retried: list[str] = []  # names of the images that took float32

    def key(self, record: Record) -> str:
        assert record.bucket is not None, record.name
        place = [record.bucket.name, record.resize, record.crop, record.flip]
        return _hash("latent", record.sha256, record.background, place, self._fingerprint)

    def load_or_encode(
        self,
        records: Sequence[Record],
        encode: ImageEncoder,
        *,
        in_float32: ImageEncoder | None = None,
        memory_bytes: int | None = None,
        on_progress: OnProgress | None = None,
    ) -> Latents:
        """The latents of the records, in their order, on the CPU; only those not in the cache are encoded.

        `in_float32` is tried where `encode` gives NaN; None if it is that already. Raises DatasetError that
        names all images for which neither gives finite values. `memory_bytes`: see `Latents`.
        """
        keys = [self.key(record) for record in records]
        latents, missing = Latents(self._store, keys, memory_bytes=memory_bytes), dict[str, Record]()
        for key, record in zip(keys, records, strict=True):
            if latents.has(key) or key in missing:
                continue
            if latent := load_latent(self._store, key):
                latents.add(key, latent)
            else:
                missing[key] = record
        broken: list[str] = []
        for done, (key, latent) in enumerate(self._encode(missing, encode, in_float32), start=1):
            if latent is None:
                broken.append(missing[key].name)
            else:
                self._store.save(key, {"mean": latent.mean, "std": latent.std})
                latents.add(key, latent)
            if on_progress:
                on_progress(done, len(missing))
        if broken:
            raise DatasetError(
                f"the VAE gave NaN or infinite latents for {preview_names(broken)}, in float32, too; "
                "remove these images, or take another VAE."
            )
        return latents

    def _encode(
        self, missing: Mapping[str, Record], encode: ImageEncoder, in_float32: ImageEncoder | None
    ) -> Iterator[tuple[str, Latent | None]]:
        """Each key's latent, None for one that is never finite. Threads read the next images meanwhile."""

        def read(key: str) -> Tensor:
            ready = self.ready.take(key)
            return pixels_of(missing[key]) if ready is None else ready

        batches = cut_by_bucket(missing, lambda key: missing[key].bucket, pixels=self._batch_pixels)
        pixels = in_threads(read, (key for batch, _ in batches for key in batch))
        for batch, size in batches:
            images = [next(pixels) for _ in batch]
            latents = _encoded(encode, torch.stack(images + images[-1:] * (size - len(images))))
            self.encoded += len(batch)
            for key, image, latent in zip(batch, images, latents[: len(batch)], strict=True):
                if not latent.is_finite and in_float32:
                    (latent,) = _encoded(in_float32, image[None])
                    self.retried.append(missing[key].name)
                yield key, latent if latent.is_finite else None


def _encoded(encode: ImageEncoder, pixels: Tensor) -> list[Latent]:
    with torch.no_grad():
        mean, std = (part.float().cpu() for part in encode(pixels))
    # Cloned, so that one row does not keep the whole batch in memory.
    return [Latent(m.clone(), s.clone()) for m, s in zip(mean, std, strict=True)]


class TextCache:
    """Conditioning of captions for one set of frozen text encoders, whose weights `fingerprint` names."""

    def __init__(self, folder: Path, fingerprint: str) -> None:
        self._store, self._fingerprint = TensorStore(folder), fingerprint
        self.encoded = 0

    def key(self, caption: str) -> str:
        return _hash("text", caption, self._fingerprint)

    def load_or_encode(
        self, captions: Sequence[str], encode: TextEncoder, *, on_progress: OnProgress | None = None
    ) -> dict[str, dict[str, Tensor]]:
        """Caption -> its conditioning, tensors [1, ...] on the CPU; only those not in the cache are encoded.

        `encode` gets one caption at a time. Raises DatasetError if it gives values that are not finite.
        """
        found = {caption: self._store.load(self.key(caption)) for caption in dict.fromkeys(captions)}
        made = dict(self._make([one for one, stored in found.items() if stored is None], encode, on_progress))
        return {caption: made[caption] if stored is None else stored for caption, stored in found.items()}

    def encode_missing(
        self, captions: Sequence[str], encode: TextEncoder, *, on_progress: OnProgress | None = None
    ) -> None:
        """Store what is not in the cache and keep none of it in memory. Raises as `load_or_encode`."""
        missing = [one for one in dict.fromkeys(captions) if not self._store.has(self.key(one))]
        for _ in self._make(missing, encode, on_progress):
            pass

    def encode(self, caption: str, encode: TextEncoder) -> dict[str, Tensor]:
        """The conditioning of one caption, made anew and not stored. Raises as `load_or_encode`."""
        with torch.no_grad():
            conditioning = {name: tensor.cpu().contiguous() for name, tensor in encode([caption]).items()}
        self.encoded += 1
        if not all(tensor.isfinite().all() for tensor in conditioning.values()):
            what = f"the text encoder gave NaN or infinite values for the caption {caption!r}"
            raise DatasetError(f"{what}; run the text encoder in float32, or change the caption.")
        return conditioning

    def _make(
        self, missing: Sequence[str], encode: TextEncoder, on_progress: OnProgress | None
    ) -> Iterator[tuple[str, dict[str, Tensor]]]:
        for done, caption in enumerate(missing, start=1):
            conditioning = self.encode(caption, encode)
            self._store.save(self.key(caption), conditioning)
            yield caption, conditioning
            if on_progress:
                on_progress(done, len(missing))


def _hash(*parts: object) -> str:
    return hashlib.sha256(json.dumps([_FORMAT, *parts]).encode()).hexdigest()


READY_BYTES = 512 * 2**20  # some 680 images of 512x512


def pixels_of(record: Record) -> Tensor:
    """[3, H, W] in -1..1: the image resized, mirrored and cropped as the record says.

    Raises DatasetError if the file is not the one that was scanned.
    """
    image = reopen(record.path, record.sha256, background=record.background or "white").image
    return _as_tensor(_framed(image, record))


def _framed(image: Image.Image, record: Record) -> NDArray[np.uint8]:
    """[H, W, 3]"""
    assert record.resize is not None and record.crop is not None, record.name
    return np.array(framed(image, record.resize, record.crop, flip=record.flip))


def _as_tensor(pixels: NDArray[np.uint8]) -> Tensor:
    """[H, W, 3] in 0..255 -> [3, H, W] in -1..1."""
    return torch.from_numpy(pixels).permute(2, 0, 1).float() / 127.5 - 1


class ReadyPixels:
    """Images that the scan, which decodes them anyway, resizes at once, so that none is decoded twice.

    `key_of` says under which name an image's pixels are asked for later, None if they will not be. Images
    beyond `max_bytes` are decoded again when they are encoded. Safe for several threads.
    """

    def __init__(self, key_of: Callable[[Record], str | None], *, max_bytes: int = READY_BYTES) -> None:
        self._key_of, self._free_bytes = key_of, max_bytes
        self._pixels: dict[str, NDArray[np.uint8]] = {}
        self._lock = threading.Lock()

    def offer(self, record: Record, image: Image.Image) -> None:
        """Keep a record's pixels, framed for its bucket, unless cached or beyond the memory for them."""
        assert record.bucket is not None, record.name
        key, num_bytes = self._key_of(record), 3 * record.bucket.area
        with self._lock:
            if key is None or key in self._pixels or num_bytes > self._free_bytes:
                return
            self._free_bytes -= num_bytes
        self._pixels[key] = _framed(image, record)

    def take(self, key: str) -> Tensor | None:
        """[3, H, W] in -1..1, and forgotten; None if they are not there."""
        pixels = self._pixels.pop(key, None)
        return None if pixels is None else _as_tensor(pixels)
