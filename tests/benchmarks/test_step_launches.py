"""The counter of launches counts what computes, on the published trees, and judges by it."""

from __future__ import annotations

import pytest
import torch
from published import published, published_at
from step_launches import SIDES, SIZES, Launches, count, criteria, times_the_floor


def test_views_and_allocations_are_no_launches_and_what_is_freed_is_not_kept() -> None:
    x, weight = torch.ones(4, 8), torch.ones(3, 8, requires_grad=True)
    with Launches() as seen:
        kept = (x.t().reshape(4, 8) @ weight.t()).to(torch.bfloat16)
        torch.empty(1000)
        kept.mul_(2)
    # reshape copies; the product; the cast; the product in place
    assert (seen.launched, seen.casts, seen.allocations) == (4, 1, 1)
    assert seen.bytes == kept.nbytes + x.nbytes  # its own, and the copy that the gradient of `weight` needs


@pytest.mark.slow
def test_the_floor_launches_least_and_both_kinds_of_layers_more() -> None:
    floor, ours, peft = (count(SIZES["512"], side, "tiny") for side in SIDES)
    assert floor.launches < ours.launches < peft.launches
    assert floor.kept_gib <= ours.kept_gib
    assert floor.casts < 10 and ours.casts < 20
    judged = [one for side in (floor, ours, peft) for one in criteria("512", SIZES["512"], side)]
    assert [one.passed for one in judged] == [True, True, False]


def test_a_published_base_has_the_published_number_of_weights() -> None:
    expected = {512: 859_520_964, 768: 865_910_724, 1024: 2_567_463_684}
    for side, number in expected.items():
        denoiser = published(published_at(side), made=()).parts["unet"]
        assert sum(one.numel() for one in denoiser.parameters()) == number


def test_host_time_is_a_ratio_of_the_same_round() -> None:
    found = times_the_floor({"floor": [1.0, 2.0, 4.0], "ours": [2.0, 3.0, 8.0], "peft": [3.0, 6.0, 12.0]})
    assert found["ours"] == {
        "of_the_floor": 2.0,
        "first_quartile": 1.75,
        "third_quartile": 2.0,
        "seconds": 3.0,
    }
