"""heat.png: where in the network two LoRA files meet."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from operator import attrgetter

import numpy as np

from lora_studio.families.layer_names import DENOISER_TITLE, split_role
from lora_studio.plots import headless_pyplot, png_bytes
from lora_studio.tools.compare import Comparison, LayerComparison

_ROWS_PER_INCH = 6.0


def heat_map(comparison: Comparison) -> bytes:
    """A PNG with a row a block and a column a kind of layer: cosine, overlap, and who is larger."""
    pyplot = headless_pyplot()
    places = [split_role(layer.name) for layer in comparison.shared]
    rows, columns = (sorted({place[i] for place in places}, key=_natural) for i in (0, 1))
    high = 2.6 + len(rows) / _ROWS_PER_INCH
    size = (7 + 0.75 * len(columns), high)
    figure, panels = pyplot.subplots(1, 3, figsize=size, sharey=True, layout="constrained")
    for panel, (title, value, colours, limit) in zip(panels, _PANELS, strict=True):
        table = np.full((len(rows), len(columns)), np.nan)
        for layer, (row, column) in zip(comparison.shared, places, strict=True):
            table[rows.index(row), columns.index(column)] = value(layer)
        shown = panel.imshow(table, cmap=colours, vmin=-limit, vmax=limit, aspect="auto")
        panel.set_title(title, fontsize=9)
        panel.set_xticks(range(len(columns)), columns, rotation=90, fontsize=7)
        panel.set_facecolor("#dddddd")  # where there is no layer
        figure.colorbar(shown, ax=panel, location="bottom", shrink=0.8, ticks=[-limit, 0, limit])
    panels[0].set_yticks(range(len(rows)), rows, fontsize=7)
    a, b = comparison.files
    figure.suptitle(f"A: {a}   B: {b}   {comparison.verdict}", fontsize=10)
    return png_bytes(figure)


def _ratio(layer: LayerComparison) -> float:
    one, other = layer.norms
    return float(np.log2(one / other)) if one and other else np.nan


_PANELS: list[tuple[str, Callable[[LayerComparison], float], str, float]] = [
    ("cosine of the changes", attrgetter("cosine"), "RdBu_r", 1.0),
    ("overlap of what they read, above chance", attrgetter("reads"), "PuOr_r", 1.0),
    ("norm of A / norm of B, powers of two", _ratio, "PRGn", 4.0),
]
"""Title, a layer's value, colours, and the value at their end."""


def _natural(name: str) -> list[tuple[int, str]]:
    """For sorting: numbers by their size."""
    return [(int(word), "") if word.isdigit() else (-1, word) for word in re.split(r"(\d+)", name)]


def norm_plot(norms: Mapping[str, float | None], title: str) -> bytes:
    """A PNG: text encoders above, the denoiser below, each as far as it is in the file.

    A block whose change is not known without the base has no bar.
    """
    encoders = {block: norm for block, norm in norms.items() if " layer " in block}
    denoiser = {block: norm for block, norm in norms.items() if block not in encoders}
    groups = [(name, one) for name, one in (("text encoders", encoders), (DENOISER_TITLE, denoiser)) if one]
    pyplot = headless_pyplot()
    high = max(len(groups), 1)
    size = (9, 1 + 2.6 * high)
    figure, axes = pyplot.subplots(high, 1, figsize=size, squeeze=False, layout="constrained")
    for axis, (name, blocks) in zip(axes[:, 0], groups, strict=False):
        places = range(len(blocks))
        axis.bar(places, [norm or 0.0 for norm in blocks.values()], color="#1f4e9c", width=0.75)
        labels = [block.replace(" layer ", " ") for block in blocks]
        axis.set_xticks(places, labels, rotation=90 if len(blocks) > 14 else 0, fontsize=8)
        axis.set_ylabel("norm of the change")
        axis.set_title(name, fontsize=10, loc="left")
        axis.margins(x=0.01)
        for side in ("top", "right"):
            axis.spines[side].set_visible(False)
    # a file's name may hold a dollar sign, with which matplotlib begins a formula
    figure.suptitle(title.replace("$", r"\$"), fontsize=11)
    return png_bytes(figure)
