"""The gradients of several processes become those of one: the one exchange of a step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lora_studio.processes import Processes


class Together(NamedTuple):
    """What all processes know after a step's passes, the same on each."""

    loss: Tensor  # scalar
    flags: tuple[bool, ...]  # each is true if it is on any process


def add_up(
    processes: Processes, parameters: Sequence[nn.Parameter], loss: Tensor, flags: Sequence[bool] = ()
) -> Together:
    """Sum the gradients and the loss over the processes, in float32.

    One message with all gradients instead of DistributedDataParallel: the adapters lie in several parts,
    their gradients are small, a process may have no rows, and flags are agreed on in the same breath, so that
    no process can wait for another that has decided otherwise. A tensor that has no gradient on any process
    has none afterwards.
    """
    if processes.count == 1:
        return Together(loss, tuple(flags))
    facts = [*(float(flag) for flag in flags), *(float(one.grad is not None) for one in parameters)]
    head = torch.cat([loss.detach().float().view(1), torch.tensor(facts, device=loss.device)])
    empty = [torch.zeros_like(one, dtype=torch.float32).flatten() for one in parameters if one.grad is None]
    rest = iter(empty)
    gradients = [next(rest) if one.grad is None else one.grad.float().flatten() for one in parameters]
    message = torch.cat([head, *gradients])
    processes.sum_(message)
    agreed = [value > 0 for value in message[1 : len(head)].tolist()]
    found = message[len(head) :].split([one.numel() for one in parameters])
    for parameter, gradient, there in zip(parameters, found, agreed[len(flags) :], strict=True):
        parameter.grad = gradient.view_as(parameter).to(parameter.dtype) if there else None
    return Together(message[0], tuple(agreed[: len(flags)]))
