"""The peak of memory against what can be counted by hand."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import checkpoint

from lora_studio.training.planning.counting import peak_bytes

CPU, SIDE = torch.device("cpu"), 64
ONE = SIDE * SIDE * 4  # bytes of a matrix


def sines(start: Tensor, count: int) -> Tensor:
    for _ in range(count):
        start = torch.sin(start)
    return start


def test_what_is_freed_counts_no_longer() -> None:
    start = torch.zeros(SIDE, SIDE)

    def work() -> None:
        for _ in range(10):
            sines(start, 3)

    with torch.no_grad():
        assert peak_bytes(work, CPU) == 2 * ONE  # what goes in and what comes out


def test_views_and_changes_in_place_take_nothing() -> None:
    start = torch.zeros(SIDE, SIDE)
    assert peak_bytes(lambda: start.view(-1, 2).t()[0].mul_(2), CPU) == 0


def test_a_chain_keeps_every_link_for_its_backward_pass() -> None:
    start = torch.zeros(SIDE, SIDE, requires_grad=True)
    saved: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        kept = sines(start, 10)
    del saved[start.untyped_storage().data_ptr()]
    assert sum(saved.values()) == 9 * ONE  # the inputs of ten sines, of which the first is not ours
    del kept
    peak = peak_bytes(lambda: sines(start, 10).sum().backward(), CPU)
    assert 10 * ONE < peak <= 13 * ONE  # and the last result, its gradient, a cosine


def test_what_checkpointing_computes_again_is_counted() -> None:
    start = torch.zeros(SIDE, SIDE, requires_grad=True)

    def work() -> None:
        result = start
        for _ in range(5):
            result = checkpoint(sines, result, 10, use_reentrant=False)
        result.sum().backward()

    plain = peak_bytes(lambda: sines(start, 50).sum().backward(), CPU)
    assert plain > 50 * ONE
    assert 5 * ONE + 9 * ONE <= peak_bytes(work, CPU) <= 5 * ONE + 14 * ONE  # five results, one block again
