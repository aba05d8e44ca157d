"""A run's plots can be read: nothing lies over what is drawn, and every label is inside of the image."""

from __future__ import annotations

import pytest

from lora_studio import plots
from lora_studio.training import finish
from lora_studio.training.finish import BINS, Draws, timesteps_plot

STEPS = range(1, 201)
LOSSES = [
    {"step": step, "loss": 0.3 - 0.001 * step, "learning_rate": 1e-4 * min(1, step / 50)} for step in STEPS
]
MEASURED = [{"step": step, "relative": 1.0, "images": {"a.png": 1.01, "b.png": 0.99}} for step in (0, 50)]
DRAWN = Draws(tuple(number % 7 for number in range(BINS)), (3.0,) * BINS)


@pytest.mark.parametrize(
    ("draw", "names"),
    [
        (lambda: plots.loss_plot(LOSSES), ["each step", "running mean"]),
        (lambda: plots.validation_plot(MEASURED), ["each image", "mean", "the base"]),
        (lambda: timesteps_plot(DRAWN), ["drawn", "wanted"]),
    ],
    ids=["loss", "validation", "timesteps"],
)
def test_the_legend_covers_nothing_and_no_label_is_cut(draw, names, monkeypatch):
    for module in (plots, finish):
        monkeypatch.setattr(module, "png_bytes", lambda figure: figure)
    figure = draw()
    figure.canvas.draw()
    above = figure.axes[0]
    legend = above.get_legend().get_window_extent()
    assert [text.get_text() for text in above.get_legend().get_texts()] == names
    assert legend.y0 >= above.get_window_extent().y1 and legend.y1 <= figure.bbox.y1
    for axes in figure.axes:
        box = axes.get_tightbbox()
        assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= figure.bbox.x1
    plots.headless_pyplot().close(figure)
