"""A thread that makes the next micro-batches while the present one is learned."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from lora_studio.data.batches import Batch

Place = tuple[int, int]  # optimizer step, number of the micro-batch in it
READ_AHEAD = 2  # micro-batches


class Ahead:
    """Answers `make(step, number)`, which must be a pure function, and begins with what comes next.

    `per_step`: the micro-batches of a step. An exception of `make` is raised for the one that it belongs to.
    """

    def __init__(self, make: Callable[[int, int], Batch], per_step: int) -> None:
        self._make, self._per_step = make, per_step
        self._begun: OrderedDict[Place, Future[Batch]] = OrderedDict()
        self._pool: ThreadPoolExecutor | None = None

    def get(self, step: int, number: int) -> Batch:
        """One micro-batch; the next ones are begun."""
        future = self._begun.pop((step, number), None)
        following = self._following(step, number)
        for place in [place for place in self._begun if place not in following]:
            self._begun.pop(place).cancel()
        if self._pool is None:
            self._pool = ThreadPoolExecutor(1, thread_name_prefix="read-ahead")
        for place in following:
            if place not in self._begun:
                self._begun[place] = self._pool.submit(self._make, *place)
        return self._make(step, number) if future is None else future.result()

    def _following(self, step: int, number: int) -> list[Place]:
        flat = step * self._per_step + number
        return [divmod(flat + more, self._per_step) for more in range(1, READ_AHEAD + 1)]
