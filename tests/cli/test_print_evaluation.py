"""An evaluation in a terminal of 80 columns."""

from __future__ import annotations

import io
import math
from dataclasses import replace

from evaluations import evaluation

from lora_studio.console import Screen
from lora_studio.console.evaluation import print_evaluation
from lora_studio.evaluate.result import Evaluation, Interval


def printed(known: Evaluation, *, terminal: bool = False) -> str:
    file = io.StringIO()
    screen = Screen(file=file, width=80)
    if terminal:
        screen._force_terminal = True
    print_evaluation(known, screen)
    return file.getvalue()


def test_verdicts_stand_first_and_every_measure_has_its_interval() -> None:
    text = printed(evaluation())
    assert text.index("learned: ") < text.index("not decided: ") < text.index("Fidelity")
    rows = {line.split("  ")[0]: line.split() for line in text.splitlines()}
    assert rows["Fidelity"][1:6] == ["+0.613", "+0.563", "+0.663", "0.000", "0.613"]
    assert rows["Drift"][1:4] == ["0.480", "0.390", "0.570"]
    table = text[text.index("measure") :].splitlines()[:12]
    assert max(map(len, table)) <= 80


def test_what_was_not_measured_has_a_dash() -> None:
    nan = Interval(math.nan, math.nan, math.nan, 0)
    known = evaluation()
    text = printed(replace(known, measures=tuple(replace(one, interval=nan) for one in known.measures)))
    assert "nan" not in text and "-" in text


def test_texts_of_others_steer_nothing() -> None:
    known = evaluation(name="\x1b[31mred\n[bold]x[/bold]")
    text = printed(replace(known, notes=("\x1b]0;title\x07",)))
    assert "\x1b" not in text and "\x07" not in text and "[bold]x[/bold]" in text
