"""Networks of shapes only draw nothing, and have all else that a network has."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch import nn
from transformers import CLIPTextModel

from lora_studio.families.loading.shapes_only import shapes_only


class Drawn(nn.Module):
    """A layer beside a buffer with numbers of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.register_buffer("table", nn.init.constant_(torch.empty(3), 2.0))


def test_what_has_no_numbers_draws_none_and_buffers_keep_theirs(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = list[torch.device]()
    monkeypatch.setattr(nn.init, "kaiming_uniform_", lambda tensor, **_: drawn.append(tensor.device))
    with shapes_only():
        made = Drawn()
    assert drawn == [] and made.layer.weight.is_meta
    assert made.table.tolist() == [2.0, 2.0, 2.0]
    Drawn()
    assert drawn == [torch.device("cpu")]


def test_all_is_as_it_was_after_a_fault() -> None:
    before = dict(vars(nn.init))
    with pytest.raises(ValueError), shapes_only():
        raise ValueError
    assert vars(nn.init) == before
    assert nn.Linear(2, 2).weight.device == torch.device("cpu")


@pytest.mark.parametrize(("part", "kind"), [("unet", UNet2DConditionModel), ("text_encoder", CLIPTextModel)])
def test_it_has_the_tensors_and_buffers_of_the_network(part: str, kind: type, tiny_base: Path) -> None:
    whole = kind.from_pretrained(tiny_base / part)  # type: ignore[attr-defined]
    with shapes_only():
        made = kind.from_config(whole.config) if part == "unet" else kind(whole.config)  # type: ignore[attr-defined]
    assert {name: one.shape for name, one in made.named_parameters()} == {
        name: one.shape for name, one in whole.named_parameters()
    }
    buffers = dict(made.named_buffers())
    assert all(torch.equal(buffers.pop(name), one) for name, one in whole.named_buffers()) and not buffers
