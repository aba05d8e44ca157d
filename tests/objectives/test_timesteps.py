"""The draws of timesteps against their densities, and how evenly they are spread."""

from __future__ import annotations

import math
from typing import get_args

import pytest
import torch

from lora_studio.objectives.timesteps import TURNS, DrawPosition, Spread, Timesteps
from lora_studio.rng import generator

DRAWS, BINS, ROWS = 100_000, 50, 50
P_ONE_IN_1000 = 85.4  # chi-square with 49 degrees of freedom
SPREADS = get_args(Spread)


def drawn(timesteps: Timesteps, count: int = DRAWS) -> torch.Tensor:
    turns = range(count // ROWS)
    return torch.cat([timesteps.draw(ROWS, generator("c", n), DrawPosition(1, n)) for n in turns]).double()


def share_below(x: float, bias: float) -> float:
    """The distribution function in closed form."""
    return x ** (1 + bias) if bias >= 0 else 1 - (1 - x) ** (1 - bias)


@pytest.mark.parametrize("spread", SPREADS)
@pytest.mark.parametrize(("lowest", "highest", "bias"), [(0.0, 1.0, 0.0), (0.2, 0.7, 1.0), (0.0, 1.0, -2.0)])
def test_a_hundred_thousand_draws_have_the_density_that_is_asked_for(
    spread: Spread, lowest: float, highest: float, bias: float
) -> None:
    found = drawn(Timesteps(spread, lowest, highest, bias))
    assert found.min() >= lowest and found.max() <= highest
    counts = torch.histc((found - lowest) / (highest - lowest), BINS, 0, 1)
    edges = [share_below(number / BINS, bias) for number in range(BINS + 1)]
    expected = DRAWS * torch.tensor(edges, dtype=torch.float64).diff()
    likely = expected > 5
    chi_square = ((counts - expected) ** 2 / expected)[likely].sum().item()
    assert chi_square < P_ONE_IN_1000
    if spread == "uniform":
        assert chi_square > 20  # as uneven as independent draws are: p = 0.9999


@pytest.mark.parametrize(("lowest", "highest", "bias"), [(0.0, 1.0, 0.0), (0.2, 0.7, 1.5), (0.1, 1.0, -0.5)])
def test_the_density_is_the_derivative_of_what_is_drawn(lowest: float, highest: float, bias: float) -> None:
    timesteps = Timesteps("uniform", lowest, highest, bias)
    grid = torch.linspace(0, 1, 200_001, dtype=torch.float64)
    density = timesteps.density(grid)
    assert torch.trapezoid(density, grid).item() == pytest.approx(1, abs=1e-4)
    quarters = timesteps.placed(torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64))
    for wanted, at in zip((0.25, 0.5, 0.75), quarters.tolist(), strict=True):
        within = grid <= at
        assert torch.trapezoid(density[within], grid[within]).item() == pytest.approx(wanted, abs=1e-4)


@pytest.mark.parametrize("rows", [1, 4])
def test_low_variance_draws_once_from_each_part_of_several_steps(rows: int) -> None:
    timesteps = Timesteps("low_variance")
    for block in range(3):
        turns = range(block * TURNS, (block + 1) * TURNS)
        shares = torch.cat([timesteps.draw(rows, generator("any"), DrawPosition(7, turn)) for turn in turns])
        assert sorted((shares * rows * TURNS).long().tolist()) == list(range(rows * TURNS))


def test_low_variance_is_a_function_of_seed_turn_and_rows() -> None:
    timesteps = Timesteps("low_variance")
    one = timesteps.draw(3, generator("a"), DrawPosition(1, 40))
    assert torch.equal(one, timesteps.draw(3, generator("b"), DrawPosition(1, 40)))
    assert not torch.equal(one, timesteps.draw(3, generator("a"), DrawPosition(2, 40)))
    assert not torch.equal(one, timesteps.draw(3, generator("a"), DrawPosition(1, 41)))


def test_means_over_a_few_steps_vary_least_with_low_variance() -> None:
    """Of a smooth function of the timestep, over eight steps of two rows, from many seeds."""
    spreads: dict[str, float] = {}
    for spread in SPREADS:
        timesteps = Timesteps(spread)
        means = [
            torch.cat([timesteps.draw(2, generator(s, n), DrawPosition(s, 16 + n)) for n in range(16)]).mean()
            for s in range(100)
        ]
        spreads[spread] = torch.stack(means).std().item()
    assert spreads["uniform"] == pytest.approx(math.sqrt(1 / 12 / 32), rel=0.2)
    assert spreads["stratified"] == pytest.approx(math.sqrt(1 / 12 / 32) / 2, rel=0.2)
    assert spreads["low_variance"] < spreads["stratified"] / 5


@pytest.mark.parametrize("spread", SPREADS)
def test_every_row_has_every_timestep_alike(spread: Spread) -> None:
    """No place in a batch has timesteps of its own, nor has a turn of a block."""
    timesteps = Timesteps(spread)
    shares = torch.stack([timesteps.draw(2, generator(s), DrawPosition(s, 18)) for s in range(1000)])
    for row in range(2):
        counts = torch.histc(shares[:, row], 10, 0, 1)
        assert ((counts - 100) ** 2 / 100).sum() < 27.9  # 9 degrees of freedom, p = 0.001
