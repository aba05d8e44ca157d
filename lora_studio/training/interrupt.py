"""Ctrl-C, or a request to end, asks a run to stop after the present step."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def interruptible() -> Iterator[threading.Event]:
    """Within it the first Ctrl-C or SIGTERM sets the event; a second one does what it usually does.

    SIGTERM is what batch systems send before they take a machine away, and launchers to all processes when
    one of them has ended.
    """
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked  # signals belong to the main thread; elsewhere the caller stops the run
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def on_interrupt(number: int, frame: object) -> None:
        asked.set()
        restore()

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    for number in before:
        signal.signal(number, on_interrupt)
    try:
        yield asked
    finally:
        restore()
