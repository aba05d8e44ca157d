"""What every adapter kind must do, on every layer type it meets."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lora_studio.adapters import ADAPTERS
from lora_studio.adapters.base import AdapterOptions, AdapterSet, inject
from lora_studio.errors import CheckpointError


class Small(nn.Module):
    """A linear layer, a 1x1 and a 3x3 convolution in a row."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear, self.narrow, self.wide = (
            nn.Linear(8, 8),
            nn.Conv2d(8, 6, 1),
            nn.Conv2d(6, 5, 3, padding=1),
        )
        self.requires_grad_(False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[B, 8] -> [B, 5, 4, 4]."""
        picture = self.linear(x)[:, :, None, None].expand(-1, -1, 4, 4)
        return self.wide(torch.tanh(self.narrow(picture)))


INPUT = torch.randn(3, 8, generator=torch.Generator().manual_seed(1))
TARGETS = {"small": ("linear", "narrow", "wide")}


def adapted(kind: str, *, seed: int = 1) -> tuple[Small, AdapterSet]:
    model = Small()
    options = AdapterOptions(kind, rank=2, alpha=3.0, seed=seed)
    return model, inject({"small": model}, TARGETS, options, canonical_path=lambda part, path: path)


def trained(kind: str) -> tuple[Small, AdapterSet]:
    model, adapters = adapted(kind)
    optimizer = torch.optim.SGD(adapters.parameters("small"), lr=0.5)
    for _ in range(3):
        optimizer.zero_grad()
        (model(INPUT) - 1).square().mean().backward()
        optimizer.step()
    return model, adapters


@pytest.fixture(params=ADAPTERS.names())
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


def test_no_effect_at_step_zero(kind: str) -> None:
    assert torch.equal(adapted(kind)[0](INPUT), Small()(INPUT))


def test_forward_equals_merged_weight(kind: str) -> None:
    model, adapters = trained(kind)
    merged = Small()
    with torch.no_grad():
        for name, delta in adapters.delta().items():
            merged.get_submodule(name.removeprefix("small.")).weight += delta
    torch.testing.assert_close(model(INPUT), merged(INPUT))
    assert not torch.allclose(model(INPUT), Small()(INPUT))


def test_disabled_equals_base_and_afterwards_it_is_back(kind: str) -> None:
    model, adapters = trained(kind)
    before = model(INPUT)
    with adapters.disabled():
        assert torch.equal(model(INPUT), Small()(INPUT))
    assert torch.equal(model(INPUT), before)


def test_base_weights_never_change_and_have_no_gradient(kind: str) -> None:
    _model, adapters = trained(kind)
    for layer in adapters.layers:
        base = layer.module.get_base_layer()
        assert torch.equal(base.weight, Small().get_submodule(layer.path).weight)
        assert base.weight.grad is None


def test_a_gradient_reaches_every_trainable_tensor_after_the_first_step(kind: str) -> None:
    _, adapters = trained(kind)
    assert all(tensor.grad is not None and tensor.grad.any() for tensor in adapters.parameters("small"))


def test_save_and_load_are_exact(kind: str) -> None:
    model, adapters = trained(kind)
    other, other_adapters = adapted(kind, seed=2)
    other_adapters.load(adapters.state())
    assert torch.equal(other(INPUT), model(INPUT))


def test_a_state_of_other_adapters_is_refused(kind: str) -> None:
    _, adapters = adapted(kind)
    state = adapters.state()
    state.pop(next(iter(state)))
    with pytest.raises(CheckpointError, match="1 tensors differ"):
        adapters.load(state)


def test_first_values_depend_on_the_seed_alone(kind: str) -> None:
    states = [adapted(kind, seed=seed)[1].state() for seed in (1, 1, 2)]
    downs = [torch.cat([t.flatten() for k, t in state.items() if k.endswith("down")]) for state in states]
    assert torch.equal(downs[0], downs[1]) and not torch.equal(downs[0], downs[2])


def test_adapters_of_a_bfloat16_base_are_float32(kind: str) -> None:
    model = Small().bfloat16()
    options = AdapterOptions(kind, rank=2, alpha=2.0, seed=1)
    adapters = inject({"small": model}, TARGETS, options, canonical_path=lambda part, path: path)
    assert {tensor.dtype for tensor in adapters.parameters("small")} == {torch.float32}
