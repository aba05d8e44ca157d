"""Work for several cores: Pillow, hashing and reading let go of Python's lock, so threads are enough."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

from lora_studio.data.quiet_decoders import quiet_decoders

T = TypeVar("T")
R = TypeVar("R")

THREADS = max(1, min(8, os.cpu_count() or 1))  # more would hold more decoded pictures at a time


def in_threads(
    work: Callable[[T], R], items: Iterable[T], *, ahead: int = 4 * THREADS, threads: int = THREADS
) -> Iterator[R]:
    """What `work` answers to each item, in their order; at most `ahead` answers wait to be taken.

    An exception of `work` is raised where its answer would have been, and ends the rest.
    """
    source = iter(items)
    with quiet_decoders(), ThreadPoolExecutor(threads, thread_name_prefix="pictures") as pool:
        waiting: deque[Future[R]] = deque(pool.submit(work, item) for item in islice(source, ahead))
        try:
            while waiting:
                answer = waiting.popleft().result()
                waiting.extend(pool.submit(work, item) for item in islice(source, 1))
                yield answer
        finally:
            pool.shutdown(cancel_futures=True)
