"""The three sides of the training-step benchmark do what their names say."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from step_arms import floor, our_session, recipe
from torch import nn
from train_step import SIZES, criteria, draw_images, in_turns

from lora_studio.families.loading import load_base


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_images(tmp_path_factory.mktemp("benchmark") / "images", 64)


def test_both_trainers_train_as_many_numbers_and_the_report_has_their_ratios(
    images: Path, tmp_path: Path
) -> None:
    size = dataclasses.replace(SIZES["pocket"], batch_size=2, warm_up=0, steps=1)
    found = in_turns(size, "pocket", images, tmp_path)
    assert found["trained_numbers"] == found["plain_trained_numbers"]
    seconds = found["seconds"]
    assert found["times_the_plain_loop"] == pytest.approx(seconds["plain"] / seconds["ours"], rel=0.05)
    assert found["of_the_floor"] == pytest.approx(seconds["ours"] / seconds["floor"], rel=0.05)
    demands = [one.demand for one in criteria({"pocket": found, "full": found})]
    assert demands == [">= 1.7", "<= 1.12", ">= 1.7", "<= 1.03"]


def test_the_floor_goes_back_to_the_first_adapters_place_and_trains_nothing(
    images: Path, tmp_path: Path
) -> None:
    session = our_session(recipe(images, "pocket", resolution=64, batch_size=2), tmp_path)
    reached: list[str] = []
    made: list[nn.Module] = []

    def load(name: str) -> object:
        family = load_base(name)
        unet = family.parts["unet"]
        made.append(unet)
        for path in ("conv_in", "down_blocks.0.resnets.0", "down_blocks.0.attentions.0.norm", "mid_block"):
            unet.get_submodule(path).register_forward_hook(
                lambda module, args, answer, path=path: watch(path, answer)
            )
        return family

    def watch(path: str, answer: torch.Tensor) -> None:
        if answer.requires_grad:
            answer.register_hook(lambda grad: reached.append(path))

    floor(session, "pocket", load=load)()
    session.run.close()
    assert reached == ["mid_block"]
    assert all(parameter.grad is None for parameter in made[0].parameters())
