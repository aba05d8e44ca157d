"""An optimizer step of several micro-batches by the fullest of them: one beside the gradients of others."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TypeVar
from unittest.mock import patch

import torch

from lora_studio.training.loop import Loop
from lora_studio.training.loop.step_result import GradientWatch
from lora_studio.training.planning.counting import Work

T = TypeVar("T")


class SimulatedStep:
    """Runs a loop's step of one micro-batch, and counts its work as if it had `count` of them."""

    def __init__(self, loop: Loop, count: int) -> None:
        self.loop, self.count = loop, count
        self.work = Work()  # of the step, with all its micro-batches
        self._micro_batch, self._asking = Work(), Work()  # the base is asked for a window of micro-batches

    def run(self, watch: GradientWatch) -> None:
        """Once, while pretending; `work` is known behind it."""
        loop, beside = self.loop, self.loop.beside
        predictions, targets = loop.base_predictions, loop.base_predictions.targets
        split, within_memory = loop.split, loop.split.within_memory

        @contextmanager
        def beside_gradients() -> Iterator[None]:
            if self.count > 1:
                self._lay_out_gradients()
            with beside():
                yield

        def of_micro_batch(work: Callable[[], T]) -> T:
            with counted.part() as self._micro_batch:
                return within_memory(work)

        def asked(*given: object) -> object:
            with counted.part() as self._asking:
                return targets(*given)  # type: ignore[arg-type]

        with ExitStack() as changed:
            changed.enter_context(patch.object(loop, "beside", beside_gradients))
            changed.enter_context(patch.object(split, "within_memory", of_micro_batch))
            changed.enter_context(patch.object(predictions, "targets", asked))
            counted = changed.enter_context(Work())
            loop.train_step(1, watch)
        window = max(1, len(predictions.window))
        work = counted.plus(self._micro_batch, self.count - 1)
        work = work.plus(self._asking, self.count / window - self.count)
        self.work = work.plus(self._addition(), -1) if self.count > 1 else work

    def _parameters(self) -> Iterator[torch.nn.Parameter]:
        for group in self.loop.state.optimizer.param_groups:
            yield from group["params"]

    def _lay_out_gradients(self) -> None:
        """As an earlier micro-batch leaves them."""
        for parameter in self._parameters():
            parameter.grad = torch.empty_like(parameter)  # which is no work
        self.loop.state.adapters.show_gradients()

    def _addition(self) -> Work:
        """Of the gradients to those before them: the first micro-batch has none."""
        found, sizes = Work(), [one.nbytes for one in self._parameters()]
        found.launches, found.bytes = len(sizes), 3 * sum(sizes)  # both are read, and one is written
        return found
