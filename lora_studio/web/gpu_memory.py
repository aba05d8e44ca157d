"""How much memory of a GPU is taken: nvidia-smi is asked, since torch takes seconds, and memory itself."""

from __future__ import annotations

import asyncio
import re
import shutil
from contextlib import suppress

from lora_studio.text import memory_size, shown
from lora_studio.web.live import RunNow

_SECONDS = 2.0  # that it may take
_QUESTION = ("--query-gpu=name,memory.used,memory.total", "--format=csv,noheader,nounits")


class GpuMemory:
    """The last answer, in words; empty without a GPU of NVIDIA's."""

    def __init__(self) -> None:
        self.words = ""
        self._program = shutil.which("nvidia-smi")

    async def look(self, run: RunNow) -> None:
        """Ask again, about the GPU that the run's job has, or all of them for one started elsewhere."""
        if self._program is None or not run.at_work or run.device == "cpu":
            return
        number = run.device.partition(":")[2]
        chosen = [f"--id={number}"] if number.isdecimal() else []
        process = await asyncio.create_subprocess_exec(
            self._program,
            *_QUESTION,
            *chosen,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
        )
        try:
            output, _ = await asyncio.wait_for(process.communicate(), _SECONDS)
        except BaseException as error:
            with suppress(ProcessLookupError):
                process.kill()
            if not isinstance(error, TimeoutError):
                raise
            return
        self.words = "; ".join(filter(None, map(_in_words, output.decode("utf-8", "replace").splitlines())))


def _in_words(line: str) -> str:
    """Of "NVIDIA X, 5120, 24576", in MiB; empty for what is no such line."""
    if not (found := re.fullmatch(r"(.{1,100}), (\d{1,9}), (\d{1,9})", line.strip())):
        return ""
    used, total = (memory_size(int(one) * 2**20) for one in found.groups()[1:])
    return f"{used} of {total} on {shown(found[1])}"
