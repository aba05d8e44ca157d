"""Long work on images in a process of its own: progress while it goes on, and it can be cancelled."""

from __future__ import annotations

import asyncio
import json
import shutil
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from lora_studio.errors import StudioError

ENDED = "the work ended without a word; there may be too little memory for it."
_MOST_LINE_BYTES = 256 * 2**20  # of the doctor's report on a very large set


async def watch(module: str, *arguments: str, on_progress: Callable[[int, int], None]) -> dict[str, Any]:
    """What `python -m MODULE ARGUMENTS` prints last; each {"done", "total"} before goes to `on_progress`.

    A cancelled call ends the process. Raises StudioError for an {"error"}, and if it ends without a word.
    """
    gently = ["nice"] if shutil.which("nice") else []  # what the page asks for meanwhile comes first
    process = await asyncio.create_subprocess_exec(
        *gently,
        sys.executable,
        "-P",  # nothing is imported from the folder that it runs in
        "-m",
        module,
        *arguments,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
        limit=_MOST_LINE_BYTES,
    )
    assert process.stdout is not None
    found: dict[str, Any] | None = None
    try:
        async for line in process.stdout:
            found = json.loads(line)
            if found is not None and "total" in found:
                on_progress(found["done"], found["total"])
        await process.wait()
    except BaseException:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()
        raise
    if found is None or "total" in found:
        raise StudioError(ENDED)
    if "error" in found:
        raise StudioError(str(found["error"]))
    return found


def tell(what: dict[str, Any]) -> None:
    """Of such a process: one line for whoever watches it, in ASCII alone."""
    print(json.dumps(what), flush=True)
