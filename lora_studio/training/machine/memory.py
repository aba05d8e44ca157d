"""What to do when a device's memory runs out: the same work in smaller pieces."""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Callable
from typing import TypeVar

import torch

from lora_studio.errors import OutOfMemory

T = TypeVar("T")
_WORDS = ("out of memory", "not enough memory", "can't allocate memory")  # CUDA's, the CPU's on each system
ADVICE = (
    "lora-studio plan tells what a recipe needs; less is needed with machine.gradient_checkpointing = true, "
    'a smaller data.resolution, base.quantize = "bnb_int8" or "bnb_nf4", or a lower adapter.rank'
)


def is_out_of_memory(error: Exception) -> bool:
    """Whether it is that; torch has an error of its own for CUDA only."""
    text = str(error).lower()
    return isinstance(error, torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and any(words in text for words in _WORDS)
    )


def within_memory(work: Callable[[], T], shrink: Callable[[], None]) -> T:
    """What `work` returns; each time memory runs out, `shrink` is called, and the work begun anew."""
    while True:
        try:
            return work()
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
        shrink()  # not in `except`, where the error's traceback holds the tensors of the failed attempt
        empty_memory()


def empty_memory() -> None:
    """Give back what nothing refers to any more."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def out_of_memory(where: str) -> OutOfMemory:
    """What ends a run for which there is not enough memory."""
    return OutOfMemory(f"the memory ran out {where}; {ADVICE}")


MOST = 2**30  # bytes; what is larger is given back at once

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h of glibc
_NEVER = 2**31 - 1


def keep_freed_memory() -> bool:
    """Have the C library keep freed memory; whether it does (glibc, so on Linux).

    By default it gives blocks of a few megabytes back to the system at every step, and the system fills each
    page with zeros when it is asked for again: 7,000 pages a step of the pocket base, and hardly any with
    this, for 5 % more memory, after 80 steps as after ten.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # another C library, another system
        return False
    return bool(mallopt(_M_TRIM_THRESHOLD, _NEVER)) and bool(mallopt(_M_MMAP_THRESHOLD, MOST))
