"""Runs side by side: what each learned and what that cost, beside the options in which recipes differ."""

from __future__ import annotations

import math
import ntpath
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_studio.errors import StudioError
from lora_studio.evaluate.report.words import interval_in_words, measure_words
from lora_studio.evaluate.result import Evaluation, Interval
from lora_studio.evaluate.saved import RESULT, saved_evaluation
from lora_studio.plots import headless_pyplot, names_beside, png_bytes
from lora_studio.recipe import Recipe, changes, flat_options
from lora_studio.recipe.run_recipe import RUN_RECIPE, load_run_recipe
from lora_studio.text import shown

SHOWN = ("fidelity", "drift", "leakage", "prompt_following")  # of each run, in the table
FEW_POINTS = 6  # whose names and intervals do not cover each other
_SAME = ("base_fingerprint", "encoder_sha256")  # facts without which figures cannot be compared
_IDLE = {"name"}  # options that say nothing of what was learned


@dataclass(frozen=True)
class EvaluatedRun:
    """A run, or a file, what was measured of it, and its options of those in which recipes differ."""

    name: str
    evaluation: Evaluation
    options: dict[str, str]

    @property
    def verdict(self) -> str:
        """Its decided words."""
        words = dict.fromkeys(one.word for one in self.evaluation.verdicts if one.decided)
        return ", ".join(words) or "-"

    def interval(self, measure: str) -> Interval | None:
        """Of a measure, if it could be measured."""
        found = self.evaluation.measure(measure)
        return None if found is None or not math.isfinite(found.interval.value) else found.interval


@dataclass(frozen=True)
class ComparedRuns:
    """All of them, the best first by fidelity's lower bound; `notes` on what is not alike."""

    runs: tuple[EvaluatedRun, ...]
    options: tuple[str, ...]
    notes: tuple[str, ...] = ()
    shown: tuple[str, ...] = SHOWN

    def to_json(self) -> dict[str, Any]:
        """Every measure with its interval, and the options that differ."""
        return {
            "runs": [
                {
                    "name": one.name,
                    "step": one.evaluation.variant.step,
                    "strength": one.evaluation.variant.strength,
                    "verdicts": [verdict.word for verdict in one.evaluation.verdicts if verdict.decided],
                    "measures": {each.name: each.interval.to_json() for each in one.evaluation.measures},
                    "options": one.options,
                }
                for one in self.runs
            ],
            "notes": list(self.notes),
        }

    @property
    def rows(self) -> list[list[str]]:
        """Of each run its name, its verdict, the shown measures and the options that differ."""
        return [
            [
                *(one.name, one.verdict, *cells(one, self.shown)),
                *(one.options.get(name, "") for name in self.options),
            ]
            for one in self.runs
        ]

    def to_markdown(self) -> str:
        """A table with a row a run: verdicts, measures with intervals, options that differ."""
        titles = ["run", "verdict", *(measure_words(name).title.lower() for name in self.shown)]
        notes = "".join(f"\n{plain_cell(note)}\n" for note in self.notes)
        return f"{markdown_table([*titles, *self.options], self.rows)}\n{notes}"


def markdown_table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Whatever letters the cells have."""
    lines = [titles, ["---"] * len(titles), *rows]
    return "\n".join(f"| {' | '.join(map(plain_cell, line))} |" for line in lines)


def cells(run: EvaluatedRun, shown: Sequence[str] = SHOWN) -> list[str]:
    """Each shown measure with its interval, "-" of what was not measured."""
    intervals = [(one, measure_words(name)) for name in shown for one in [run.interval(name)]]
    return ["-" if one is None else interval_in_words(one, words) for one, words in intervals]


def compare_runs(targets: Sequence[Path]) -> ComparedRuns:
    """Runs, files or evaluations that lie there. Raises StudioError for fewer than two, for one without an
    evaluation, and if bases or encoders differ, as figures of these mean different things."""
    if len(targets) < 2:
        raise StudioError("one run alone compares with nothing; name two or more.")
    evaluations = [saved_evaluation(one) for one in targets]
    _check_alike(targets, evaluations)
    recipes = [load_run_recipe(one) if (one / RUN_RECIPE).is_file() else None for one in targets]
    options = _differences([one for one in recipes if one is not None])
    runs = [
        EvaluatedRun(name, evaluation, {} if recipe is None else _values(recipe, options))
        for name, evaluation, recipe in zip(_names(targets), evaluations, recipes, strict=True)
    ]
    return ComparedRuns(tuple(sorted(runs, key=_rank)), options, tuple(_notes(evaluations, recipes)))


def _rank(run: EvaluatedRun) -> float:
    interval = run.interval("fidelity")
    return math.inf if interval is None else -interval.low


def _check_alike(targets: Sequence[Path], evaluations: Sequence[Evaluation]) -> None:
    for fact in _SAME:
        first = evaluations[0].facts.get(fact)
        for target, one in zip(targets, evaluations, strict=True):
            if one.facts.get(fact) != first:
                what = "base" if fact.startswith("base") else "image encoder"
                raise StudioError(
                    f"{targets[0]} and {target} were measured with another {what}, whose figures mean "
                    "something else; evaluate both with the same one."
                )


def _notes(evaluations: Sequence[Evaluation], recipes: Sequence[Recipe | None]) -> list[str]:
    """On what makes them less alike than a table suggests."""
    notes = []
    if len({(one.questions, one.seeds) for one in evaluations}) > 1:
        notes.append(
            "not all were asked the same prompts with the same seeds, so a difference may be the prompts'"
        )
    if len({one.facts.get("references") for one in evaluations}) > 1:
        notes.append("not all were compared with as many reference images")
    if None in recipes:
        notes.append("of files, and of evaluations without their run, there is no recipe to compare")
    return notes


def _names(targets: Sequence[Path]) -> list[str]:
    """As short as they can be told apart: the last part, or with folders where two are the same."""
    whole = [_named_after(one.resolve()) for one in targets]
    for depth in range(1, max(len(one.parts) for one in whole) + 1):
        names = ["/".join(one.parts[-depth:]) for one in whole]
        if len(set(names)) == len(set(whole)):
            return names
    return [str(one) for one in targets]


def _named_after(path: Path) -> Path:
    """Of an evaluation.json the run that it lies in."""
    folder = path.parent if path.name == RESULT else path
    return folder.parent if folder.name == "evaluation" else folder


def _differences(recipes: Sequence[Recipe]) -> tuple[str, ...]:
    """Options of which two recipes have different values, in the order of the recipe."""
    found = dict.fromkeys(change.option for other in recipes[1:] for change in changes(recipes[0], other))
    return tuple(one for one in found if one not in _IDLE)


def _values(recipe: Recipe, options: Sequence[str]) -> dict[str, str]:
    values = flat_options(recipe)
    return {one: _in_words(values.get(one)) for one in options}


def _in_words(value: object) -> str:
    """A value as a table has it; of a path the last name."""
    if value is None:
        return "-"
    if isinstance(value, list):
        return ", ".join(map(_in_words, value))
    text = shown(str(value), limit=60)
    return ntpath.basename(text.rstrip("/\\")) if ntpath.isabs(text) or text.startswith(("/", "~")) else text


def plain_cell(text: str) -> str:
    """One line of Markdown that shows it as it is."""
    return " ".join(shown(text).split()).replace("|", "\\|").replace("<", "&lt;").replace("`", "'")


@dataclass(frozen=True)
class PlottedPoint:
    """A run's or a setting's place in the plot; `parts` are its seeds'."""

    label: str
    fidelity: Interval
    drift: Interval
    parts: tuple[tuple[float, float], ...] = ()
    marked: bool = False


def comparison_plot(compared: ComparedRuns) -> bytes:
    """A PNG: fidelity to the right, drift up, with both intervals; the best are at the lower right.

    Raises StudioError if no run has both.
    """
    points = [
        PlottedPoint(one.name, fidelity, drift)
        for one in compared.runs
        if (fidelity := one.interval("fidelity")) and (drift := one.interval("drift"))
    ]
    if not points:
        raise StudioError("no run has both fidelity and drift, so there is nothing to plot; leave out --out.")
    return fidelity_drift_plot(points)


def fidelity_drift_plot(points: Sequence[PlottedPoint], *, most_drift: float | None = None) -> bytes:
    """A PNG of all; `most_drift` is the budget, as a line."""
    pyplot = headless_pyplot()
    figure, axes = pyplot.subplots(figsize=(8, 6), layout="constrained")
    axes.axvline(0, color="#888", linewidth=0.8, linestyle="--")
    if most_drift is not None and most_drift < 1.5 * max(one.drift.high for one in points):
        axes.axhline(most_drift, color="#b33", linewidth=0.8, linestyle=":", label="budget of drift")
    is_crowded, named = len(points) > FEW_POINTS, []
    for number, one in enumerate(points):
        colour = pyplot.get_cmap("tab10")(number % 10)
        fidelity, drift = one.fidelity, one.drift
        across = [[fidelity.value - fidelity.low], [fidelity.high - fidelity.value]]
        up = [[drift.value - drift.low], [drift.high - drift.value]]
        middle, size = (fidelity.value, drift.value), 10 if one.marked else 6
        style = {"fmt": "*" if one.marked else "o", "markersize": size, "color": colour, "capsize": 3}
        faint = 0.25 if is_crowded and not one.marked else 1.0
        arms = axes.errorbar(*middle, xerr=across, yerr=up, linewidth=0.9, **style)
        for line in (*arms[1], *arms[2]):  # caps and bars
            line.set_alpha(faint)
        to_seeds = {"color": colour, "linewidth": 0.7, "marker": ".", "markersize": 4, "alpha": faint}
        for part in one.parts if len(one.parts) > 1 else ():
            axes.plot(*zip(middle, part, strict=True), **to_seeds)
        label = shown(one.label, limit=40)
        named.append((label, middle, colour))
        if not is_crowded:
            place = {"textcoords": "offset points", "xytext": (6, 6), "fontsize": 8, "color": colour}
            axes.annotate(label.replace("$", r"\$"), middle, **place)
    if is_crowded:
        names_beside(axes, named)
    axes.set_xlabel("fidelity: how far it went to the reference images (95 % interval)")
    axes.set_ylabel("drift: what else changed (1: as by another seed)")
    axes.set_title("better: to the right and down", fontsize=9, loc="right", color="#666")
    return png_bytes(figure)
