"""What is computed with a base depends on its weights: they are named here, as keys for the caches.

A fingerprint is taken from the weights in float32, whatever they are cast to in memory, which takes a minute
for a large base. So it is remembered by the bytes of the files that they came from, and these by path, size,
times and inode: a run that begins with the files of the last one reads none of them for it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from lora_studio.errors import BaseModelError
from lora_studio.files import cache_folder, digest, write_atomically

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

    from lora_studio.families.stored import Change, StoredPart

MEMORY = "fingerprints.json"  # in the cache folder
_MOST = 1000  # files, and parts, that are remembered
_GLANCE = 16  # numbers of a tensor
_OF_LIBRARIES = (
    "transformers_version",
    "_name_or_path",
    "dtype",
    "torch_dtype",
    "use_cache",
    "architectures",
)
Stamp = tuple[int, ...]


@dataclass(frozen=True)
class PartSource:
    """The files that a part was read from as they were then, and what it looked like."""

    stamps: Mapping[Path, Stamp]
    glance: str  # at its files' numbers, in float32
    loaded: str  # at what lies in memory
    stored: StoredPart
    is_changed: bool = False  # by what is merged into it
    by_files: bool = False  # its fingerprint is made of its files' bytes: all its numbers take minutes
    marks: tuple[str, ...] = ()  # of what is merged into it

    def read_again(
        self,
        part: nn.Module,
        dtype: torch.dtype,
        device: torch.device | None = None,
        *,
        copies: bool = False,
    ) -> None:
        """Fill a part whose weights were dropped; BaseModelError if its files are not what they were.

        `copies` as for `StoredPart.fill`: a file stays mapped as a whole while one tensor is mapped from it.
        """
        self._check_files()
        self.stored.fill(part, dtype, copies=copies, device=device)

    def read_in_pieces(
        self, part: nn.Module, pieces: Sequence[Sequence[str]], dtype: torch.dtype, device: torch.device
    ) -> Iterator[None]:
        """The same, some tensors after others, with whatever is to be done after each piece of them."""
        self._check_files()
        for names in pieces:
            self.stored.fill_some(part, names, dtype, device)
            yield

    def _check_files(self) -> None:
        for path, stamp in self.stamps.items():
            if not _is_still(path, stamp):
                raise _changed_meanwhile(path)

    def changed(self, name: str, change: Change, mark: str) -> PartSource:
        """Of a part that has one tensor otherwise, by a change of its float32; `mark` tells what of."""
        marks = self.marks if mark in self.marks else (*self.marks, mark)
        return replace(self, stored=self.stored.changed(name, change), marks=marks)

    def merged(self, part: nn.Module, names: Sequence[str]) -> PartSource:
        """The changed tensors are in the part from now on, which is no longer just what its files have."""
        if is_dropped(part):  # they will be
            return replace(self, is_changed=True)
        for name, tensor in self.stored.each(names):
            weight = part.get_parameter(name)
            weight.data = tensor.to(weight.dtype)
        return replace(self, loaded=glance_at(part), is_changed=True)


def _changed_meanwhile(path: Path) -> BaseModelError:
    advice = "put it back, and go on with --resume"
    return BaseModelError(f"{path} was changed or taken away while the run needed it; {advice}.")


def source_of(
    part: nn.Module, stored: StoredPart, stamps: Mapping[Path, Stamp], *, by_files: bool = False
) -> PartSource:
    """Of a part that was just filled from its files; `by_files` also of one that has shapes only yet."""
    import torch

    if by_files:
        return PartSource(stamps, "", "", stored, by_files=True)
    loaded = glance_at(part)
    exact = (
        loaded if in_float32(part) else _glance_over(stored.each(sorted(part.state_dict())), torch.float32)
    )
    return PartSource(stamps, exact, loaded, stored)


def in_float32(part: nn.Module) -> bool:
    import torch

    return all(one.dtype == torch.float32 for one in part.parameters())


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

    tensors = sorted(part.state_dict().items())
    if any(type(tensor) is not torch.Tensor or tensor.is_meta for _, tensor in tensors):
        return ""
    return _glance_over(tensors)


def _glance_over(tensors: Iterable[tuple[str, Tensor]], dtype: torch.dtype | None = None) -> str:
    """`dtype`: that they are cast to before, of those that are no whole numbers."""
    seen = hashlib.sha256()
    for name, tensor in tensors:
        few = tensor.flatten()[:: max(1, tensor.numel() // _GLANCE)][:_GLANCE]
        few = few.to(dtype) if dtype is not None and few.is_floating_point() else few
        seen.update(f"{name} {tuple(tensor.shape)} {few.dtype} {few.float().tolist()}\n".encode())
    return seen.hexdigest()


def part_fingerprint(part: nn.Module, source: PartSource | None) -> str:
    """As `ModelFamily.fingerprint`; looked up where weights and files are still what `source` says."""
    if source is not None and source.by_files:
        return _of_files(part, source)
    if source is None or not source.loaded or _is_changed(part, source):
        return _of_weights(part, sorted(part.state_dict().items()))
    if source.is_changed:
        return _of_weights(part, _exact(part, source))
    memory = _Memory(cache_folder() / MEMORY)
    digests = [memory.digest(path, stamp) for path, stamp in sorted(source.stamps.items())]
    if not digests or "" in digests:
        return _of_weights(part, _exact(part, source))
    of_files = json.dumps([type(part).__name__, _scale(part), source.glance, sorted(digests)])
    key = hashlib.sha256(of_files.encode()).hexdigest()
    if key not in memory.parts:
        memory.parts[key] = _of_weights(part, _exact(part, source))
    memory.write()
    return memory.parts[key]


def _of_files(part: nn.Module, source: PartSource) -> str:
    """sha256 over class, scale, which tensors of the files it has, and all of the files' bytes."""
    memory, digests = _Memory(cache_folder() / MEMORY), []
    for path, stamp in sorted(source.stamps.items()):
        if not (found := memory.digest(path, stamp)):
            raise _changed_meanwhile(path)
        digests.append(found)
    memory.write()
    tensors = sorted(f"{name} {one.origin}" for name, one in source.stored.tensors.items())
    said = [type(part).__name__, _scale(part), tensors, sorted(digests), source.marks]
    return hashlib.sha256(json.dumps(said).encode()).hexdigest()


def _is_changed(part: nn.Module, source: PartSource) -> bool:
    """One whose weights were let go of cannot be."""
    return not is_dropped(part) and glance_at(part) != source.loaded


def is_dropped(part: nn.Module) -> bool:
    """Whether its weights are not in memory, but only in its files."""
    return next(part.parameters()).is_meta


def _exact(part: nn.Module, source: PartSource) -> Iterable[tuple[str, Tensor]]:
    """All digits of its tensors, by name: from the files if memory has fewer."""
    if in_float32(part) and not is_dropped(part):
        return sorted(part.state_dict().items())
    return source.stored.each(sorted(part.state_dict()))


def _scale(part: nn.Module) -> str:
    config = part.config
    if not hasattr(config, "scaling_factor"):  # of a VAE whose channels have each their own
        return "".join(str(getattr(config, key, "")) for key in ("latents_mean", "latents_std"))
    shift = getattr(config, "shift_factor", None)
    return f"{config.scaling_factor}{'' if shift is None else f' - {shift}'}"


def _of_weights(part: nn.Module, tensors: Iterable[tuple[str, Tensor]]) -> str:
    found = hashlib.sha256(type(part).__name__.encode())
    found.update(_scale(part).encode())
    for name, tensor in tensors:
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
        found.update(f"{name} {_facts(encoder.config)}".encode())
    for name, tokenizer in sorted(tokenizers.items()):
        found.update(f"{name} {_reading(tokenizer)}".encode())
    return found.hexdigest()


def _facts(config: PretrainedConfig) -> str:
    """Of a CLIP the two that published ones differ in; of another all that is no fact of a library."""
    if "clip" in getattr(config, "model_type", ""):
        return f"{config.hidden_act} {config.num_attention_heads}"
    if isinstance(config, dict):  # of diffusers, which puts a line before what is its own
        said = {key: value for key, value in config.items() if not key.startswith("_")}
    else:
        said = {key: value for key, value in config.to_dict().items() if key not in _OF_LIBRARIES}
    return json.dumps(said, sort_keys=True, default=str)


def _reading(tokenizer: PreTrainedTokenizerBase) -> str:
    """How a tokenizer makes numbers of words; without the padding that its last call left in it."""
    stored = json.loads(tokenizer.backend_tokenizer.to_str())
    marks = [tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id]
    kept = [stored[key] for key in ("model", "normalizer", "pre_tokenizer", "added_tokens")]
    template = [tokenizer.chat_template] if tokenizer.chat_template else []
    return json.dumps([marks, tokenizer.model_max_length, kept, *template], sort_keys=True)
