"""Verbs as the command line has them, each in a process: results as data, faults in the same words."""

from __future__ import annotations

import asyncio
import json
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from lora_studio.errors import StudioError
from lora_studio.text import plain_line

MOST_BYTES = 64 * 2**20  # that a verb may print
_READY = """
import json, runpy, sys
line = sys.stdin.readline()
if line:
    sys.argv = ["lora-studio", *json.loads(line)]
    runpy.run_module("lora_studio", run_name="__main__", alter_sys=False)
"""
_WARM = "import torch, lora_studio.tools.inspect, lora_studio.verify\n"


class VerbRunner:
    """Runs a verb at a time for each of its callers; one process is kept ready once one was asked for.

    Importing torch takes seconds, which the next verb has behind it that way.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder  # that relative paths are taken from
        self._ready: asyncio.subprocess.Process | None = None
        self._closed = False

    async def run(self, *arguments: str, invalid_is_fine: bool = False) -> Any:
        """What `lora-studio ARGUMENTS --json` prints, as data; a cancelled call ends its process.

        `invalid_is_fine`: exit code 1 says that a file is invalid, which is an answer.
        Raises StudioError with the sentence that the command line prints.
        """
        process, self._ready = self._ready, None
        if process is None or process.returncode is not None:
            process = await self._start()
        words = _with_json(arguments)
        line = json.dumps(words).encode() + b"\n"
        try:
            output, errors = await process.communicate(line)
        except BaseException:
            with suppress(ProcessLookupError):
                process.kill()
            raise
        if self._ready is None and not self._closed:
            self._ready = await self._start()
        if process.returncode == 0 or (process.returncode == 1 and invalid_is_fine and output):
            return _read(output)
        raise StudioError(_fault(errors, process.returncode))

    async def _start(self) -> asyncio.subprocess.Process:
        return await asyncio.create_subprocess_exec(
            sys.executable,
            "-P",  # nothing is imported from the folder that it runs in
            "-c",
            _WARM + _READY,
            cwd=self.folder,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            limit=MOST_BYTES,
        )

    async def close(self) -> None:
        """End the process that waits."""
        self._closed = True
        process, self._ready = self._ready, None
        if process is not None and process.returncode is None:
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()


def _read(output: bytes) -> Any:
    try:
        return json.loads(output.decode("utf-8"))
    except (ValueError, RecursionError):
        raise StudioError("the command's result cannot be read; run it in a terminal to see why.") from None


def _fault(errors: bytes, code: int | None) -> str:
    """The sentence behind "error:", with the lines that belong to it."""
    lines = [plain_line(line) for line in errors.decode("utf-8", "replace").splitlines()]
    begins = [number for number, line in enumerate(lines) if line.startswith("error: ")]
    if begins:
        return "\n".join(line for line in lines[begins[-1] :] if line).removeprefix("error: ")
    return next((line for line in reversed(lines) if line), f"the command ended with exit code {code}.")


def _with_json(arguments: tuple[str, ...]) -> list[str]:
    """Before a "--", behind which all are paths."""
    place = arguments.index("--") if "--" in arguments else len(arguments)
    return [*arguments[:place], "--json", *arguments[place:]]
