"""The sigmas of flow matching against diffusers and closed forms: shifts, densities and weights."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from statistics import NormalDist
from typing import Any

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.training_utils import compute_loss_weighting_for_sd3
from torch import Tensor

from lora_studio.errors import BaseModelError
from lora_studio.families.flow_schedule import read_shift
from lora_studio.objectives.flow_matching import FlowMatching
from lora_studio.objectives.sigmas import DynamicShift, FlowSchedule, LogitNormal, StaticShift, shifted
from lora_studio.objectives.timesteps import DrawPosition, Timesteps
from lora_studio.rng import generator

# ---- how far sigmas are shifted

FLUX, QWEN, KREA = DynamicShift(), DynamicShift(max_shift=0.9, max_tokens=8192), DynamicShift(max_tokens=6400)


@pytest.mark.parametrize(
    ("side", "flux", "qwen", "krea"),
    [(512, 1.88, 1.71, 1.79), (768, 2.33, 1.83, 2.05), (1024, 3.16, 2.00, 2.48), (1280, 4.66, 2.25, 3.16)],
)
def test_dynamic_shifts_are_those_of_the_published_bases(
    side: int, flux: float, qwen: float, krea: float
) -> None:
    found = [FlowSchedule(shift=one).factor(side // 8, side // 8) for one in (FLUX, QWEN, KREA)]
    assert found == pytest.approx([flux, qwen, krea], abs=0.005)
    assert FlowSchedule(shift=FLUX, patch=1).factor(side // 16, side // 16) == found[0]


def test_shifts_equal_those_of_diffusers() -> None:
    sigmas = torch.linspace(0.01, 1, 50, dtype=torch.float64)
    for tokens in (100, 256, 1000, 4096, 6400):
        theirs = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True).time_shift(
            0.5 + (tokens - 256) / 3840 * 0.65, 1.0, sigmas
        )
        torch.testing.assert_close(shifted(sigmas, FLUX.factor(tokens)), theirs)
    ours = shifted(torch.arange(1000, 0, -1) / 1000, StaticShift(3.0).factor(4096))
    torch.testing.assert_close(ours, FlowMatchEulerDiscreteScheduler(shift=3.0).sigmas)
    torch.testing.assert_close(shifted(shifted(sigmas, 3.0), 1 / 3.0), sigmas)
    assert StaticShift().factor(4096) == 1


CONFIG = dict(FlowMatchEulerDiscreteScheduler().config) | {"_class_name": "FlowMatchEulerDiscreteScheduler"}


def test_a_schedulers_shift_is_read() -> None:
    assert read_shift(CONFIG) == StaticShift(1.0) and read_shift(CONFIG | {"shift": 6.0}) == StaticShift(6.0)
    dynamic = {"use_dynamic_shifting": True, "max_shift": 0.9, "max_image_seq_len": 8192}
    assert read_shift(CONFIG | dynamic) == QWEN


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"_class_name": "DDIMScheduler"}, r"\(DDIMScheduler\) is not one of flow matching"),
        ({"prediction_type": "epsilon"}, "prediction_type = 'epsilon', which means nothing .*; take it out"),
        (
            {"rescale_betas_zero_snr": True},
            "rescale_betas_zero_snr = True, which means nothing .*; take it out",
        ),
        (
            {"use_dynamic_shifting": True, "time_shift_type": "linear"},
            "time_shift_type = 'linear' .* supported: exponential",
        ),
    ],
)
def test_a_scheduler_that_is_not_one_of_flow_matching_is_refused(
    changes: dict[str, object], words: str
) -> None:
    with pytest.raises(BaseModelError, match=words):
        read_shift(CONFIG | changes)


# ---- which sigmas are drawn

DRAWS, CELLS, ROWS = 100_000, 50, 250
P_ONE_IN_1000 = 85.4  # chi-square with 49 degrees of freedom
SIZE = (8, 4, 64, 64)  # 1024 tokens
SHAPES: dict[str, tuple[FlowSchedule, Callable[[float], float]]] = {
    "logit-normal": (FlowSchedule(), lambda s: normal_below(s, 0.0, 1.0)),
    "logit-normal -0.5, 0.6": (FlowSchedule(mean=-0.5, std=0.6), lambda s: normal_below(s, -0.5, 0.6)),
    "logit-normal by FLUX": (FlowSchedule(shift=FLUX), lambda s: normal_below(unshifted(s, 1.8775), 0, 1)),
    "uniform": (FlowSchedule(density="uniform"), lambda s: s),
    "uniform by 3": (FlowSchedule(density="uniform", shift=StaticShift(3)), lambda s: unshifted(s, 3.0)),
    "weighted": (
        FlowSchedule(density="weighted", weighting="cosmap"),
        # arXiv 2403.03206, sec. 3.1: t = 1 - 1 / (tan(pi u / 2) + 1)
        lambda s: 2 / math.pi * math.atan(s / (1 - s)) if s < 1 else 1.0,
    ),
}


def unshifted(s: float, factor: float) -> float:
    return s / (factor - (factor - 1) * s)


def normal_below(s: float, mean: float, std: float) -> float:
    return NormalDist(mean, std).cdf(math.log(s / (1 - s))) if 0 < s < 1 else s


def drawn(timesteps: Timesteps, count: int = DRAWS) -> Tensor:
    turns = range(count // ROWS)
    return torch.cat([timesteps.draw(ROWS, generator("flow", n), DrawPosition(1, n)) for n in turns])


def timesteps_of(schedule: FlowSchedule, **options: Any) -> Timesteps:
    return FlowMatching(schedule, **options).timesteps_of(SIZE)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    ("spread", "lowest", "highest", "bias"),
    [("uniform", 0.0, 1.0, 0.0), ("low_variance", 0.3, 0.95, 1.0), ("stratified", 0.0, 0.6, -2.0)],
)
def test_a_hundred_thousand_sigmas_have_the_density_in_closed_form(
    shape: str, spread: Any, lowest: float, highest: float, bias: float
) -> None:
    schedule, below = SHAPES[shape]
    wanted = timesteps_of(schedule, timesteps=spread, timestep_range=(lowest, highest), timestep_bias=bias)
    found = drawn(wanted)
    assert found.dtype == torch.float32 and found.min() >= lowest and found.max() <= highest
    edges = [lowest + (highest - lowest) * number / CELLS for number in range(CELLS + 1)]
    within = [(below(s) - below(lowest)) / (below(highest) - below(lowest)) for s in edges]
    tilted = [q ** (1 + bias) if bias >= 0 else 1 - (1 - q) ** (1 - bias) for q in within]
    expected = DRAWS * torch.tensor(tilted, dtype=torch.float64).diff()
    counts = torch.histc(found.double(), CELLS, lowest, highest)
    likely = expected > 5
    chi_square = ((counts - expected) ** 2 / expected)[likely].sum().item()
    assert chi_square < P_ONE_IN_1000
    if spread == "uniform" and likely.sum() > 45:
        assert chi_square > 17  # as uneven as independent draws are: p = 0.9999


@pytest.mark.parametrize("shape", SHAPES)
def test_the_density_of_the_plot_is_the_derivative_of_what_is_drawn(shape: str) -> None:
    wanted = timesteps_of(SHAPES[shape][0], timestep_range=(0.1, 0.9), timestep_bias=0.5)
    grid = torch.linspace(0, 1, 200_001, dtype=torch.float64)
    density = wanted.density(grid)
    assert torch.trapezoid(density, grid).item() == pytest.approx(1, abs=1e-4)
    quarters = (0.25, 0.5, 0.75)
    for quarter, at in zip(quarters, wanted.placed(torch.tensor(quarters)).tolist(), strict=True):
        reached = grid <= at
        assert torch.trapezoid(density[reached], grid[reached]).item() == pytest.approx(quarter, abs=1e-4)


def test_logit_normal_sigmas_are_sigmoids_of_normal_numbers() -> None:
    normal = torch.linspace(-5, 5, 101, dtype=torch.float64)
    placed = LogitNormal(-0.5, 0.6).placed(torch.special.ndtr(normal), 0.0, 1.0)
    torch.testing.assert_close(placed, torch.sigmoid(0.6 * normal - 0.5).float())


@pytest.mark.parametrize("ends", [(0.0, 0.01), (0.99, 1.0), (0.0, 1.0)])
@pytest.mark.parametrize(
    "schedule", [FlowSchedule(mean=2, std=0.3), FlowSchedule("weighted", weighting="bell", shift=FLUX)]
)
def test_a_range_at_an_end_is_kept_and_filled(schedule: FlowSchedule, ends: tuple[float, float]) -> None:
    wanted = timesteps_of(schedule, timestep_range=ends)
    found = wanted.placed(torch.linspace(0, 1, 1001))
    assert (found.diff() >= 0).all() and torch.equal(found[[0, -1]], torch.tensor(ends))
    assert len(found.unique()) > 900 and wanted.density(found[1:-1]).isfinite().all()
    with pytest.raises(ValueError, match=r"std 0\.01"):
        LogitNormal(0, 0.01)


def test_larger_images_get_more_noise_where_the_base_wants_it() -> None:
    objective = FlowMatching(FlowSchedule(shift=FLUX))
    shapes = ((64, 4, side, side) for side in (64, 128))
    small, large = (objective.timesteps_of(shape).draw(64, generator("a")) for shape in shapes)
    apart = 0.65 / 3840 * (64**2 - 32**2)  # of mu, by which the logits are moved
    moved = torch.logit(large) - torch.logit(small)
    torch.testing.assert_close(moved, torch.full((64,), apart), atol=1e-3, rtol=0)


def test_stratified_sigmas_take_one_from_each_part_of_the_distribution() -> None:
    wanted = timesteps_of(FlowSchedule(shift=StaticShift(3)))
    reached = wanted.among.reached(wanted.draw(8, generator("b")).double(), 0.0, 1.0)
    assert sorted((reached * 8).long().tolist()) == list(range(8))


# ---- how much it counts

GRID = torch.linspace(0, 1, 100_001, dtype=torch.float64)


def test_loss_weights_equal_their_published_formulas() -> None:
    sigmas = torch.linspace(0, 1, 11)
    cosmap = FlowSchedule(weighting="cosmap").loss_weight(sigmas)
    torch.testing.assert_close(cosmap, compute_loss_weighting_for_sd3("cosmap", sigmas))
    bell = torch.exp(-2 * ((torch.arange(1000) - 500) / 1000) ** 2)
    bell = (bell - bell.min()) * (1000 / (bell - bell.min()).sum())
    found = FlowSchedule(weighting="bell").loss_weight(torch.arange(1000) / 1000)
    torch.testing.assert_close(found, bell, atol=1e-3, rtol=1e-3)
    table = FlowSchedule(weights=(1.0, 3.0, 2.0)).loss_weight(torch.tensor([0.0, 0.25, 0.5, 1.0]))
    torch.testing.assert_close(table, torch.tensor([1.0, 2.0, 3.0, 2.0]) / 2.25)
    assert torch.equal(FlowSchedule().loss_weight(sigmas), torch.ones(11))


@pytest.mark.parametrize(
    "weight", [{"weighting": "cosmap"}, {"weighting": "bell"}, {"weights": (1.0, 3.0, 2.0)}]
)
def test_weights_have_a_mean_of_one_and_weighted_draws_come_to_the_same(weight: Any) -> None:
    schedule = FlowSchedule(density="uniform", **weight)
    assert torch.trapezoid(schedule.weight_at(GRID), GRID).item() == pytest.approx(1, abs=1e-5)
    by_draws = replace(schedule, density="weighted")
    assert torch.equal(by_draws.loss_weight(GRID), torch.ones(len(GRID)))
    evenly = (torch.arange(100_000) + 0.5) / 100_000
    sigmas, loss = timesteps_of(by_draws).placed(evenly), lambda s: 1 / (1 + 5 * s)
    weighted = (schedule.weight_at(evenly) * loss(evenly)).mean().item()
    assert loss(sigmas).mean().item() == pytest.approx(weighted, rel=1e-4)
