"""A command of the program in a process of its own, and what it took: time and main memory."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

COMMAND_OUTPUT = "said.txt"  # in the scratch folder
# Runs a command, and writes what it took into a file: seconds from start-up's end, processor seconds, peak
# in MB. Not getrusage's peak, which includes that of the program which started this one.
COMMAND = """
import json, re, sys, time
from pathlib import Path
from lora_studio import cli
from lora_studio.data import doctor
began, used = time.perf_counter(), time.process_time()
sys.argv[:2] = ["lora-studio"]
out = Path(sys.argv.pop())
try:
    cli.main()
finally:
    peak = int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024 / 1e6
    out.write_text(json.dumps([time.perf_counter() - began, time.process_time() - used, peak]))
"""


def run_command(words: Sequence[str], scratch: Path, codes: Sequence[int] = (0, 1)) -> list[float]:
    """Seconds, processor seconds and peak in MB of a command that may exit with one of these codes.

    What it prints is in the scratch folder, in COMMAND_OUTPUT.
    """
    out = scratch / "figures.json"
    command = [sys.executable, "-c", COMMAND, "", *words, str(out)]
    with (scratch / COMMAND_OUTPUT).open("w", encoding="utf-8") as said:
        process = subprocess.run(command, stdout=said, stderr=subprocess.PIPE, text=True)
    if process.returncode not in codes:
        raise RuntimeError(f"{words[0]} exits with {process.returncode}: {process.stderr[-500:]}")
    figures: list[float] = json.loads(out.read_text())
    return figures
