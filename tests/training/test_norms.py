"""Norms under CUDA's autocast: in the precision of the pass, so that half as much is kept of them."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from lora_studio.training.machine import Machine
from lora_studio.training.planning.simulation.pretending import pretending

BF16 = torch.bfloat16
CPU, CUDA = torch.device("cpu"), torch.device("cuda")
SHAPE = (2, 8, 16, 16)


def network(dtype: torch.dtype = BF16) -> nn.Sequential:
    """What a denoiser has: norms before a convolution and before a linear layer."""
    torch.manual_seed(0)
    around = nn.Sequential(
        nn.GroupNorm(2, 8), nn.SiLU(), nn.Conv2d(8, 8, 1), nn.LayerNorm(16), nn.Linear(16, 16)
    )
    for norm in (around[0], around[3]):
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
    return around.to(dtype).requires_grad_(False)


def kept(part: nn.Module) -> list[tuple[torch.dtype, int]]:
    """Dtype and numbers of all that the backward pass keeps on a pretended GPU."""
    found: list[tuple[torch.dtype, int]] = []

    def see(tensor: Tensor) -> Tensor:
        found.append((tensor.dtype, tensor.numel()))
        return tensor

    with pretending():
        x = torch.empty(SHAPE, dtype=BF16, requires_grad=True)
        hooks = torch.autograd.graph.saved_tensors_hooks(see, lambda tensor: tensor)
        with hooks, torch.autocast("cpu", BF16):
            assert part(x).dtype == BF16
    return found


def wide(part: nn.Module) -> int:
    return sum(dtype == torch.float32 and count >= 2 * 8 * 16 * 16 for dtype, count in kept(part))


def test_nothing_of_an_activation_is_kept_in_float32() -> None:
    with pretending():
        plain, ours = network(), network()
        Machine(CUDA, BF16).tune(ours)
    assert wide(plain) == 3  # both norms' copies, and what the activation is given
    assert wide(ours) == 0


def test_the_numbers_are_those_of_float32_rounded_once() -> None:
    plain = network()
    ours, exact = copy.deepcopy(plain), copy.deepcopy(plain).float()
    Machine(CUDA, BF16).tune(ours)
    x = torch.randn(SHAPE).to(BF16)
    for number in (0, 3):
        with torch.autocast("cpu", BF16):
            found = ours[number](x)
            assert found.dtype == BF16 and torch.equal(found, plain[number](x))  # as a CPU's autocast has it
        torch.testing.assert_close(found.float(), exact[number](x.float()), rtol=2**-8, atol=1e-5)


@pytest.mark.parametrize(("device", "dtype"), [(CUDA, torch.float32), (CPU, BF16)], ids=str)
def test_where_autocast_widens_nothing_a_norm_stays_as_it_is(
    device: torch.device, dtype: torch.dtype
) -> None:
    part = network(dtype)
    Machine(device, dtype).tune(part)
    norms = [one for one in part.modules() if isinstance(one, nn.GroupNorm | nn.LayerNorm)]
    assert norms and not [one for one in norms if "forward" in vars(one)]


def test_a_norm_that_is_trained_stays_in_float32() -> None:
    part = network()
    part[3].float().requires_grad_()
    Machine(CUDA, BF16).tune(part)
    assert ["forward" in vars(part[number]) for number in (0, 3)] == [True, False]


def test_a_compiler_sees_through_it() -> None:
    part = network()
    Machine(CUDA, BF16).tune(part)
    x = torch.randn(SHAPE).to(BF16)
    with torch.autocast("cpu", BF16):
        assert torch.equal(torch.compile(part, backend="eager", fullgraph=True)(x), part(x))
