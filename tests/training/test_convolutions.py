"""Frozen convolutions of a denoiser in training on a CPU: torch's own results, in matrix products."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from operations import Operations
from torch import Tensor, nn

from lora_studio.training.machine import Machine
from lora_studio.training.machine.convolutions import FEW, WIDER

CPU = torch.device("cpu")
USUAL = {"aten::convolution", "aten::convolution_backward"}


def convolution(channels: int, out: int, *, frozen: bool = True, **options: Any) -> nn.Conv2d:
    torch.manual_seed(0)
    made = nn.Conv2d(channels, out, **{"kernel_size": 3, "padding": 1} | options)
    return made.requires_grad_(not frozen)


def tuned(layer: nn.Conv2d, dtype: torch.dtype = torch.float32) -> nn.Conv2d:
    Machine(CPU, dtype).tune(nn.Sequential(layer))
    return layer


def run(layer: nn.Conv2d, x: Tensor) -> tuple[Tensor, Tensor, bool]:
    """The output, the gradient of x, and whether torch's own convolution computed them."""
    x = x.clone().requires_grad_()
    layer(x)  # a matrix is made once
    with Operations() as seen:
        output = layer(x)
        output.backward(torch.linspace(-1, 1, output.numel(), dtype=x.dtype).cos().view_as(output))
    assert x.grad is not None
    return output.detach(), x.grad, bool(USUAL & seen.counts.keys())


def image(*shape: int) -> Tensor:
    return torch.linspace(-3, 3, torch.Size(shape).numel()).sin().view(shape)


SMALL_IMAGES = {  # what the layer has, and what it gets
    "one place": ({"out": 6}, (3, 5, 1, 1)),
    "one matrix": ({"out": 6}, (3, 5, 2, 2)),
    "one matrix, not square": ({"out": 6, "bias": False}, (1, 5, 1, 4)),
    "one matrix, every other place": ({"out": 6, "stride": 2}, (3, 5, 2, 2)),
    "at each place": ({"out": 6, "kernel_size": 1, "padding": 0}, (3, 5, 7, 6)),
    "columns": ({"out": 120}, (2, 5, 3, 5)),
    "columns, not square": ({"out": 60, "kernel_size": (1, 3), "padding": (0, 1)}, (1, 5, 3, 5)),
    "columns, every other place": ({"out": 64, "stride": 2, "bias": False}, (2, 5, 5, 4)),
}


@pytest.mark.parametrize(("options", "shape"), SMALL_IMAGES.values(), ids=SMALL_IMAGES)
def test_of_a_small_image_it_is_a_product(options: dict[str, Any], shape: tuple[int, ...]) -> None:
    expected = run(convolution(5, **options).double(), image(*shape).double())
    *found, by_torch = run(tuned(convolution(5, **options)), image(*shape))
    for one, other in zip(found, expected[:2], strict=True):
        torch.testing.assert_close(one.double(), other, rtol=1e-5, atol=1e-5)
    assert expected[2] and not by_torch


def test_where_the_weight_is_the_smaller_part_and_in_other_layers_torch_computes_it() -> None:
    places, few = 3 * 5, image(1, 4, 3, 5)
    assert places > FEW
    for layer in (
        convolution(4, WIDER * places - 4),
        convolution(4, WIDER * places, groups=4),
        convolution(4, WIDER * places, dilation=2, padding=2),
        convolution(4, WIDER * places, padding_mode="circular"),
        convolution(4, WIDER * places, padding="same"),
        convolution(4, WIDER * places, frozen=False),
    ):
        assert run(tuned(layer), few)[2], layer
    assert not run(tuned(convolution(4, WIDER * places)), few)[2]


def test_autocast_rounds_as_it_does_with_the_layer_itself() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        for channels in ({"out": 6}, {"out": 200}):
            found = run(tuned(convolution(5, **channels), torch.bfloat16), image(2, 5, 2, 3))
            assert found[0].dtype == torch.bfloat16 and found[2]


def test_a_weight_that_changes_is_read_anew() -> None:
    layer, x = tuned(convolution(5, 6)), image(2, 5, 2, 2)
    before = layer(x)
    with torch.no_grad():
        layer.weight.mul_(2)
    torch.testing.assert_close(layer(x) - layer.bias[:, None, None], 2 * (before - layer.bias[:, None, None]))
    layer.weight.data = torch.zeros_like(layer.weight)
    assert torch.equal(layer(x), layer.bias[:, None, None].expand(2, -1, 2, 2))
    assert layer(image(2, 5, 1, 4)).shape == (2, 6, 1, 4)  # another shape with as many places


def test_compiled_it_is_the_layer_itself() -> None:
    layer, x = tuned(convolution(5, 6)), image(2, 5, 2, 2)
    graph = torch.compile(layer, backend="eager", fullgraph=True)
    torch.testing.assert_close(graph(x), layer(x))
