"""Latents and text conditioning on disk, under names made of what they depend on.

Editing an image or caption, or taking another VAE or text encoder, changes the name, so there is nothing to
invalidate. What an entry holds must not depend on what was cached before, or a run would no longer repeat
exactly, and in a batch the last bits depend on its size (3e-7 measured on a CPU). So captions are encoded one
at a time, and images in batches of a size that their bucket decides, the last one filled up with copies of
its last image: at one size a row's bits do not depend on the other rows (a test sees to that).

On a CPU images are encoded one by one. Measured on two cores (benchmarks/results/dataset.json), batches of
four are slower at 512x512 (1.0 images a second instead of 1.2); at 64x64 they are twice as fast, but a
image takes 15 ms there. A GPU, which one small image does not fill, gets batches of a megapixel (not
measured).
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from lora_studio.data.batches import cut_by_bucket
from lora_studio.data.cache.latents import Latent, LatentCollector, Latents
from lora_studio.data.cache.store import TensorStore
from lora_studio.data.images.decode import framed, in_threads, reopen
from lora_studio.data.manifest import Bucket, Record
from lora_studio.errors import DatasetError, preview_names

_FORMAT = 3  # raise it when pixels or files are made differently

ImageEncoder = Callable[[Tensor], tuple[Tensor, Tensor]]
TextEncoder = Callable[[list[str]], dict[str, Tensor]]
OnProgress = Callable[[int, int], None]  # entries encoded, entries to encode


@dataclass(frozen=True)
class ImageEncoders:
    """The VAE as the recipe wants it, and as it is tried again with an image for which that gives NaN.

    Both: [B, 3, H, W] in -1..1 -> mean and std, each [B, C, h, w].
    """

    encode: ImageEncoder
    in_float32: ImageEncoder | None = None  # None if `encode` is that already


class LatentCache:
    """Latents of images for one VAE, whose weights and precision `fingerprint` names.

    As many images of a bucket as have `batch_pixels` altogether are encoded in one batch; at least one.
    """

    def __init__(self, folder: Path, fingerprint: str, *, batch_pixels: int = 0) -> None:
        self._store, self._fingerprint = TensorStore(folder), fingerprint
        self._batch_pixels = batch_pixels
        self.ready = ReadyPixels(lambda record: None if self._store.has(key := self.key(record)) else key)
        self.encoded = 0
        self.retried: list[str] = []  # names of the images that took float32

    def key(self, record: Record) -> str:
        """The name of the entry: a hash of all that the latent depends on."""
        assert record.bucket is not None, record.name
        place = [record.bucket.name, record.resize, record.crop, record.flip]
        return _hash("latent", record.sha256, record.background, place, self._fingerprint)

    def load_or_encode(
        self,
        records: Sequence[Record],
        encoders: ImageEncoders | ImageEncoder,
        *,
        memory_bytes: int | None = None,
        on_progress: OnProgress | None = None,
    ) -> Latents:
        """The latents of the records, in their order, on the CPU; only those not in the cache are encoded.

        If they take more than `memory_bytes` they are not kept in memory, but read when they are asked for.
        Raises DatasetError that names all images for which not even float32 gives finite values.
        """
        if not isinstance(encoders, ImageEncoders):
            encoders = ImageEncoders(encoders)
        keys = [self.key(record) for record in records]
        collected, missing = LatentCollector(self._store, memory_bytes), dict[str, Record]()
        for key, record in zip(keys, records, strict=True):
            if key in collected or key in missing:
                continue
            if (latent := self._load(key)) is None:
                missing[key] = record
            else:
                collected.add(key, latent)
        broken: list[str] = []
        for done, (key, latent) in enumerate(self._encode(missing, encoders), start=1):
            if latent is None:
                broken.append(missing[key].name)
            else:
                self._store.save(key, {"mean": latent.mean, "std": latent.std})
                collected.add(key, latent)
            if on_progress:
                on_progress(done, len(missing))
        if broken:
            raise DatasetError(
                f"the VAE gave NaN or infinite latents for {preview_names(broken)}, in float32, too; "
                "remove these images, or take another VAE."
            )
        return collected.in_order(keys)

    def _load(self, key: str) -> Latent | None:
        tensors = self._store.load(key)
        return None if tensors is None else Latent(tensors["mean"], tensors["std"])

    def _encode(
        self, missing: Mapping[str, Record], encoders: ImageEncoders
    ) -> Iterator[tuple[str, Latent | None]]:
        """Each key's latent, None for one that is never finite. Threads read the next images meanwhile."""
        batches = cut_by_bucket(missing, lambda key: missing[key].bucket, self._batch_size)
        pixels = in_threads(
            lambda key: self._pixels(key, missing[key]), (key for batch in batches for key in batch)
        )
        for batch in batches:
            images = [next(pixels) for _ in batch]
            filled = images + images[-1:] * (self._batch_size(missing[batch[0]].bucket) - len(images))
            latents = _encoded(encoders.encode, torch.stack(filled))[: len(batch)]
            self.encoded += len(batch)
            for key, image, latent in zip(batch, images, latents, strict=True):
                if not latent.is_finite and encoders.in_float32:
                    (latent,) = _encoded(encoders.in_float32, image[None])
                    self.retried.append(missing[key].name)
                yield key, latent if latent.is_finite else None

    def _batch_size(self, bucket: Bucket | None) -> int:
        assert bucket is not None
        return max(1, self._batch_pixels // bucket.area)

    def _pixels(self, key: str, record: Record) -> Tensor:
        ready = self.ready.take(key)
        return pixels_of(record) if ready is None else ready


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
        missing = [caption for caption, stored in found.items() if stored is None]
        found.update(self._make(missing, encode, on_progress))
        return {caption: stored for caption, stored in found.items() if stored is not None}

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
            advice = "run the text encoder in float32, or change the caption"
            raise DatasetError(
                f"the text encoder gave NaN or infinite values for the caption {caption!r}; {advice}."
            )
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
    return as_tensor(resized_and_cropped(image, record))


def resized_and_cropped(image: Image.Image, record: Record) -> NDArray[np.uint8]:
    """[H, W, 3]: the decoded image in the shape that the record asks for."""
    assert record.resize is not None and record.crop is not None, record.name
    return np.array(framed(image, record.resize, record.crop, flip=record.flip))


def as_tensor(pixels: NDArray[np.uint8]) -> Tensor:
    """[H, W, 3] in 0..255 -> [3, H, W] in -1..1."""
    return torch.from_numpy(pixels).permute(2, 0, 1).float() / 127.5 - 1


class ReadyPixels:
    """Images that the scan, which decodes them anyway, resizes at once, so that none is decoded twice.

    `key_of` says under which name an image's pixels are asked for later, None if they will not be: pixels
    that are never asked for cost a resize, wrong ones cannot come about. Holds `max_bytes` at most; images
    beyond that are decoded again when they are encoded. Safe for several threads.
    """

    def __init__(self, key_of: Callable[[Record], str | None], *, max_bytes: int = READY_BYTES) -> None:
        self._key_of, self._free_bytes = key_of, max_bytes
        self._pixels: dict[str, NDArray[np.uint8]] = {}
        self._lock = threading.Lock()

    def offer(self, record: Record, image: Image.Image) -> None:
        """An image that has just been decoded, with the record that says how to resize and crop it."""
        assert record.bucket is not None, record.name
        key, num_bytes = self._key_of(record), 3 * record.bucket.area
        with self._lock:
            if key is None or key in self._pixels or num_bytes > self._free_bytes:
                return
            self._free_bytes -= num_bytes
        self._pixels[key] = resized_and_cropped(image, record)

    def take(self, key: str) -> Tensor | None:
        """[3, H, W] in -1..1, and forgotten; None if they are not there."""
        pixels = self._pixels.pop(key, None)
        return None if pixels is None else as_tensor(pixels)
