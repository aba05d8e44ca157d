"""A folder of small safetensors files, written whole or not at all, checked when read."""

from __future__ import annotations

import hashlib
import os
import time
import uuid
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, contiguous_format, uint8

from lora_studio.errors import DatasetError

_DAY = 24 * 3600.0


class TensorStore:
    """Key -> tensors. Processes may share the folder: whoever writes last wins, with the same content."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def load(self, key: str) -> dict[str, Tensor] | None:
        """The tensors stored under the key, or None if there are none or the file is damaged."""
        path = self._path(key)
        try:
            with safe_open(path, framework="pt") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no dict)
                digest = (file.metadata() or {}).get("digest")
        except (OSError, SafetensorError):  # missing, cut short, or not safetensors: all are made again
            return None
        if digest != _digest(tensors):
            return None
        mark_as_used(path)
        return tensors

    def has(self, key: str) -> bool:
        """Whether there is a file of this key; it may still turn out to be damaged."""
        return self._path(key).is_file()

    def save(self, key: str, tensors: dict[str, Tensor]) -> None:
        """Write the tensors under the key. Raises DatasetError if the disk refuses."""
        # Cloned, since safetensors refuses tensors that share memory, as outputs of one encoder may.
        tensors = {
            name: one.detach().cpu().clone(memory_format=contiguous_format) for name, one in tensors.items()
        }
        data = save(tensors, metadata={"digest": _digest(tensors)})
        temporary = self.folder / f"{key}.{uuid.uuid4().hex}.tmp"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            try:
                temporary.write_bytes(data)
                os.replace(temporary, self._path(key))
            finally:
                temporary.unlink(missing_ok=True)
        except OSError as error:
            message = f"the cache folder {self.folder} cannot be written to ({error.strerror or error})"
            raise DatasetError(f"{message}; free space there or choose another folder.") from None

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}.safetensors"


def mark_as_used(path: Path) -> None:
    """Give the file today's date, so that `cache prune` knows what has not been used for long."""
    try:
        if time.time() - path.stat().st_mtime > _DAY:
            os.utime(path)
    except OSError:  # a cache that may only be read is one all the same
        pass


def _digest(tensors: dict[str, Tensor]) -> str:
    """Of names, types, shapes and contents; the format itself does not notice a changed or zeroed body."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.flatten().view(uint8).numpy().data)
    return digest.hexdigest()
