"""An evaluation in the terminal: verdicts, then the measures with their intervals."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.table import Table
from rich.text import Text

from lora_studio.console import Screen, columns
from lora_studio.evaluate.report.words import (
    figure,
    gravity_of,
    headline,
    measure_words,
    sentence_of,
    variant_in_words,
)
from lora_studio.evaluate.result import Evaluation, Interval, Measured
from lora_studio.evaluate.verdicts import THRESHOLDS
from lora_studio.text import plural, shown
from lora_studio.tools.compare_runs import ComparedRuns

_COLOURS = {"good": "bold green", "warning": "bold yellow", "error": "bold red"}


def print_evaluation(evaluation: Evaluation, screen: Screen, *, written: Sequence[Path] = ()) -> None:
    """What was found of a run or file, and where it is told at length."""
    asked = f"{plural(len(evaluation.questions), 'prompt')}, {plural(len(evaluation.seeds), 'seed')} each"
    screen.say(Text(shown(evaluation.name), style="bold").append(f"  {asked}", style="not bold dim"))
    screen.say(f"  {variant_in_words(evaluation.variant)}", "dim")
    screen.say()
    if not evaluation.verdicts:
        screen.say(headline(evaluation), "bold")
    for one in sorted(evaluation.verdicts, key=lambda one: not one.decided):
        style = _COLOURS.get(gravity_of(one.word), "bold cyan") if one.decided else "dim"
        word = one.word if one.decided else "not decided"
        screen.say(Text(shown(word), style=style).append(f": {shown(sentence_of(one))}", style="not bold"))
    screen.say()
    screen.print(_table(evaluation))
    screen.say("0 is the base; of diversity and validation loss it is 1. Intervals of 95 %.", "dim")
    screen.say_rows([("note", shown(note)) for note in evaluation.notes], style="yellow")
    screen.say_rows([(path.suffix.removeprefix("."), str(path)) for path in written])


def _table(evaluation: Evaluation) -> Table:
    numbers = ("value", "low", "high", "base", "tuned")
    table = columns(["measure", *numbers, "threshold"], right=numbers, whole=("measure", *numbers))
    for one in evaluation.measures:
        table.add_row(*_row(one))
    return table


def _row(measured: Measured) -> list[str]:
    words, interval = measure_words(measured.name), measured.interval
    ends = [figure(one, words) for one in (interval.value, interval.low, interval.high)]
    if interval.value != interval.value:
        ends = ["-"] * 3
    plain = (measured.base, measured.tuned)
    own = ["" if one is None else figure(one, words, signed=False) for one in plain]
    limits = [one for one in THRESHOLDS if one.measure == measured.name]
    told = "; ".join(f"{one.word} {'>' if one.above else '<'} {one.value:g}" for one in limits)
    return [shown(words.title), *ends, *own, told]


_COMPARED = ("fidelity", "drift", "leakage")  # as many as a line of 80 has room for


def print_compared_runs(compared: ComparedRuns, screen: Screen, *, written: Sequence[Path] = ()) -> None:
    """A row a run, the best first: measures with intervals, verdicts, and the options that differ."""
    names = [name for name in compared.shown if name in _COMPARED] or compared.shown
    titles = [measure_words(name).title.lower() for name in names]
    table = columns(["run", *titles], whole=titles)
    for one in compared.runs:
        table.add_row(shown(one.name), *(_short(one.interval(name)) for name in names))
    screen.print(table)
    screen.say()
    screen.print_rows([(one.name, one.verdict) for one in compared.runs])
    if compared.options:
        screen.say()
        _print_options(compared, screen)
    screen.say_rows([("note", note) for note in compared.notes], style="yellow")
    screen.say_rows([("plot", str(path)) for path in written])


def _print_options(compared: ComparedRuns, screen: Screen) -> None:
    """A row a run; of more options than a line has room for, a row an option."""
    longest = max(len(one.name) for one in compared.runs)
    if longest + sum(len(name) + 2 for name in compared.options) > screen.width:
        runs = [one for one in compared.runs if one.options]
        for name in compared.options:
            screen.say_rows([(name, ", ".join(f"{one.options[name]} ({one.name})" for one in runs))])
        return
    differing = columns(["run", *compared.options])
    for one in compared.runs:
        differing.add_row(shown(one.name), *(one.options.get(name, "-") for name in compared.options))
    screen.print(differing)


def _short(interval: Interval | None) -> str:
    if interval is None:
        return "-"
    return f"{interval.value:.2f} [{interval.low:.2f}, {interval.high:.2f}]"
