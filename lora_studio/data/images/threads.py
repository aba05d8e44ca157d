"""Several threads that decode: results in order, and Python's one list of warning filters kept as it was."""

from __future__ import annotations

import os
import threading
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from itertools import islice
from typing import TypeVar

from PIL import Image

_lock = threading.Lock()
_inside = 0
_outermost: warnings.catch_warnings[None] | None = None


@contextmanager
def quiet_decoders() -> Iterator[None]:
    """Remarks on odd metadata are not shown, those on decompression bombs are errors.

    Python's filters are one list for all threads, so they are changed by the first that enters and put back
    by the last that leaves.
    """
    global _inside, _outermost
    with _lock:
        _inside += 1
        if _inside == 1:
            _outermost = warnings.catch_warnings()
            _outermost.__enter__()
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if _inside == 0 and _outermost is not None:
                _outermost.__exit__(None, None, None)
                _outermost = None


T = TypeVar("T")
R = TypeVar("R")

THREADS = max(1, min(8, os.cpu_count() or 1))  # more would hold more decoded images at a time


def in_threads(
    work: Callable[[T], R], items: Iterable[T], *, ahead: int = 4 * THREADS, threads: int = THREADS
) -> Iterator[R]:
    """What `work` returns for each item, in their order; at most `ahead` results wait to be taken.

    An exception of `work` is raised where its result would have been, and ends the rest.
    """
    source = iter(items)
    with quiet_decoders(), ThreadPoolExecutor(threads, thread_name_prefix="images") as pool:
        waiting: deque[Future[R]] = deque(pool.submit(work, item) for item in islice(source, ahead))
        try:
            while waiting:
                result = waiting.popleft().result()
                waiting.extend(pool.submit(work, item) for item in islice(source, 1))
                yield result
        finally:
            pool.shutdown(cancel_futures=True)
