"""A folder of small safetensors files, written whole or not at all, checked when read."""

from __future__ import annotations

import hashlib
import os
import uuid
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, contiguous_format, uint8

from lora_studio.errors import DatasetError


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
        return tensors if digest == _digest(tensors) else None

    def save(self, key: str, tensors: dict[str, Tensor]) -> None:
        """Write the tensors under the key. Raises DatasetError if the disk refuses."""
        # Cloned, since safetensors refuses tensors that share memory, as outputs of one encoder may.
        tensors = {
            name: tensor.detach().cpu().clone(memory_format=contiguous_format)
            for name, tensor in tensors.items()
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


def _digest(tensors: dict[str, Tensor]) -> str:
    """Of names, types, shapes and contents; the format itself does not notice a changed or zeroed body."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.flatten().view(uint8).numpy().data)
    return digest.hexdigest()
