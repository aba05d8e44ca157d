"""Plots as PNG files: loss.png and validation.png of a run, and what all plots have in common."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


APART = 0.036  # of the axes' height, between two names beside them
TICKS = 5  # on an axis, at most: half of matplotlib's, which take most of the time that a plot does


def headless_pyplot() -> ModuleType:
    """matplotlib's, imported where something is drawn: it takes a second, and no display."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    module: ModuleType = pyplot
    return module


def margins(height: float) -> dict[str, float]:
    """Room around the axes of a figure 8 inches wide and `height` inches high, as `gridspec_kw` has it.

    Given, and not found by matplotlib's "constrained" layout, which draws everything twice.
    """
    return {"left": 0.11, "right": 0.98, "top": 1 - 0.4 / height, "bottom": 0.55 / height}


def legend_above(axes: Axes) -> None:
    """Names of the lines in one row above the axes, where nothing is drawn that they could cover."""
    place = {"loc": "lower left", "bbox_to_anchor": (0, 1), "borderaxespad": 0.2}
    axes.legend(ncols=4, frameon=False, **place)


def names_beside(axes: Axes, named: Sequence[tuple[str, tuple[float, float], Any]]) -> None:
    """Name, place (x, y) and colour of points: names in a column beside the axes, each with a line to it."""
    low, high = axes.get_ylim()
    from_top = sorted(named, key=lambda one: (-one[1][1], -one[1][0]))
    heights = spaced([(place[1] - low) / (high - low) for _, place, _ in from_top])
    for (name, place, colour), height in zip(from_top, heights, strict=True):
        line = {"arrowstyle": "-", "color": colour, "alpha": 0.3, "linewidth": 0.8, "relpos": (0, 0.5)}
        axes.annotate(
            name.replace("$", r"\$"),  # with which matplotlib begins a formula
            place,
            xytext=(1.03, height),
            textcoords="axes fraction",
            va="center",
            fontsize=9,
            color=colour,
            arrowprops=line,
            annotation_clip=False,
        )


def spaced(wanted: Sequence[float]) -> list[float]:
    """Heights from 1 down, at least `APART` from each other and no higher than needed, within the axes."""
    placed: list[float] = []
    for number, height in enumerate(wanted):
        ceiling = placed[-1] - APART if placed else 1.0
        room_below = (len(wanted) - 1 - number) * APART
        placed.append(min(ceiling, max(height, room_below)))
    return placed


def png_bytes(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120, pil_kwargs={"compress_level": 1})  # a fifth more bytes
    headless_pyplot().close(figure)
    return buffer.getvalue()


def loss_plot(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """A PNG from the lines of metrics.jsonl; skipped steps are left out."""
    rows = [row for row in rows if not row.get("skipped")]
    pyplot = headless_pyplot()
    steps = [row["step"] for row in rows]
    losses, grid = [row["loss"] for row in rows], {"height_ratios": [3, 1], "gridspec_kw": margins(5)}
    figure, (above, below) = pyplot.subplots(2, 1, figsize=(8, 5), sharex=True, **grid)
    above.plot(steps, losses, color="#b9c4d6", linewidth=0.8, label="each step")
    above.plot(steps, running_mean(losses), color="#1f4e9c", linewidth=1.8, label="running mean")
    above.set_ylabel("loss")
    legend_above(above)
    above.locator_params(nbins=TICKS)
    above.xaxis.set_visible(False)  # it is the one below
    below.plot(steps, [row["learning_rate"] for row in rows], color="#9c5a1f")
    below.set_ylabel("learning rate")
    below.ticklabel_format(axis="y", style="sci", scilimits=(-2, 2))
    below.locator_params(nbins=TICKS)
    below.set_xlabel("step")
    return png_bytes(figure)


def validation_plot(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """A PNG from the lines of validation.jsonl: each image and their mean, as shares of the base's loss."""
    pyplot = headless_pyplot()
    steps = [row["step"] for row in rows]
    figure, axes = pyplot.subplots(figsize=(8, 4), gridspec_kw=margins(4))
    for number, name in enumerate(rows[0].get("images", {})):
        of_image = [row.get("images", {}).get(name, math.nan) for row in rows]
        label = "_" if number else "each image"
        axes.plot(steps, of_image, color="#b9c4d6", linewidth=0.8, label=label)
    means = [row["relative"] for row in rows]
    axes.plot(steps, means, color="#1f4e9c", linewidth=1.8, marker="o", markersize=3, label="mean")
    axes.axhline(1, color="#888", linewidth=0.8, linestyle="--", label="the base")
    axes.set_xlabel("step")
    axes.set_ylabel("loss on validation images / the base's")
    axes.locator_params(nbins=TICKS)
    legend_above(axes)
    return png_bytes(figure)


def running_mean(values: Sequence[float], *, decay: float = 0.95) -> list[float]:
    """An exponential mean, corrected for its start."""
    means: list[float] = []
    total = weight = 0.0
    for value in values:
        total, weight = decay * total + value, decay * weight + 1
        means.append(total / weight)
    return means
