"""Standard output and error as everybody prints to them: harmless, and not worth a run when they break."""

from __future__ import annotations

import errno
import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from types import FrameType
from typing import TextIO

from rich.file_proxy import FileProxy

from lora_studio.text import harmless

GONE = (errno.EIO, errno.EPIPE)  # the terminal was closed, or the program that read ended: no one is left


class TerminalStream:
    """What libraries, warnings and tracebacks print, with control characters spelled out.

    A screen escapes its own texts and adds colours and bars, so rich passes by, to `rich_proxied_file`.
    """

    def __init__(self, stream: LastingStream | FileProxy) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> object:
        return getattr(self._stream, name)

    @property
    def rich_proxied_file(self) -> object:
        below = getattr(self._stream, "rich_proxied_file", self._stream)
        return below.rich_proxied_file if isinstance(below, TerminalStream) else below

    def write(self, text: str) -> int:
        self._stream.write(harmless(text))
        return len(text)

    def writelines(self, lines: list[str]) -> None:
        for line in lines:
            self.write(line)


class LastingStream:
    """Falls silent when it can no longer be written to; a run is saved and ends as it would otherwise.

    `fault`: why it cannot, unless no one is left to tell.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.fault = ""
        self._silent = False

    def __getattr__(self, name: str) -> object:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        self._try(lambda: self._stream.write(text))
        return len(text)

    def flush(self) -> None:
        self._try(self._stream.flush)

    def _try(self, write: Callable[[], object]) -> None:
        if self._silent:
            return
        try:
            write()
        except OSError as error:
            self._silent = True
            if error.errno not in GONE:
                self.fault = error.strerror or str(error)


def use_terminal_streams() -> None:
    """For a process of our own: what it prints passes a TerminalStream from now on."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if hasattr(stream, "reconfigure"):  # a file name in any script must not crash a console of another
            stream.reconfigure(errors="backslashreplace")
            setattr(sys, name, TerminalStream(LastingStream(stream)))


def guard_redirected() -> None:
    """What is printed above a progress bar, from which rich would read colours and links, likewise."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if isinstance(stream, FileProxy):
            setattr(sys, name, TerminalStream(stream))


def output_fault() -> str:
    """Why standard output could not be written to, in a sentence; "" if it could."""
    output = getattr(sys.stdout, "rich_proxied_file", None)
    fault = output.fault if isinstance(output, LastingStream) else ""
    return fault and f"standard output cannot be written to ({fault}), so what was to be printed is lost."


def say_at_once(text: str) -> None:
    """A sentence of ours from within a signal's handler, where a stream may be in the middle of a line."""
    with suppress(OSError):
        os.write(2, f"\n{text}\n".encode())


def answer_interrupts() -> None:
    """The first Ctrl-C is answered at once: what is being read may take a while to let go.

    For a process of our own, unless it ignores them, as one in the background does.
    """

    def answer(number: int, frame: FrameType | None) -> None:
        signal.signal(number, signal.default_int_handler)
        say_at_once("stopping")
        raise KeyboardInterrupt

    if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:
        signal.signal(signal.SIGINT, answer)


def missing_folder() -> str:
    """Why the folder in which the program was started cannot be used, in a sentence; "" if it can."""
    try:
        os.getcwd()
    except OSError as error:
        fault = error.strerror or error
        return f"the folder in which this was started is not there any more ({fault}); change to another one."
    return ""
