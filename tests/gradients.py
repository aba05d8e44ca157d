"""Changing the gradients of adapters on their way."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from lora_studio.adapters.adapter_set import AdapterSet


def on_gradient(adapters: AdapterSet, tensor: Tensor, change: Callable[[Tensor], Tensor]) -> None:
    """Let a layer's tensor have the gradient that `change` makes of its own."""
    place = adapters.stack_of.get(tensor)
    if place is None:
        tensor.register_hook(change)
        return
    number = place.number

    def of_all(grad: Tensor) -> Tensor:
        changed = grad.clone()
        changed[number] = change(grad[number])
        return changed

    place.stack.whole.register_hook(of_all)
