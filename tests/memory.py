"""How much memory a program of its own took at most."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

# Source text for such a program. Not getrusage: its peak includes that of the program which started this one.
PEAK_BYTES = """
def peak_bytes():
    import re
    from pathlib import Path
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024
"""
needs_proc = pytest.mark.skipif(sys.platform != "linux", reason="the peak is read from Linux's /proc")


def said_alone(script: str, *arguments: str) -> Any:
    """What a script prints last, read as JSON, in a process of its own.

    It has `peak_bytes`, the tests' modules, json, sys and Path; `arguments` are sys.argv's from 1 on.
    """
    folders = [str(folder) for folder in Path(__file__).parents[:2]]
    begin = f"import json, sys; from pathlib import Path; sys.path[:0] = {folders!r}\n{PEAK_BYTES}\n"
    command = [sys.executable, "-c", begin + script, *arguments]
    ended = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(ended.stdout.splitlines()[-1])
