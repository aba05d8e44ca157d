"""What is computed with a base depends on its weights: they are named here, as keys for the caches.

A fingerprint is taken from the weights as they lie in memory, in float32, which takes a minute for a large
base. So it is remembered by the bytes of the files that they came from, and these by path, size, times and
inode: a run that begins with the files of the last one reads none of them for it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from lora_studio.files import cache_folder, digest, write_atomically

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

MEMORY = "fingerprints.json"  # in the cache folder
_MOST = 1000  # files, and parts, that are remembered
_GLANCE = 16  # numbers of a tensor
Stamp = tuple[int, ...]


@dataclass(frozen=True)
class PartSource:
    """The files that a part was read from as they were then, and what it looked like."""

    stamps: Mapping[Path, Stamp]
    glance: str


def stamps_of(paths: Iterable[Path]) -> dict[Path, Stamp]:
    """Of each file what changes when it is replaced or written to; to be taken before it is read.

    The time of the last change of status is among it, because anyone can set the time of writing back. Only a
    disk with a coarse clock, such as FAT's of two seconds, hides an edit in place that leaves the size as it
    is and follows the last one within a tick.
    """
    return {path.resolve(): _stamp(path.resolve()) for path in paths}


def _stamp(path: Path) -> Stamp:
    status = path.stat()
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino, status.st_dev


def glance_at(part: nn.Module) -> str:
    """sha256 over each tensor's name, shape, dtype and a few numbers; empty if any is no plain tensor."""
    import torch

    seen = hashlib.sha256()
    for name, tensor in sorted(part.state_dict().items()):
        if type(tensor) is not torch.Tensor or tensor.is_meta:
            return ""
        numbers = tensor.flatten()[:: max(1, tensor.numel() // _GLANCE)][:_GLANCE].float().tolist()
        seen.update(f"{name} {tuple(tensor.shape)} {tensor.dtype} {numbers}\n".encode())
    return seen.hexdigest()


def part_fingerprint(part: nn.Module, source: PartSource | None) -> str:
    """As `ModelFamily.fingerprint`; looked up where weights and files are still what `source` says."""
    scale = str(getattr(part.config, "scaling_factor", ""))
    if source is None or not source.glance or glance_at(part) != source.glance:
        return _of_weights(part, scale)
    memory = _Memory(cache_folder() / MEMORY)
    digests = [memory.digest(path, stamp) for path, stamp in sorted(source.stamps.items())]
    if not digests or "" in digests:
        return _of_weights(part, scale)
    of_files = json.dumps([type(part).__name__, scale, source.glance, sorted(digests)])
    key = hashlib.sha256(of_files.encode()).hexdigest()
    if key not in memory.parts:
        memory.parts[key] = _of_weights(part, scale)
    memory.write()
    return memory.parts[key]


def _of_weights(part: nn.Module, scale: str) -> str:
    found = hashlib.sha256(type(part).__name__.encode())
    found.update(scale.encode())
    for name, tensor in sorted(part.state_dict().items()):
        found.update(name.encode())
        found.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
    return found.hexdigest()


class _KnownFile(NamedTuple):
    stamp: Stamp
    sha256: str


class _Memory:
    """What is known of files and parts, from a file in the cache folder; if that is damaged, nothing."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._files, self.parts = _read(path)
        self._before = len(self.parts), dict(self._files)

    def digest(self, path: Path, stamp: Stamp) -> str:
        """sha256 of a file; empty if it is no longer what the stamp says."""
        if not _is_still(path, stamp):
            return ""
        known = self._files.get(str(path))
        if known is not None and known.stamp == stamp:
            return known.sha256
        found = digest(path)
        if not _is_still(path, stamp):
            return ""
        self._files[str(path)] = _KnownFile(stamp, found)
        return found

    def write(self) -> None:
        """Whole or not at all, if there is anything new, beside what other processes have found meanwhile.

        A folder that cannot be written to costs time alone.
        """
        if self._before == (len(self.parts), self._files):
            return
        files, parts = _read(self._path)
        files, parts = files | self._files, parts | self.parts
        kept = {"files": dict([*files.items()][-_MOST:]), "parts": dict([*parts.items()][-_MOST:])}
        try:
            write_atomically(self._path, json.dumps(kept).encode())
        except OSError:
            return


def _is_still(path: Path, stamp: Stamp) -> bool:
    try:
        return _stamp(path) == stamp
    except OSError:
        return False


def _read(path: Path) -> tuple[dict[str, _KnownFile], dict[str, str]]:
    try:
        stored = json.loads(path.read_text("utf-8"))
        files = {
            name: _KnownFile(tuple(map(int, stamp)), _hash(sha256))
            for name, (stamp, sha256) in stored["files"].items()
        }
        parts = {_hash(key): _hash(value) for key, value in stored["parts"].items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError, IndexError, RecursionError):
        return {}, {}
    return files, parts


def _hash(text: object) -> str:
    """Raises ValueError for what is no sha256 in hex."""
    if not isinstance(text, str) or len(bytes.fromhex(text)) != hashlib.sha256().digest_size:
        raise ValueError(text)
    return text


def reading_fingerprint(
    encoders: Mapping[str, PreTrainedModel], tokenizers: Mapping[str, PreTrainedTokenizerBase]
) -> str:
    """How text encoders read, apart from their weights: SD1 fills a window up with other tokens than SD2."""
    found = hashlib.sha256()
    for name, encoder in sorted(encoders.items()):
        config = encoder.config
        found.update(f"{name} {config.hidden_act} {config.num_attention_heads}".encode())
    for name, tokenizer in sorted(tokenizers.items()):
        found.update(f"{name} {_reading(tokenizer)}".encode())
    return found.hexdigest()


def _reading(tokenizer: PreTrainedTokenizerBase) -> str:
    """How a tokenizer makes numbers of words; without the padding that its last call left in it."""
    stored = json.loads(tokenizer.backend_tokenizer.to_str())
    marks = [tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id]
    kept = [stored[key] for key in ("model", "normalizer", "pre_tokenizer", "added_tokens")]
    return json.dumps([marks, tokenizer.model_max_length, kept], sort_keys=True)
