"""Where a sweep is told: `sweep.json`, its table and plot, and the recommended recipe."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from lora_studio.evaluate.report.words import measure_words
from lora_studio.evaluate.result import Evaluation
from lora_studio.plots import headless_pyplot, png_bytes
from lora_studio.sweep.folder import RESULT, SweepFolder, as_toml
from lora_studio.sweep.result import VALIDATION, SweepResult, Tried, measured
from lora_studio.sweep.varied import shown_value
from lora_studio.text import plural, shown
from lora_studio.tools.compare_runs import (
    SHOWN,
    ComparedRuns,
    EvaluatedRun,
    PlottedPoint,
    fidelity_drift_plot,
    markdown_table,
)

TABLE, PLOT, RECOMMENDED = "sweep.md", "sweep.png", "recommended.toml"


def write_result(result: SweepResult, folder: SweepFolder) -> list[Path]:
    """All four files, in place of older ones; those for which nothing was measured are left out."""
    written = [folder.write(RESULT, result.to_json()), folder.write(TABLE, markdown(result))]
    if (plot := sweep_plot(result)) is not None:
        written.append(folder.write(PLOT, plot))
    if (recipe := result.recipe) is not None:
        head = [f"recommended by a sweep: {shown(result.why)}"]
        head += [shown(str(one)) for one in result.changes] or ["the same as the given recipe"]
        text = "".join(f"# {line}\n" for line in head)
        written.append(folder.write(RECOMMENDED, text + as_toml(recipe)))
    return written


def files_of(folder: SweepFolder) -> list[Path]:
    """Those of them that are there."""
    paths = (folder.path / name for name in (RESULT, TABLE, PLOT, RECOMMENDED))
    return [path for path in paths if path.is_file()]


def compared(result: SweepResult) -> ComparedRuns:
    """The measured settings as `runs compare` shows runs, the recommended one first, then the best."""
    taken = None if result.recommended is None else result.recommended.number
    names = (VALIDATION,) if result.plan.by == "validation" else SHOWN
    found = []
    for one in result.tried:
        if one.number in result.pooled:
            values = {option: shown(shown_value(value), limit=60) for option, value in one.values.items()}
            name = f"{one.number}{' (recommended)' if one.number == taken else ''}"
            found.append((one, EvaluatedRun(name, result.pooled[one.number], values)))
    found.sort(key=lambda pair: (pair[0].number != taken, _rank(pair[1], names[0])))
    options = tuple(one.option for one in result.plan.varied)
    return ComparedRuns(tuple(run for _, run in found), options, tuple(notes(result)), names)


def _rank(run: EvaluatedRun, measure: str) -> float:
    interval = run.interval(measure)
    return math.inf if interval is None else interval.high if measure == VALIDATION else -interval.low


def notes(result: SweepResult) -> list[str]:
    """What one should know of the figures."""
    found = []
    if result.pooled and max(len(one.measured) for one in result.tried) < 2:
        found.append("one seed each: the intervals say nothing of how much another seed would change")
    evaluations = [one for tried in result.tried for one in tried.measured]
    if len({(one.questions, one.seeds) for one in evaluations}) > 1:
        found.append("not all were asked the same prompts, so a difference may be the prompts'")
    if unfinished := result.unfinished:
        found.append(f"{plural(len(unfinished), 'trial')} of {len(result.plan.trials)} have no end yet")
    return found


def failures(result: SweepResult) -> list[tuple[str, str]]:
    """(trial, its sentence) of all that failed, or were not measured."""
    found = []
    for tried in result.tried:
        for one in tried.trials:
            if one.job is not None and one.job.state == "failed":
                found.append((one.trial.name, one.reason))
            elif one.job is not None and one.job.state == "done" and measured(one, result.plan) is None:
                why = one.job.reason or "it was trained, but not measured; its log says why"
                found.append((one.trial.name, why))
    return found


def markdown(result: SweepResult) -> str:
    """The recommendation, the table of settings, the trials that failed."""
    plan, lines = result.plan, list[str]()
    trials = f"{plural(len(plan.trials), 'trial')} of {plural(len(plan.settings), 'setting')}"
    lines += [f"# A sweep of {plan.recipe.name}", "", f"{trials}, compared by {plan.by}.", ""]
    lines += ["## Recommended", "", f"{_escaped(result.why)}.", ""]
    lines += [f"- `{_escaped(str(one))}`" for one in result.changes]
    if result.recommended is not None and not result.changes:
        lines.append("- nothing changes: the given recipe has these values")
    lines += ["", "## Settings", "", compared(result).to_markdown() if result.pooled else "None measured."]
    if failed := failures(result):
        rows = [[name, reason] for name, reason in failed]
        lines += ["", "## Without a result", "", markdown_table(["trial", "why"], rows)]
    return "\n".join(lines).rstrip("\n") + "\n"


def _escaped(text: str) -> str:
    return " ".join(shown(text).split()).replace("<", "&lt;").replace("`", "'")


def sweep_plot(result: SweepResult) -> bytes | None:
    """A PNG: fidelity against drift, or the validation loss of each setting; None if nothing was measured."""
    if result.plan.by == "validation":
        return _validation_plot(result) if result.pooled else None
    points = []
    for one in result.tried:
        pooled = result.pooled.get(one.number)
        if pooled is None:
            continue
        fidelity, drift = (pooled.measure(name) for name in ("fidelity", "drift"))
        if fidelity is None or drift is None or math.isnan(fidelity.interval.value + drift.interval.value):
            continue
        is_best = result.recommended is not None and result.recommended.number == one.number
        label = f"{one.number}, recommended" if is_best else str(one.number)
        parts = tuple(place for each in one.measured if (place := _place(each)) is not None)
        points.append(PlottedPoint(label, fidelity.interval, drift.interval, parts, is_best))
    return fidelity_drift_plot(points, most_drift=result.plan.recipe.evaluate.drift) if points else None


def _place(evaluation: Evaluation) -> tuple[float, float] | None:
    found = [evaluation.measure(name) for name in ("fidelity", "drift")]
    values = [one.interval.value for one in found if one is not None]
    return (values[0], values[1]) if len(values) == 2 and all(map(math.isfinite, values)) else None


def _validation_plot(result: SweepResult) -> bytes:
    """The loss by setting, with intervals; the seeds are small points."""
    pyplot = headless_pyplot()
    ordered: Sequence[Tried] = [one for one in result.tried if one.number in result.pooled]
    figure, axes = pyplot.subplots(figsize=(8, 1.5 + 0.35 * len(ordered)), layout="constrained")
    for row, one in enumerate(ordered):
        pooled = result.pooled[one.number].measure(VALIDATION)
        assert pooled is not None
        value, low, high = pooled.interval.value, pooled.interval.low, pooled.interval.high
        is_best = result.recommended is not None and result.recommended.number == one.number
        colour = "#b33" if is_best else "#1f4e9c"
        axes.errorbar(value, row, xerr=[[value - low], [high - value]], fmt="o", color=colour, capsize=3)
        losses = [each.measures[0].interval.value for each in one.measured]
        axes.plot(losses, [row] * len(losses), ".", color=colour, alpha=0.6)
    labels = [shown(one.title, limit=60).replace("$", r"\$") for one in ordered]
    axes.set_yticks(range(len(ordered)), labels, fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel(f"{measure_words(VALIDATION).title.lower()}, as a share of the base's (95 % interval)")
    return png_bytes(figure)
