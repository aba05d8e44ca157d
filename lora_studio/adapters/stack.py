"""Tensors of one shape that lie in one, [n, ...]: few for an optimizer, and one product for many layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lora_studio.families.freed import return_freed_memory

KEPT_BYTES = 2**26  # that the C library may keep of what was laid elsewhere


class Joined:
    """What the owners hold, in one tensor: they become views of it, so it takes no memory of its own."""

    def __init__(self, owners: Sequence[Tensor], *, at_once: bool = False) -> None:
        """`at_once`: a pass reads all of it when it begins."""
        self.owners, self._whole, self.at_once = owners, _lay_together(owners), at_once

    @property
    def whole(self) -> Tensor:
        """[n, ...]; laid together again where a module was moved."""
        self.renew()
        return self._whole

    def renew(self) -> None:
        """Lay them together again, if they were moved."""
        if not _lies_in(self.owners[0], self._whole):
            self._whole = _lay_together(self.owners)


class Stack:
    """A trained tensor [n, ...], and the parameters of n layers that are views of it.

    What changes one of the two changes the other. The gradient arrives here, and the layers' are views of it;
    whoever clears either clears both before the next pass.
    """

    def __init__(self, owners: Sequence[nn.Parameter]) -> None:
        self.owners = owners
        self._holder = nn.ParameterList([nn.Parameter(_lay_together(owners))])
        self._hook()

    @property
    def whole(self) -> nn.Parameter:
        """[n, ...]; always the same one, also where a module was moved."""
        first, whole = self.owners[0], self._holder[0]
        if not _lies_in(first, whole):
            whole.grad = None
            self._holder.to(first.device)
            _lay_into(whole.detach(), self.owners)
            self._hook()
        return whole

    def _hook(self) -> None:
        whole = self._holder[0]
        if not whole._post_accumulate_grad_hooks:
            whole.register_post_accumulate_grad_hook(lambda _: self.show_gradients())

    def match_gradients(self) -> None:
        """Clear the gradients of all if those of some were cleared."""
        if self.owners[0].grad is None:
            self.whole.grad = None
        elif self.whole.grad is None:
            self.show_gradients()

    def show_gradients(self) -> None:
        """Let each layer see its part of the gradient, or that there is none."""
        grad, shown = self._holder[0].grad, self.owners[0].grad
        if grad is not None and shown is not None and _lies_in(shown, grad):
            return
        parts = [None] * len(self.owners) if grad is None else grad.unbind(0)
        for owner, part in zip(self.owners, parts, strict=True):
            owner.grad = part


class Place(NamedTuple):
    """Where a layer's parameter lies."""

    stack: Stack
    number: int


Places = Mapping[Tensor, Place]


def _lay_together(owners: Sequence[Tensor]) -> Tensor:
    first = owners[0]
    whole = torch.empty(len(owners), *first.shape, dtype=first.dtype, device=first.device)
    return _lay_into(whole, owners)


@torch.no_grad()
def _lay_into(whole: Tensor, owners: Sequence[Tensor]) -> Tensor:
    """Of large tensors the owners' own memory goes back to the system meanwhile: both may be too much."""
    freed = 0
    for owner, view in zip(owners, whole.unbind(0), strict=True):
        freed += owner.nbytes if owner.device.type == "cpu" else 0
        owner.data = view.copy_(owner)
        if freed >= KEPT_BYTES:
            return_freed_memory()
            freed = 0
    return whole


def _lies_in(owner: Tensor, whole: Tensor) -> bool:
    return owner.untyped_storage()._cdata == whole.untyped_storage()._cdata
