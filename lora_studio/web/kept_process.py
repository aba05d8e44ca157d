"""A process that is kept for what brings torch; however the server ends, it ends with it."""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from threading import Lock
from typing import NamedTuple, ParamSpec, TypeVar, cast

from lora_studio.errors import StudioError
from lora_studio.web.dataset.watching import ENDED

Given = ParamSpec("Given")
Found = TypeVar("Found")


class _Kept(NamedTuple):
    process: BaseProcess
    pipe: Connection  # whose other end only the process has: each end sees that the other is gone


class KeptProcess:
    """Calls functions there, one after the other; it begins with the first, and again if somebody ends it."""

    def __init__(self) -> None:
        self._waiting = ThreadPoolExecutor(1, "kept-process")
        self._kept: _Kept | None = None
        self._closed = False
        self._lock = Lock()  # none begins once it is closed

    def call(
        self, function: Callable[Given, Found], *given: Given.args, **named: Given.kwargs
    ) -> Future[Found]:
        """What a function of a module returns there; what it raises is raised from the result.

        A StudioError, too, if the process ends meanwhile.
        """
        return self._waiting.submit(self._ask, function, given, named)

    def close(self) -> None:
        """End it, also in the midst of a call."""
        self._waiting.shutdown(wait=False, cancel_futures=True)
        with self._lock:
            self._closed = True
            if self._kept is not None:
                self._kept.process.kill()
                self._kept.process.join()

    def _ask(self, function: Callable[..., Found], given: object, named: object) -> Found:
        pipe = self._pipe()
        try:
            pipe.send((function, given, named))
            found, error = pipe.recv()
        except (EOFError, OSError):
            self._give_up(pipe)
            raise StudioError(ENDED) from None
        if error is not None:
            raise error
        return cast(Found, found)

    def _pipe(self) -> Connection:
        with self._lock:
            if self._closed:
                raise StudioError("the page's server is ending.")
            if self._kept is None or not self._kept.process.is_alive():
                spawning = multiprocessing.get_context("spawn")
                here, there = spawning.Pipe()
                process = spawning.Process(target=_answer, args=(there,), daemon=True)
                process.start()
                there.close()
                self._kept = _Kept(process, here)
            return self._kept.pipe

    def _give_up(self, pipe: Connection) -> None:
        """The next call begins another: one that just ended may still seem to be alive."""
        with self._lock:
            if self._kept is not None and self._kept.pipe is pipe:
                self._kept.process.kill()
                self._kept.process.join()
                self._kept = None


def _answer(pipe: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C in the terminal is for the server
    with suppress(EOFError, OSError):  # whoever asks is gone
        while True:
            function, given, named = pipe.recv()
            try:
                pipe.send((function(*given, **named), None))
            except Exception as error:
                pipe.send((None, error))
