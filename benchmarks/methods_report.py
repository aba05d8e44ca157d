"""What methods.py measured: a table with the spread of the seeds, and a plot of fidelity against drift."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean
from typing import Any

from figures import table

from lora_studio.plots import headless_pyplot, names_beside, png_bytes

FIGURES = ("fidelity", "following", "leaking", "drift")
SHIPPED = "as shipped"
ABOUT = """# Methods side by side

The shipped recipes of the pocket base's style and subject, each with one change, by `benchmarks/methods.py`.
Means over the seeds of training, and their least and most. *Fidelity*: images with the trigger that show
what was trained. *Following*: those that show what else the prompt asks for, the object or, of a subject, the
background. *Leaking*: images without the trigger that show what was trained. *Drift*: how far those
changed, in percent of how far another noise changes them. What is changed stands in `METHODS` there."""
_COLOURS = ("#000000", "#1f77b4", "#2ca02c", "#d62728", "#ff7f0e", "#9467bd", "#8c564b")


@dataclass(frozen=True)
class Piece:
    """What one training came to."""

    method: str
    seed: int
    steps: int
    fidelity: float  # share of images with the trigger that show what was trained
    following: float  # share of them that show what the prompt asks for besides: the object, the background
    leaking: float  # share of images without the trigger that show it, too
    drift: float  # 1: images without the trigger changed as much as with another noise
    rests_on: str  # a hash of recipe, base, images and questions

    @property
    def task(self) -> str:
        """What it teaches: "style" or "subject"."""
        return self.method.partition(", ")[0]

    @property
    def name(self) -> str:
        """What is different in it."""
        return self.method.partition(", ")[2] or SHIPPED


def by_method(found: Sequence[Piece]) -> dict[str, list[Piece]]:
    """The seeds of each method, in the order in which they come."""
    names = dict.fromkeys(one.method for one in found)
    return {name: [one for one in found if one.method == name] for name in names}


def spread(values: Sequence[float]) -> str:
    """The mean in percent, and the least and the most of several seeds."""
    middle = f"{100 * mean(values):.0f} %"
    return middle if len(values) < 2 else f"{middle} ({100 * min(values):.0f} to {100 * max(values):.0f})"


def markdown(found: Sequence[Piece]) -> str:
    """A row a method: its seeds, and figures with their spread."""
    rows = [
        (method, len(seeds), *(spread([getattr(p, name) for p in seeds]) for name in FIGURES))
        for method, seeds in by_method(found).items()
    ]
    return table(("method", "seeds", *FIGURES), rows)


def plot(found: Sequence[Piece], groups: Mapping[str, str]) -> bytes:
    """A PNG: fidelity against drift, a point a method, over arms from the least to the most of its seeds.

    The styles, the best of them once more from near by, and the subjects. `groups` says of every method what
    it changes, which is its colour.
    """
    pyplot = headless_pyplot()
    of_group = dict(zip(dict.fromkeys(groups.values()), _COLOURS, strict=False))
    room = {"left": 0.045, "right": 0.905, "top": 0.89, "bottom": 0.08, "wspace": 0.55}
    figure, panels = pyplot.subplots(1, 3, figsize=(18, 7), gridspec_kw=room)
    style, subject = (by_method([p for p in found if p.task == task]) for task in ("style", "subject"))
    best = {method: seeds for method, seeds in style.items() if _is_near(seeds)}
    rest = {method: seeds for method, seeds in style.items() if method not in best}
    views = (
        (style, rest, "style"),
        (best, best, "style: the frame on the left"),
        (subject, subject, "subject"),
    )
    for panel, (shown, named, title) in zip(panels, views, strict=True):
        colours = {method: of_group[groups[method]] for method in shown}
        for method, seeds in shown.items():
            _cross(panel, seeds, colours[method])
        panel.set_title(title)
        panel.set_xlabel("drift without the trigger, % of what another noise changes")
        panel.set_ylabel("fidelity with the trigger, %")
        panel.grid(color="#eeeeee")
        panel.set_axisbelow(True)
        if shown is not best:
            panel.set_xlim(left=-3)
            panel.set_ylim(-3, 103)
        names_beside(panel, [(p[0].name, _middle(p), colours[method]) for method, p in named.items()])
    _frame(panels[0], panels[1])
    marks = [pyplot.Line2D([], [], color=colour, marker="o", linestyle="") for colour in of_group.values()]
    figure.legend(marks, list(of_group), loc="upper center", ncols=len(of_group), frameon=False)
    return png_bytes(figure)


def _is_near(seeds: Sequence[Piece]) -> bool:
    """Among the best, which are too close together to be told apart beside all others."""
    drift, fidelity = _middle(seeds)
    return drift <= 75 and fidelity >= 75


def _frame(panel: Any, near: Any) -> None:
    """Where the panel that is near by lies in the other one."""
    (left, right), (low, high) = near.get_xlim(), near.get_ylim()
    corners = ([left, right, right, left, left], [low, low, high, high, low])
    panel.plot(*corners, color="#999999", linewidth=0.8)


def _middle(seeds: Sequence[Piece]) -> tuple[float, float]:
    return 100 * mean(p.drift for p in seeds), 100 * mean(p.fidelity for p in seeds)


def _cross(panel: Any, seeds: Sequence[Piece], colour: str) -> None:
    """A point at the mean, with arms from the least to the most of the seeds."""
    x, y = _middle(seeds)
    xs, ys = [100 * p.drift for p in seeds], [100 * p.fidelity for p in seeds]
    panel.plot([min(xs), max(xs)], [y, y], color=colour, alpha=0.35, linewidth=1.2)
    panel.plot([x, x], [min(ys), max(ys)], color=colour, alpha=0.35, linewidth=1.2)
    panel.scatter([x], [y], s=36, color=colour, edgecolor="white", zorder=3)
