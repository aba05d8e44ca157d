"""How a micro-batch's rows are split: over processes, and over passes where they do not fit into memory."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn

from lora_studio.processes import Processes, part_of
from lora_studio.training.events import Listener, MemoryRanOut
from lora_studio.training.loop.state import State
from lora_studio.training.machine import Machine, out_of_memory, within_memory

T = TypeVar("T")


class BatchSplit:
    """Which rows of a micro-batch this process trains, and in how many passes: more once memory has run out.

    The number of passes is in the state's counters, so that a resumed run begins with it.
    """

    def __init__(self, state: State, machine: Machine, processes: Processes, listener: Listener) -> None:
        self.state, self.machine, self.processes, self.listener = state, machine, processes, listener
        self._rows = 0  # of this process in the micro-batch that was begun last

    def passes_of(self, rows: int) -> Iterator[tuple[slice, float]]:
        """The rows of every pass, and what share of the micro-batch they are; of several processes own ones.

        Of a base that is spread over the processes all run as many passes: along with the others' last one a
        row with a share of 0.
        """
        own = self.processes.share(rows)
        self._rows = max(1, own.stop - own.start)
        passes, lockstep = self.state.counters.passes, self.machine.shards
        for found in own_passes(rows, self.processes, passes, lockstep=lockstep):
            share = (found.stop - found.start) / rows
            yield (found if share else slice(0, 1)), share

    def within_memory(self, work: Callable[[], T]) -> T:
        """What `work` returns, with twice as many passes each time memory runs out, or raises OutOfMemory."""
        return within_memory(work, self._use_more_passes)

    def _use_more_passes(self) -> None:
        self.state.adapters.clear_gradients()
        device, counters = self.machine.device, self.state.counters
        if self.machine.shards:  # the others would wait for this one
            raise out_of_memory(f"on {device}, whose base is spread over the processes")
        if counters.passes >= self._rows:
            raise out_of_memory(f"with one image at a time on {device}")
        counters.passes = min(2 * counters.passes, self._rows)
        self.listener(MemoryRanOut(counters.passes, math.ceil(self._rows / counters.passes)))


def shares(rows: slice, parts: int) -> list[slice]:
    """`rows` in at most `parts` runs of rows, as equal as they can be, the longer ones first.

    >>> shares(slice(0, 5), 2)
    [slice(0, 3, None), slice(3, 5, None)]
    """
    assert parts >= 1, parts
    count = rows.stop - rows.start
    parts = min(parts, count)
    found = [part_of(count, number, parts) for number in range(parts)]
    return [slice(rows.start + one.start, rows.start + one.stop) for one in found]


def own_passes(rows: int, processes: Processes, passes: int, *, lockstep: bool = False) -> list[slice]:
    """This process's part of so many rows, spread over its passes.

    In lockstep all have the same number of passes, empty ones where only others have rows left.
    """
    found = shares(processes.share(rows), passes)
    most = min(passes, -(-rows // processes.count))
    return found + [slice(0, 0)] * (most - len(found)) if lockstep else found


def all_reduce_gradients(
    processes: Processes, parameters: Sequence[nn.Parameter], loss: Tensor, flags: Sequence[bool] = ()
) -> tuple[Tensor, tuple[bool, ...]]:
    """Sum the gradients and the loss over the processes, in float32: the loss [], and which flags any has.

    One message with all gradients instead of DistributedDataParallel: the adapters lie in several parts,
    their gradients are small, a process may have no rows, and flags are agreed on in the same breath, so that
    no process can wait for another that has decided otherwise. A tensor that has no gradient on any process
    has none afterwards.
    """
    if processes.count == 1:
        return loss, tuple(flags)
    facts = [*(float(flag) for flag in flags), *(float(one.grad is not None) for one in parameters)]
    head = torch.cat([loss.detach().float().view(1), torch.tensor(facts, device=loss.device)])
    gradients = (torch.zeros_like(one) if one.grad is None else one.grad for one in parameters)
    message = torch.cat([head, *(gradient.float().flatten() for gradient in gradients)])
    processes.all_reduce(message)
    agreed = [value > 0 for value in message[1 : len(head)].tolist()]
    found = message[len(head) :].split([one.numel() for one in parameters])
    for parameter, gradient, there in zip(parameters, found, agreed[len(flags) :], strict=True):
        if not there:
            parameter.grad = None
        elif parameter.grad is None:
            parameter.grad = gradient.view_as(parameter).to(parameter.dtype)
        else:  # where it lies: others may be views of it
            parameter.grad.copy_(gradient.view_as(parameter))
    return message[0], tuple(agreed[: len(flags)])
