"""Tensors of several layers that lie in one, to an optimizer and in a checkpoint."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load
from torch import nn

from lora_studio.adapters.adapter_set import AdapterSet
from lora_studio.adapters.inject import inject
from lora_studio.adapters.rules import AdapterOptions
from lora_studio.recipe.adapter import LayersConfig
from lora_studio.recipe.training import TrainingConfig
from lora_studio.rng import generator
from lora_studio.training.loop.state import Counters, State, load_state, state_files
from lora_studio.training.optimizers import OPTIMIZERS
from lora_studio.training.optimizers.choose import is_elementwise, make_optimizer, parameter_groups

NAMES = ("a", "b", "c", "other")


def state(optimizer: str, *, stacked: bool) -> State:
    """Four layers, three of one shape, of which one learns at a rate of its own in LoRA+'s two groups."""
    model = nn.ModuleDict({name: nn.Linear(6, 5) for name in NAMES[:3]} | {"other": nn.Linear(3, 4)})
    rules = [LayersConfig(pattern="b", learning_rate=3e-3)]
    options = AdapterOptions("lora", rank=2, alpha=2, seed=1, rules=rules)
    adapters = inject({"m": model}, {"m": NAMES}, options, canonical_path=lambda part, path: path)
    groups = parameter_groups(adapters, {"m": 1e-2}, faster=4, stacked=stacked)
    return State(adapters, make_optimizer(TrainingConfig(optimizer=optimizer, weight_decay=0.1), groups))


def learn(own: State, numbers: range) -> None:
    """Steps with gradients that are keyed by the step."""
    adapters: AdapterSet = own.adapters
    for number in numbers:
        for key, tensor in adapters.named_parameters().items():
            tensor.grad = torch.randn(tensor.shape, generator=generator(number, key))
        for stack in adapters.stacks:
            stack.whole.grad = torch.stack([one.grad for one in stack.owners if one.grad is not None])
        own.optimizer.step()
        adapters.clear_gradients()


def test_what_may_lie_in_one_is_known_of_every_optimizer() -> None:
    assert [name for name in OPTIMIZERS.names() if is_elementwise(name)] == ["adamw", "lion"]


@pytest.mark.parametrize("optimizer", ["adamw", "lion"])
def test_an_optimizer_has_fewer_tensors_and_makes_the_same_of_them(optimizer: str) -> None:
    together, apart = state(optimizer, stacked=True), state(optimizer, stacked=False)
    tensors = [[len(g["params"]) for g in own.optimizer.param_groups] for own in (together, apart)]
    assert tensors == [[2, 2, 1, 1], [3, 3, 1, 1]]
    rates = [[g["lr"] for g in own.optimizer.param_groups] for own in (together, apart)]
    assert rates[0] == rates[1] == [1e-2, 4e-2, 3e-3, 12e-3]
    for own in (together, apart):
        learn(own, range(3))
    expected = apart.adapters.state()
    for key, tensor in together.adapters.state().items():
        torch.testing.assert_close(tensor, expected[key], atol=1e-7, rtol=1e-6)


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("optimizer", ["adamw", "lion"])
def test_a_checkpoint_holds_each_layers_tensors_and_goes_on_either_way(
    optimizer: str, before: bool, tmp_path: Path
) -> None:
    """What was written with every tensor alone is read where they lie in one, and the other way round."""
    first, second, straight = (state(optimizer, stacked=one) for one in (before, not before, not before))
    learn(first, range(3))
    first.counters = Counters(step=3)
    files = state_files(first)
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    kept, shapes = load(files["optimizer.safetensors"]), first.adapters.named_parameters()
    moments = {key: one for key, one in kept.items() if one.dim()}
    assert {key.split("|")[0] for key in moments} == shapes.keys()
    assert all(one.shape == shapes[key.split("|")[0]].shape for key, one in moments.items())
    assert load_state(tmp_path, second) == 3
    again = state_files(second)
    assert again == files and json.loads(again["state.json"])["step"] == 3
    learn(straight, range(6))
    learn(second, range(3, 6))
    expected = straight.adapters.state()
    for key, tensor in second.adapters.state().items():
        torch.testing.assert_close(tensor, expected[key], atol=1e-7, rtol=1e-6)
