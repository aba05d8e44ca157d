"""How much memory a program of its own took at most."""

from __future__ import annotations

import sys

import pytest

# Source text for such a program. Not getrusage: its peak includes that of the program which started this one.
PEAK_BYTES = """
def peak_bytes():
    import re
    from pathlib import Path
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024
"""
needs_proc = pytest.mark.skipif(sys.platform != "linux", reason="the peak is read from Linux's /proc")
