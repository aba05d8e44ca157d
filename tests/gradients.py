"""The gradients of adapters that do something, and changing them on their way."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from lora_studio.adapters.adapter_set import AdapterSet
from lora_studio.data.batches import Batch
from lora_studio.rng import generator
from lora_studio.training.prepare import Session


def shift(adapters: AdapterSet) -> None:
    """They do something from here on: their second factors, which begin at zero, are random."""
    with torch.no_grad():
        for layer in adapters.layers:
            layer.tensors["up"].normal_(std=0.05, generator=generator(layer.name))


def loss_and_gradients(session: Session, batch: Batch) -> tuple[Tensor, Tensor]:
    """The loss of a micro-batch, and its gradients in a row; none stays behind."""
    loss = session.loop.forward_backward(batch, generator("noise"), None)
    parameters = session.adapters.named_parameters().values()
    flat = torch.cat([p.grad.flatten() for p in parameters if p.grad is not None])
    session.loop.state.optimizer.zero_grad()
    return loss, flat


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
