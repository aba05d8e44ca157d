"""Latents and text conditioning on disk, under names made of what they depend on.

Editing a picture or caption, or taking another VAE or text encoder, changes the name, so there is nothing to
invalidate. Entries are encoded one at a time: in a batch the last bits depend on its size (3e-7 measured on a
CPU), hence on what was cached before, and a run would no longer repeat exactly.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lora_studio.data.manifest import Record
from lora_studio.data.names import some
from lora_studio.data.pictures import framed, reopen
from lora_studio.data.store import TensorStore
from lora_studio.errors import DatasetError

_FORMAT = 3  # raise it when pixels or files are made differently

ImageEncoder = Callable[[Tensor], tuple[Tensor, Tensor]]
TextEncoder = Callable[[list[str]], dict[str, Tensor]]
OnProgress = Callable[[int, int], None]  # entries encoded, entries to encode


@dataclass(frozen=True)
class Latent:
    """What the VAE says about a picture: mean and standard deviation, each [C, H, W], float32, scaled."""

    mean: Tensor
    std: Tensor

    def sample(self, generator: torch.Generator) -> Tensor:
        """[C, H, W]: one draw; the noise is made on the generator's device, so all devices see the same."""
        noise = torch.randn(self.mean.shape, generator=generator, device=generator.device)
        return self.mean + self.std * noise.to(self.mean)


class LatentCache:
    """Latents of pictures for one VAE, whose weights `fingerprint` names."""

    def __init__(self, folder: Path, fingerprint: str) -> None:
        self._store, self._fingerprint = TensorStore(folder), fingerprint
        self.encoded = 0

    def key(self, record: Record) -> str:
        """The name of the entry: a hash of all that the latent depends on."""
        assert record.bucket is not None, record.name
        place = [record.bucket.name, record.resize, record.crop, record.flip]
        return _hash("latent", record.sha256, record.background, place, self._fingerprint)

    def load_or_encode(
        self, records: Sequence[Record], encode: ImageEncoder, *, on_progress: OnProgress | None = None
    ) -> list[Latent]:
        """The latents of the records, in their order, on the CPU; only those not in the cache are encoded.

        `encode`: [1, 3, H, W] in -1..1 -> mean and std, each [1, C, h, w]. Raises DatasetError that names all
        pictures for which it gives values that are not finite.
        """
        found = {key: self._load(key) for key in map(self.key, records)}
        missing = {key: record for record in records if found[key := self.key(record)] is None}
        broken: list[str] = []
        for done, (key, record) in enumerate(missing.items(), start=1):
            found[key] = self._encode(key, record, encode)
            if found[key] is None:
                broken.append(record.name)
            if on_progress:
                on_progress(done, len(missing))
        if broken:
            advice = "run the VAE in float32, or remove these pictures"
            raise DatasetError(f"the VAE gave NaN or infinite latents for {some(broken)}; {advice}.")
        latents = [found[self.key(record)] for record in records]
        return [latent for latent in latents if latent is not None]

    def _load(self, key: str) -> Latent | None:
        tensors = self._store.load(key)
        return None if tensors is None else Latent(tensors["mean"], tensors["std"])

    def _encode(self, key: str, record: Record, encode: ImageEncoder) -> Latent | None:
        """The latent, stored; None, and nothing stored, if it is not finite."""
        with torch.no_grad():
            mean, std = (part[0].float().cpu().contiguous() for part in encode(pixels_of(record)[None]))
        self.encoded += 1
        if not (mean.isfinite().all() and std.isfinite().all()):
            return None
        self._store.save(key, {"mean": mean, "std": std})
        return Latent(mean, std)


class TextCache:
    """Conditioning of captions for one set of frozen text encoders, whose weights `fingerprint` names."""

    def __init__(self, folder: Path, fingerprint: str) -> None:
        self._store, self._fingerprint = TensorStore(folder), fingerprint
        self.encoded = 0

    def key(self, caption: str) -> str:
        """The name of the entry: a hash of all that the conditioning depends on."""
        return _hash("text", caption, self._fingerprint)

    def load_or_encode(
        self, captions: Sequence[str], encode: TextEncoder, *, on_progress: OnProgress | None = None
    ) -> dict[str, dict[str, Tensor]]:
        """Caption -> its conditioning, tensors [1, ...] on the CPU; only those not in the cache are encoded.

        `encode` gets one caption at a time. Raises DatasetError if it gives values that are not finite.
        """
        found = {caption: self._store.load(self.key(caption)) for caption in dict.fromkeys(captions)}
        missing = [caption for caption, stored in found.items() if stored is None]
        for done, caption in enumerate(missing, start=1):
            found[caption] = conditioning = self.encode(caption, encode)
            self._store.save(self.key(caption), conditioning)
            if on_progress:
                on_progress(done, len(missing))
        return {caption: stored for caption, stored in found.items() if stored is not None}

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


def pixels_of(record: Record) -> Tensor:
    """[3, H, W] in -1..1: the picture resized, mirrored and cropped as the record says.

    Raises DatasetError if the file is not the one that was scanned.
    """
    assert record.resize is not None and record.crop is not None, record.name
    picture = reopen(record.path, record.sha256, background=record.background or "white").image
    cropped = framed(picture, record.resize, record.crop, flip=record.flip)
    return torch.from_numpy(np.array(cropped)).permute(2, 0, 1).float() / 127.5 - 1


def _hash(*parts: object) -> str:
    return hashlib.sha256(json.dumps([_FORMAT, *parts]).encode()).hexdigest()
