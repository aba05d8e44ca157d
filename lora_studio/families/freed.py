"""Memory that a large base left behind goes back to the system."""

from __future__ import annotations

import ctypes


def return_freed_memory() -> None:
    """Have the C library give back what a large base left behind, which it otherwise keeps to itself."""
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (AttributeError, OSError, TypeError):  # another C library, another system
        return
