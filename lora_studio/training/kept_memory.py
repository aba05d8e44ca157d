"""Main memory that a step has freed is kept for the next one."""

from __future__ import annotations

import ctypes

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
