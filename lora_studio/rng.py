"""Keyed randomness: every draw has its own generator, named by what it is for, so no state is ever saved."""

from __future__ import annotations

import hashlib
import random
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def key(*names: int | str) -> int:
    """A 63-bit number from names like (seed, step, "noise"); the same on every machine and Python."""
    digest = hashlib.blake2b("\x1f".join(map(str, names)).encode("utf-8"), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def generator(*names: int | str) -> torch.Generator:
    """A CPU generator for one draw; CPU, so that every device sees the same noise."""
    import torch

    return torch.Generator().manual_seed(key(*names))


def python_random(*names: int | str) -> random.Random:
    """A `random.Random` for choices and shuffles."""
    return random.Random(key(*names))
