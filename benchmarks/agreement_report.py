"""What agreement.py measured: rank correlations with the judge, a table of runs, and scatter plots."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from figures import table

from lora_studio.plots import headless_pyplot, png_bytes

ABOUT = """# Do the measures agree with the judge?

Runs of known effect on the pocket base, each seen by the judge (a CNN that was trained on renders only) and
by the measures of `lora-studio evaluate`, on the same images, by `benchmarks/agreement.py`. The correlations
are Spearman's, over runs, with 95 % intervals from resampling runs. *Judged drift* is the root mean square of
the pixels' change, and *judged changes* are plain images of which the judge now says another thing."""
PAIRS = (
    ("fidelity", "fidelity", 0.8),
    ("leakage", "leakage", 0.7),
    ("drift", "drift", 0.7),
    ("drift", "changed", 0.7),
    ("prompt_following", "following", 0.7),
)
"""A measure, the judge's figure, and the least correlation that it is to have."""
TASKS = ("style", "subject")
_COLOURS = {"style": "#1f77b4", "subject": "#d62728"}
_RESAMPLES = 2000
_FEWEST = 5


@dataclass(frozen=True)
class Agreed:
    """What the judge and the measures say of one run."""

    name: str
    seed: int
    judged: Mapping[str, float]
    measured: Mapping[str, float]
    rests_on: str

    @property
    def task(self) -> str:
        """What it teaches: "style" or "subject"."""
        return "subject" if self.name.startswith("subject") else "style"


@dataclass(frozen=True)
class Correlation:
    """Spearman's, of a measure with a figure of the judge, over `runs` of a task or of all."""

    measure: str
    judged: str
    task: str
    runs: int
    rank_correlation: float
    low: float
    high: float
    demanded: float


def ranks(values: Sequence[float]) -> npt.NDArray[np.float64]:
    """From 0, the mean rank for equal ones."""
    given = np.asarray(values, np.float64)
    below = (given[None, :] < given[:, None]).sum(axis=1)
    equal = (given[None, :] == given[:, None]).sum(axis=1)
    return below + (equal - 1) / 2


def spearman(some: Sequence[float], others: Sequence[float]) -> float:
    """The correlation of ranks; NaN where one side is all equal."""
    a, b = ranks(some), ranks(others)
    if a.std() == 0 or b.std() == 0:
        return float("nan")
    return float(np.corrcoef(a, b)[0, 1])


def correlations(found: Sequence[Agreed]) -> list[Correlation]:
    """Of all pairs, over all runs and over those of each task, if there are `_FEWEST`."""
    rows = list[Correlation]()
    for measure, judged, demanded in PAIRS:
        for task in ("all", *TASKS):
            some = [one for one in found if task in ("all", one.task) and measure in one.measured]
            if len(some) < _FEWEST:
                continue
            xs = [one.measured[measure] for one in some]
            ys = [one.judged[judged] for one in some]
            draws = np.random.default_rng(0).integers(0, len(some), (_RESAMPLES, len(some)))
            each = [spearman([xs[i] for i in row], [ys[i] for i in row]) for row in draws]
            told = [value for value in each if value == value] or [float("nan")]
            low, high = np.quantile(told, (0.025, 0.975))
            value, low, high = (round(float(one), 3) for one in (spearman(xs, ys), low, high))
            rows.append(Correlation(measure, judged, task, len(some), value, low, high, demanded))
    return rows


def markdown(found: Sequence[Agreed]) -> str:
    """The correlations, then a row a run."""
    told = [
        (
            f"{one.measure}, judged {one.judged}",
            one.task,
            one.runs,
            f"{one.rank_correlation:.2f} ({one.low:.2f} to {one.high:.2f})",
            f">= {one.demanded:g}" if one.task == "all" else "",
        )
        for one in correlations(found)
    ]
    head = ("measure", "runs of", "runs", "rank correlation", "demanded")
    shown = (
        *(("fidelity", "fidelity"), ("fidelity", ""), ("leakage", "leakage"), ("leakage", "")),
        *(("drift", "drift"), ("changed", "changed"), ("drift", "")),
        *(("following", "following"), ("prompt_following", "")),
    )
    names = ("judged fidelity", "fidelity", "judged leakage", "leakage", "judged drift", "judged changes")
    more = ("drift", "judged following", "following")
    rows = [
        (
            f"{one.name}, seed {one.seed}",
            *(
                f"{one.judged[judged]:.2f}" if judged else f"{one.measured.get(name, float('nan')):.2f}"
                for name, judged in shown
            ),
        )
        for one in found
    ]
    return f"{table(head, told)}\n\n{table(('run', *names, *more), rows)}"


def plot(found: Sequence[Agreed]) -> bytes:
    """A PNG: each measure against the judge's figure, a point a run, with the correlation in the title."""
    pyplot = headless_pyplot()
    figure, panels = pyplot.subplots(1, len(PAIRS), figsize=(4.6 * len(PAIRS), 4.8), layout="constrained")
    whole = {(one.measure, one.judged): one for one in correlations(found) if one.task == "all"}
    for panel, (measure, judged, _) in zip(panels, PAIRS, strict=True):
        _scatter(panel, found, measure, judged)
        told = whole.get((measure, judged))
        if told is not None:
            panel.set_title(f"{told.rank_correlation:.2f} over {told.runs} runs")
    panels[0].legend(frameon=False)
    return png_bytes(figure)


def _scatter(panel: Any, found: Sequence[Agreed], measure: str, judged: str) -> None:
    for task in TASKS:
        some = [one for one in found if one.task == task and measure in one.measured]
        xs, ys = [one.judged[judged] for one in some], [one.measured[measure] for one in some]
        panel.scatter(xs, ys, s=34, color=_COLOURS[task], edgecolor="white", label=task, zorder=3)
    panel.set_xlabel(f"judged {judged}")
    panel.set_ylabel(measure.replace("_", " "))
    panel.grid(color="#eeeeee")
    panel.set_axisbelow(True)
