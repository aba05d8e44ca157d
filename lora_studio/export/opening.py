"""A safetensors file's tensors and metadata, or one sentence about why there are none."""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from lora_studio.errors import StudioError, reason_of


def open_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """By key, and what the file says about itself. Raises StudioError if it is not there or not whole."""
    if not path.is_file():
        raise StudioError(f"there is no file at {path}; give the path of a .safetensors file.")
    try:
        with safe_open(path, framework="pt") as file:
            keys = file.keys()
            return {key: file.get_tensor(key) for key in keys}, file.metadata() or {}
    except (SafetensorError, OSError, ValueError) as error:
        raise StudioError(
            f"{path} is not a whole safetensors file ({reason_of(error)}); it may be cut short."
        ) from None
