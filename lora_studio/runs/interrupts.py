"""What asks a run, or a worker with its jobs, to stop: Ctrl-C, and signals of batch systems and terminals."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

HANGUP = "SIGHUP"


@contextmanager
def interruptible(
    on_first: Callable[[], None] = lambda: None, asked: threading.Event | None = None
) -> Iterator[threading.Event]:
    """Within it the first Ctrl-C, SIGTERM or SIGHUP sets the event; a second one does what it usually does.

    `on_first` is called by the first, once the event is set. `asked`: the event, if there is one already.

    But for SIGHUP, of which a terminal that closes may send several: those after the first are passed over.
    Under nohup it is ignored, as it was before.
    """
    asked = asked or threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked  # signals belong to the main thread; elsewhere the caller stops the run
        return
    # batch systems send SIGTERM before they take a machine away, and launchers when a process has ended; a
    # terminal that closes or a lost ssh connection sends SIGHUP, which Windows does not have
    names = [name for name in ("SIGINT", "SIGTERM", HANGUP) if hasattr(signal, name)]
    before = {signal.Signals[name]: signal.getsignal(signal.Signals[name]) for name in names}
    caught = [one for one, handler in before.items() if one.name != HANGUP or handler != signal.SIG_IGN]

    def on_interrupt(number: int, frame: object) -> None:
        asked.set()
        for one in caught:
            signal.signal(one, signal.SIG_IGN if one.name == HANGUP else before[one])
        with suppress(RuntimeError, OSError):  # a stream that is being written to takes no second writer
            on_first()

    for one in caught:
        signal.signal(one, on_interrupt)
    try:
        yield asked
    finally:
        for one in caught:
            signal.signal(one, before[one])
