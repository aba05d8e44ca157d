"""How a base model may be named, beside a folder's path and a hub id."""

from __future__ import annotations

POCKET = "pocket"  # the base in the package
FILE_ENDINGS = (".safetensors", ".ckpt")
