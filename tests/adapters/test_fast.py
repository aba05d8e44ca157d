"""The fast forward passes beside PEFT's own, which they replace."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import layer as peft_layers
from torch import Tensor, nn

from lora_studio.adapters.fast_lora import NARROW, FastConv1x1, FastLinear, make_fast

WIDE = 144
assert WIDE * WIDE > NARROW > 48 * 48


def layer(inner: nn.Module, **options: object) -> nn.Module:
    """A layer with an adapter that does something, as PEFT makes it."""
    torch.manual_seed(0)
    model = nn.Sequential(inner).requires_grad_(False)
    config = LoraConfig(r=3, lora_alpha=4.5, target_modules=["0"], **options)
    inject_adapter_in_model(config, model, adapter_name="studio")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    return model[0]


def answer_and_gradients(module: nn.Module, x: Tensor) -> list[Tensor]:
    x = x.detach().requires_grad_()
    answer = module(x)
    answer.square().mean().backward()
    trained = [p for p in module.parameters() if p.requires_grad]
    found = [answer.detach(), x.grad, *(p.grad for p in trained)]
    for parameter in trained:
        parameter.grad = None
    return found


def linear(width: int, *, bias: bool = True) -> tuple[nn.Module, Tensor]:
    return nn.Linear(width, width + 8, bias=bias), torch.randn(2, 50, width)


def convolution(width: int, *, bias: bool = True) -> tuple[nn.Module, Tensor]:
    return nn.Conv2d(width, width + 8, 1, bias=bias), torch.randn(2, width, 8, 6)


CASES = {
    "narrow linear": lambda: linear(48),
    "wide linear": lambda: linear(WIDE),
    "wide linear without bias": lambda: linear(WIDE, bias=False),
    "rows that do not follow each other": lambda: (
        nn.Linear(WIDE, 8),
        torch.randn(2, WIDE, 4, 6).permute(0, 2, 3, 1).flatten(1, 2),
    ),
    "narrow convolution": lambda: convolution(48),
    "narrow convolution without bias": lambda: convolution(48, bias=False),
    "wide convolution": lambda: convolution(WIDE),
    "channels last": lambda: (
        nn.Conv2d(48, 8, 1),
        torch.randn(2, 48, 4, 6).to(memory_format=torch.channels_last),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_same_answer_and_gradients_as_peft(name: str) -> None:
    inner, x = CASES[name]()
    module = layer(inner)
    expected = answer_and_gradients(module, x)
    make_fast(module, "studio")
    assert isinstance(module, FastLinear | FastConv1x1)
    found = answer_and_gradients(module, x)
    assert len(found) == 4
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("name", ["wide linear", "narrow linear", "wide linear without bias"])
def test_under_autocast_it_is_as_near_to_float32_as_peft_is(name: str) -> None:
    inner, x = CASES[name]()
    module = layer(inner)
    exact = answer_and_gradients(module, x)
    inner.to(torch.bfloat16)

    def errors() -> list[float]:
        with torch.autocast("cpu", torch.bfloat16):
            found = answer_and_gradients(module, x)
        return [((a.float() - b).norm() / b.norm()).item() for a, b in zip(found, exact, strict=True)]

    of_peft = errors()
    make_fast(module, "studio")
    for ours, theirs in zip(errors(), of_peft, strict=True):
        assert 1e-4 < theirs < 1e-2 and ours < 1.2 * theirs


def test_an_input_without_gradient_gets_none() -> None:
    for width in (48, WIDE):
        module = layer(nn.Linear(width, 8))
        make_fast(module, "studio")
        module(torch.randn(2, width)).sum().backward()
        assert all(p.grad is not None for p in module.parameters() if p.requires_grad)


def test_switched_off_it_is_the_base_to_the_last_bit() -> None:
    for name in ("narrow linear", "wide linear", "narrow convolution", "wide convolution"):
        inner, x = CASES[name]()
        module = layer(inner)
        make_fast(module, "studio")
        module.enable_adapters(False)
        assert torch.equal(module(x), inner(x))


def test_what_is_not_plain_stays_with_peft() -> None:
    around = layer(nn.Conv2d(8, 8, 3, padding=1))
    make_fast(around, "studio")
    assert type(around) is peft_layers.Conv2d
    for options in ({"use_dora": True}, {"lora_dropout": 0.5}):
        module = layer(nn.Linear(48, 48), **options)
        x = torch.randn(4, 48)
        torch.manual_seed(3)
        expected = module(x)
        make_fast(module, "studio")
        torch.manual_seed(3)
        assert torch.equal(module(x), expected)
