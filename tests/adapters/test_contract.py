"""What every adapter kind must do, on every layer type it meets, and the formula of each, written again."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from small import INPUT, TARGETS, Small
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lora_studio.adapters import ADAPTERS
from lora_studio.adapters.adapter_set import AdapterSet
from lora_studio.adapters.inject import inject
from lora_studio.adapters.lora_products import product_at_each_place
from lora_studio.adapters.rules import AdapterOptions
from lora_studio.errors import CheckpointError


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


SEEDLESS = ("oft", "full")
"""Kinds that begin alike whatever the seed: with nothing turned, and as the base."""


@pytest.fixture(params=ADAPTERS.names())
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


def test_no_effect_at_step_zero(kind: str) -> None:
    base = Small()
    narrow = base.narrow
    if kind in ("lora", "locon"):  # which multiply; some processors round a 1x1 convolution otherwise
        narrow.forward = lambda x: product_at_each_place(x, narrow.weight.flatten(1), narrow.bias)
    assert torch.equal(adapted(kind)[0](INPUT), base(INPUT))


def test_forward_equals_merged_weight(kind: str) -> None:
    model, adapters = trained(kind)
    torch.testing.assert_close(model(INPUT), merged(adapters)(INPUT))
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
    assert all(torch.equal(one, adapters.state()[key]) for key, one in other_adapters.state().items())


def test_a_state_of_other_adapters_is_refused(kind: str) -> None:
    _, adapters = adapted(kind)
    state = adapters.state()
    state.pop(next(iter(state)))
    with pytest.raises(CheckpointError, match="1 tensors differ"):
        adapters.load(state)


def test_first_values_depend_on_the_seed_alone(kind: str) -> None:
    states = [adapted(kind, seed=seed)[1].state() for seed in (1, 1, 2)]
    first, again, other = (torch.cat([t.flatten() for t in state.values()]) for state in states)
    assert torch.equal(first, again)
    assert torch.equal(first, other) == (kind in SEEDLESS)


def test_adapters_of_a_bfloat16_base_are_float32(kind: str) -> None:
    model = Small().bfloat16()
    options = AdapterOptions(kind, rank=2, alpha=2.0, seed=1)
    adapters = inject({"small": model}, TARGETS, options, canonical_path=lambda part, path: path)
    assert {tensor.dtype for tensor in adapters.parameters("small")} == {torch.float32}


def cayley(skew: Tensor, size: int) -> Tensor:
    """[blocks, n] -> [blocks, size, size], orthogonal."""
    upper = torch.zeros(len(skew), size, size, dtype=skew.dtype)
    for block, values in zip(upper, skew, strict=True):
        block[tuple(torch.triu_indices(size, size, 1))] = values
    skewed, one = upper - upper.mT, torch.eye(size, dtype=skew.dtype)
    return torch.linalg.inv(one - skewed) @ (one + skewed)


def dora(t: dict[str, Tensor], weight: Tensor, scale: float) -> Tensor:
    whole = weight + scale * t["up"].flatten(1) @ t["down"].flatten(1)
    return t["magnitude"][:, None] * whole / whole.norm(dim=1, keepdim=True)


def oft(t: dict[str, Tensor], weight: Tensor, scale: float) -> Tensor:
    size = weight.shape[1] // len(t["skew"])
    return weight @ torch.block_diag(*cayley(scale * t["skew"], size))


def lokr(t: dict[str, Tensor], weight: Tensor, scale: float) -> Tensor:
    second = t["w2"].flatten(1) if "w2" in t else t["w2_a"] @ t["w2_b"]
    rows = [torch.cat([number * second for number in row], dim=1) for row in t["w1"]]
    return weight + scale * torch.cat(rows)


def lora(t: dict[str, Tensor], weight: Tensor, scale: float) -> Tensor:
    return weight + scale * t["up"].flatten(1) @ t["down"].flatten(1)


FORMULAS: dict[str, Callable[[dict[str, Tensor], Tensor, float], Tensor]] = {
    "lora": lora,
    "locon": lora,
    "dora": dora,
    "loha": lambda t, weight, scale: weight + scale * (t["w1_a"] @ t["w1_b"]) * (t["w2_a"] @ t["w2_b"]),
    "lokr": lokr,
    "oft": oft,
    "full": lambda t, weight, scale: t["weight"].flatten(1),
}
"""The adapted weight [out, in * k * k], as the papers have it."""


def moved(kind: str, *, by: float, dtype: torch.dtype = torch.float32, rank: int = 2) -> AdapterSet:
    """Adapters of a base in this dtype, with every tensor a little beside its first values."""
    model = Small().to(dtype)
    options = AdapterOptions(kind, rank=rank, alpha=3.0, seed=1)
    adapters = inject({"small": model}, TARGETS, options, canonical_path=lambda part, path: path)
    torch.manual_seed(3)
    with torch.no_grad():
        for tensor in adapters.parameters("small"):
            tensor += by * torch.randn(tensor.shape)
    return adapters


@pytest.mark.parametrize("rank", [1, 2, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("by", [0.1, 1e-5])
def test_the_change_is_the_papers_formula_and_no_small_one_is_rounded_away(
    kind: str, rank: int, dtype: torch.dtype, by: float
) -> None:
    """In bfloat16 W + 1e-5 is W: a change that is made of such sums vanishes."""
    for layer in moved(kind, by=by, dtype=dtype, rank=rank).layers:
        weight = layer.module.get_base_layer().weight.double()
        tensors = {end: tensor.detach().double() for end, tensor in layer.tensors.items()}
        expected = FORMULAS[kind](tensors, weight.flatten(1), 3.0 / rank) - weight.flatten(1)
        change = layer.delta()
        assert change.dtype == torch.float32 and change.shape == weight.shape
        error = (change.flatten(1).double() - expected).norm() / expected.norm()
        assert error < (1e-5 if by > 1e-2 or kind != "dora" else 1e-2)  # magnitude / norm is 1 + 1e-5
        assert change.count_nonzero() > 0.9 * expected.count_nonzero()


def test_in_bfloat16_the_change_reaches_the_answer_with_its_own_precision(kind: str) -> None:
    """Under autocast, behind a layer whose own answer is zero, so that nothing hides the change's."""
    if kind == "full":
        pytest.skip("there is no answer of the change alone: the trained weight is the only one")
    torch.manual_seed(0)
    model = nn.ModuleDict({"layer": nn.Linear(8, 8, bias=False)}).requires_grad_(False).bfloat16()
    options = AdapterOptions(kind, rank=2, alpha=2.0, seed=1)
    adapters = inject({"m": model}, {"m": ("layer",)}, options, canonical_path=lambda part, path: path)
    with torch.no_grad():
        for tensor in adapters.parameters("m"):
            tensor += 1e-3 * torch.randn(tensor.shape)
    base, layer = model["layer"].get_base_layer(), adapters.layers[0]
    change = layer.delta().double()
    base.forward = lambda x: torch.zeros_like(x)  # its weight is still there to be read
    if kind in ("lora", "locon"):  # whose fast pass reads the weight
        base.weight.data.zero_()
    x = INPUT.bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        answer = model["layer"](x).double()
    expected = x.double() @ change.t()
    assert (answer - expected).norm() < 0.02 * expected.norm()


def test_gradients_are_those_of_the_merged_weight_with_and_without_checkpointing(kind: str) -> None:
    found = []
    for through in (lambda model: model(INPUT), lambda model: checkpoint(model, INPUT, use_reentrant=False)):
        model, adapters = trained(kind)
        for tensor in adapters.parameters("small"):
            tensor.grad = None
        through(model).square().mean().backward()
        found.append({key: tensor.grad for key, tensor in adapters.named_parameters().items()})
    assert all(torch.equal(found[1][key], gradient) for key, gradient in found[0].items())
    model, adapters = trained(kind)
    key, tensor = next(iter(adapters.named_parameters().items()))
    direction, step = torch.randn(tensor.shape, generator=torch.Generator().manual_seed(5)), 1e-3
    ends = []
    for sign in (1, -1):
        with torch.no_grad():
            tensor += sign * step * direction
            ends.append(merged(adapters)(INPUT).square().mean().double())
            tensor -= sign * step * direction
    slope = (found[0][key] * direction).sum().double()
    if kind != "dora":  # whose gradient leaves the norms out, on purpose
        assert ((ends[0] - ends[1]) / (2 * step) - slope).abs() < 2e-2 * slope.abs() + 1e-4


def merged(adapters: AdapterSet) -> Small:
    model = Small()
    with torch.no_grad():
        tensors = dict(model.named_parameters())
        for name, delta in adapters.delta().items():
            name = name.removeprefix("small.")
            tensors[name if name in tensors else f"{name}.weight"] += delta
    return model
