"""The trained tensors by their learning rates, as optimizers take them."""

from __future__ import annotations

from collections.abc import Mapping

from lora_studio.adapters.base import AdapterSet
from lora_studio.training.optimizers import Group


def parameter_groups(adapters: AdapterSet, rates: Mapping[str, float], *, faster: float = 1.0) -> list[Group]:
    """One group for every part and learning rate, in the layers' order; then those of new tokens.

    `rates`: of the parts, for layers without one of their own. `faster`: LoRA+, what the rates of tensors
    that begin as zero are multiplied by.
    """
    groups: dict[tuple[str, float], Group] = {}
    for layer in adapters.layers:
        rate = rates[layer.part] if layer.learning_rate is None else layer.learning_rate
        for end, tensor in layer.tensors.items():
            own = rate * faster if end in layer.kind.faster else rate
            groups.setdefault((layer.part, own), {"params": [], "lr": own})["params"].append(tensor)
    for token in adapters.tokens:
        rate = rates[token.part] if token.learning_rate is None else token.learning_rate
        groups.setdefault((token.name, rate), {"params": [], "lr": rate})["params"].append(token.rows)
    return list(groups.values())
