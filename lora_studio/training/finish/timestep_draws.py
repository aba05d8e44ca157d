"""timesteps.png: which timesteps a run has drawn, beside those that its recipe wants."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from lora_studio.plots import headless_pyplot, margins, png_bytes
from lora_studio.training.loop import Loop

BINS = 50


@dataclass(frozen=True)
class Draws:
    """How often each of BINS equal parts of the way from clean to noise was drawn."""

    drawn: tuple[int, ...]
    wanted: tuple[float, ...]  # in the long run; the same sum


def count_draws(loop: Loop) -> Draws:
    """All of the run's draws, made once more: they depend on nothing but seed, step and place."""
    counts = torch.zeros(BINS)
    for step in range(1, loop.config.steps + 1):
        for number, shape in enumerate(loop.feed.shapes_of(step)):
            shares = loop.objective.shares(shape, *loop.draw_of(step, number))
            counts += torch.histc(shares.float(), BINS, 0, 1)
    middles = (torch.arange(BINS * 20) + 0.5) / (BINS * 20)
    density = loop.objective.timesteps_wanted.density(middles).view(BINS, 20).mean(dim=1)
    wanted = density / density.sum() * counts.sum()
    return Draws(tuple(int(count) for count in counts), tuple(wanted.tolist()))


def timesteps_plot(draws: Draws) -> bytes:
    """A PNG: bars for what was drawn, a line for what is wanted."""
    pyplot = headless_pyplot()
    edges = [number / BINS for number in range(BINS + 1)]
    figure, axes = pyplot.subplots(figsize=(8, 4), gridspec_kw=margins(4))
    axes.stairs(draws.drawn, edges, fill=True, color="#b9c4d6", label="drawn")
    axes.stairs(draws.wanted, edges, color="#1f4e9c", linewidth=1.8, baseline=None, label="wanted")
    axes.set_xlabel("timestep, from clean (0) to noise (1)")
    axes.set_ylabel("images")
    axes.legend(frameon=False)
    return png_bytes(figure)
