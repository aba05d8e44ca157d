"""Frozen convolutions of a denoiser in training on a CPU: torch's own results, in matrix products."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from operations import Operations
from torch import Tensor, nn

from lora_studio.training.machine import Machine
from lora_studio.training.machine.convolutions import FEW, LARGE, MANY, WIDER, kept_bytes
from lora_studio.training.planning.counting import peak_bytes

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


MANY_CHANNELS = [(MANY, MANY + 8, (1, MANY, 16, 10)), (MANY + 8, MANY, (3, MANY + 8, 8, 6))]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("channels", "out", "shape"), MANY_CHANNELS)
def test_with_many_channels_it_is_in_tiles(
    channels: int, out: int, shape: tuple[int, ...], bias: bool
) -> None:
    x = image(*shape)
    expected = run(convolution(channels, out, bias=bias).double(), x.double())
    direct = run(convolution(channels, out, bias=bias), x)
    *found, by_torch = run(tuned(convolution(channels, out, bias=bias)), x)
    for one, other, without in zip(found, expected[:2], direct[:2], strict=True):
        assert float((one - other).abs().max()) < 8 * float((without - other).abs().max()) < 1e-4
    assert not by_torch and direct[2]


def test_where_tiles_do_not_pay_torch_computes_it() -> None:
    pays = convolution(MANY, MANY), image(1, MANY, 12, 12)
    assert not run(tuned(pays[0]), pays[1])[2]
    for layer, x in (
        (convolution(MANY - 1, MANY), image(1, MANY - 1, 12, 12)),
        (convolution(MANY, MANY - 1), pays[1]),
        (convolution(MANY, MANY), image(1, MANY, 11, 12)),
        (convolution(MANY, MANY), image(1, MANY, 12, 11)),
        (convolution(MANY, MANY), image(LARGE, MANY, 16, 18)),
        (convolution(MANY, MANY, stride=2), image(2, MANY, 16, 16)),
        (convolution(MANY, MANY, padding=0), pays[1]),
        (convolution(MANY, MANY, kernel_size=5, padding=1), pays[1]),
    ):
        assert run(tuned(layer), x)[2], (layer, x.shape)


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
    many, x = tuned(convolution(MANY, MANY, bias=False)), image(1, MANY, 10, 10)
    before = many(x)
    with torch.no_grad():
        many.weight.mul_(2)
    torch.testing.assert_close(many(x), 2 * before)


@pytest.mark.parametrize(
    ("layer", "shape", "numbers"),
    [
        (convolution(MANY, MANY), (1, MANY, 10, 10), 16 * MANY * MANY),
        (convolution(5, 6), (1, 5, 2, 2), 5 * 4 * 6 * 4),
        (convolution(5, 120), (2, 5, 3, 5), 0),
    ],
)
def test_what_is_made_of_a_weight_is_counted_beside_the_weights_alone(
    layer: nn.Conv2d, shape: tuple[int, ...], numbers: int
) -> None:
    denoiser, x = nn.Sequential(tuned(layer)), image(*shape)
    assert kept_bytes(denoiser) == 0
    first, second = (peak_bytes(lambda: denoiser(x), CPU) for _ in range(2))
    assert kept_bytes(denoiser) == 4 * numbers and first == second


def test_compiled_it_is_the_layer_itself() -> None:
    layer, x = tuned(convolution(5, 6)), image(2, 5, 2, 2)
    graph = torch.compile(layer, backend="eager", fullgraph=True)
    torch.testing.assert_close(graph(x), layer(x))
