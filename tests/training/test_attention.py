"""Attention of a denoiser in training: diffusers' results, bit for bit, in fewer operations."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from diffusers.models.attention_processor import Attention, AttnProcessor
from operations import Operations
from torch import Tensor

from lora_studio.training.machine import Machine

BF16 = torch.bfloat16


def attention(**options: Any) -> Attention:
    torch.manual_seed(0)
    return Attention(16, heads=2, dim_head=8, **options)


def tuned(**options: Any) -> Attention:
    made = attention(**options)
    Machine(torch.device("cpu"), torch.float32).tune(made)
    return made


def run(layer: Attention, *given: Tensor, dtype: torch.dtype | None = None, **named: Any) -> list[Tensor]:
    """The output and the gradients of the inputs."""
    inputs = [one.clone().requires_grad_() for one in given]
    with nullcontext() if dtype is None else torch.autocast("cpu", dtype):
        output = layer(*inputs, **named)
    output.float().square().sum().backward()
    return [output, *(one.grad for one in inputs if one.grad is not None)]


SELF = [torch.linspace(-1, 1, 2 * 5 * 16).sin().view(2, 5, 16)]
CROSS = [*SELF, torch.linspace(-3, 1, 2 * 3 * 24).cos().view(2, 3, 24)]


@pytest.mark.parametrize("dtype", [None, BF16])
@pytest.mark.parametrize("given", [SELF, CROSS], ids=["self", "cross"])
def test_the_same_bits_without_the_divisions_by_one(given: list[Tensor], dtype: torch.dtype | None) -> None:
    width = {"cross_attention_dim": 24} if len(given) == 2 else {}
    with Operations() as usual:
        expected = run(attention(**width), *given, dtype=dtype)
    with Operations() as ours:
        found = run(tuned(**width), *given, dtype=dtype)
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
    assert (usual.counts["aten::div"], ours.counts["aten::div"]) == (2, 0)  # forward and backward


@pytest.mark.parametrize(
    "options",
    [
        {"residual_connection": True},
        {"rescale_output_factor": 2.0},
        {"norm_num_groups": 4},
        {"qk_norm": "layer_norm"},
        {"cross_attention_norm": "layer_norm"},
        {"scale_qk": False},
        {"processor": AttnProcessor()},
    ],
    ids=lambda options: next(iter(options)),
)
def test_what_it_does_not_know_goes_the_usual_way(options: dict[str, Any]) -> None:
    assert torch.equal(run(tuned(**options), *SELF)[0], run(attention(**options), *SELF)[0])


def test_masks_images_and_a_later_processor_go_the_usual_way() -> None:
    ours, usual = tuned(), attention()
    image = torch.linspace(-1, 1, 2 * 16 * 6).sin().view(2, 16, 2, 3)
    assert torch.equal(ours(image), usual(image))
    mask = torch.zeros(2, 1, 5).index_fill(2, torch.tensor([1, 4]), -10_000.0)
    masked = ours(*SELF, attention_mask=mask)
    assert torch.equal(masked, usual(*SELF, attention_mask=mask)) and not torch.equal(masked, ours(*SELF))
    for one in (ours, usual):
        one.set_processor(lambda attn, hidden_states, **named: attn.to_v(hidden_states))
    assert torch.equal(ours(*SELF), usual(*SELF))


def test_dropout_is_not_left_out() -> None:
    dropping = tuned(dropout=0.5)
    torch.manual_seed(1)
    assert not torch.equal(dropping(*SELF), dropping(*SELF))
