"""A run's loss within the page: lines of an SVG image, in the page's colours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from lora_studio.pages import parts_of, text_of
from lora_studio.plots import running_mean

_WIDTH, _HEIGHT = 800, 240
_MOST_POINTS = 400
Points = Sequence[tuple[float, float]]


def curve_sections(losses: Sequence[Mapping[str, Any]], validation: Sequence[Mapping[str, Any]]) -> str:
    """The loss of each step with its running mean, and the validation loss; "" if there is neither."""
    rows = [row for row in losses if not row.get("skipped")]
    found = []
    if len(rows) > 1:
        steps = [row["step"] for row in rows]
        each = list(zip(steps, (row["loss"] for row in rows), strict=True))
        means = list(zip(steps, running_mean([value for _, value in each]), strict=True))
        tenth = max(1, len(each) // 10)
        first, last = (fmean(value for _, value in some) for some in (each[:tenth], each[-tenth:]))
        ends = f"its mean was {first:.4f} in the first tenth of them and {last:.4f} in the last"
        words = f"Loss of {len(rows):,} steps, up to step {steps[-1]:,}; {ends}."
        found.append(_curve(words, {"each": each, "mean": means}))
    if len(validation) > 1:
        measured = [(row["step"], row["relative"]) for row in validation]
        low, at = min((value, step) for step, value in measured)
        words = (
            f"Loss on validation images as a share of the base's, which is the dashed line; it was lowest at "
            f"step {at:,} with {low:.3f} and ended at {measured[-1][1]:.3f}."
        )
        base = [(measured[0][0], 1.0), (measured[-1][0], 1.0)]
        found.append(_curve(words, {"base": base, "mean": measured}))
    return "\n".join(found)


def _curve(words: str, lines: Mapping[str, Points]) -> str:
    across = [x for points in lines.values() for x, _ in points]
    up = sorted(y for points in lines.values() for _, y in points)
    left, right = min(across), max(across)
    top = up[-1] if len(up) < 50 else up[int(0.99 * len(up))]  # a few steps would flatten all others
    low, high = up[0], max(top, up[0] + 1e-12)

    def place(x: float, y: float) -> str:
        share = min(1.0, (y - low) / (high - low))
        return f"{(x - left) / ((right - left) or 1) * _WIDTH:.1f},{(1 - share) * (_HEIGHT - 8) + 4:.1f}"

    fill = parts_of(__package__).fill
    drawn = "".join(
        fill("line", kind=kind, points=" ".join(place(x, y) for x, y in _thinned(points)))
        for kind, points in lines.items()
    )
    said = text_of(words)
    scale = f"{low:.3f} to {high:.3f} from the bottom to the top"
    return fill("curve", said=said, lines=drawn, words=f"{said} Scale: {scale}.")


def _thinned(points: Points) -> Points:
    every = -(-len(points) // _MOST_POINTS)
    return [*points[::every], points[-1]]
