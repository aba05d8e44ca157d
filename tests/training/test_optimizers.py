"""Optimizers: the right update, in one call for all tensors, and the same bits after a resume."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lora_studio.adapters.base import AdapterOptions, AdapterSet, inject
from lora_studio.rng import generator
from lora_studio.training.checkpoint import load_state, state_files
from lora_studio.training.optimizers import OPTIMIZERS, adamw
from lora_studio.training.state import Counters, State


def adapters() -> AdapterSet:
    parts = {"unet": torch.nn.ModuleDict({"a": torch.nn.Linear(6, 5), "b": torch.nn.Linear(3, 4)})}
    options = AdapterOptions("lora", rank=2, alpha=2, seed=1)
    return inject(parts, {"unet": ("a", "b")}, options, canonical_path=lambda part, path: path)


def optimizer_of(own: AdapterSet, name: str) -> torch.optim.Optimizer:
    return OPTIMIZERS[name]([{"params": own.parameters("unet"), "lr": 1e-2}], weight_decay=0.1)


def steps(own: AdapterSet, optimizer: torch.optim.Optimizer, numbers: range) -> None:
    """Optimizer steps with gradients that are keyed by the step."""
    for number in numbers:
        for key, parameter in own.named_parameters().items():
            parameter.grad = torch.randn(parameter.shape, generator=generator(number, key))
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize("name", OPTIMIZERS.names())
def test_an_optimizer_goes_on_from_a_checkpoint_bit_for_bit(name: str, tmp_path: Path) -> None:
    straight, stopped, resumed = adapters(), adapters(), adapters()
    steps(straight, optimizer_of(straight, name), range(1, 8))
    first, second = optimizer_of(stopped, name), optimizer_of(resumed, name)
    steps(stopped, first, range(1, 4))
    for file, content in state_files(State(stopped, first, counters=Counters(step=3))).items():
        (tmp_path / file).write_bytes(content)
    assert load_state(tmp_path, State(resumed, second)) == 3
    steps(resumed, second, range(4, 8))
    expected, found = straight.state(), resumed.state()
    assert all(torch.equal(found[key], expected[key]) for key in expected)


def test_adamw_is_the_papers_update_to_rounding() -> None:
    """arXiv 1711.05101, algorithm 2, in float64."""
    start = torch.randn(40, 30, generator=generator("start"))
    parameter, expected = torch.nn.Parameter(start.clone()), start.double()
    optimizer = adamw([{"params": [parameter], "lr": 1e-2}], weight_decay=0.1)
    first = second = torch.zeros_like(expected)
    for step in range(1, 21):
        gradient = torch.randn(start.shape, generator=generator(step))
        parameter.grad = gradient
        optimizer.step()
        first, second = 0.9 * first + 0.1 * gradient, 0.999 * second + 0.001 * gradient.double() ** 2
        change = (first / (1 - 0.9**step)) / ((second / (1 - 0.999**step)).sqrt() + 1e-8)
        expected = expected - 1e-2 * (change + 0.1 * expected)
    torch.testing.assert_close(parameter.double(), expected, atol=2e-6, rtol=0)  # 20 roundings of float32


def test_adamw_is_one_call_for_all_tensors_on_the_cpu() -> None:
    own = adapters()
    assert optimizer_of(own, "adamw").param_groups[0]["fused"]


def test_the_groups_that_an_optimizer_was_made_from_stay_as_they_were() -> None:
    own = adapters()
    groups = [{"params": own.parameters("unet"), "lr": 1e-2}]
    adamw(groups, weight_decay=0.1)
    assert groups[0].keys() == {"params", "lr"}
