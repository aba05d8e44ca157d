"""Programs are held after each step of their own optimizer, and what they take is compared step by step."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from beside_trainers import OURS, Program, criteria, measure, ratios

TRAINER = """
import sys, torch
weight = torch.nn.Parameter(torch.zeros(300, 300))
small = torch.nn.Parameter(torch.zeros(3))  # whose steps are no training steps
optimizer, other = torch.optim.SGD([weight], lr=0.1), torch.optim.SGD([small], lr=0.1)
matrix = torch.eye(128)
while True:
    for _ in range(int(sys.argv[1])):
        matrix = matrix @ matrix
    weight.grad, small.grad = torch.zeros(300, 300), torch.ones(3)
    other.step()
    optimizer.step()
"""


@pytest.mark.slow
def test_a_program_with_three_times_the_work_takes_three_times_as_long(tmp_path: Path) -> None:
    script = tmp_path / "trainer.py"
    script.write_text(TRAINER, "utf-8")
    found = {OURS: Program((str(script), "40")), "other": Program((str(script), "120"))}
    environ = os.environ | {"OMP_NUM_THREADS": "1"}
    seconds = measure(found, environ, tmp_path, processes=1, counted=9)
    assert [len(took) for one in seconds.values() for took in one.values()] == [9] * 4
    report = {how: ratios(one, paired=how == "in turns") for how, one in seconds.items()}
    for sides in report.values():
        assert sides["other"]["times_ours"] == pytest.approx(3, rel=0.35)  # the machine may be busy


def test_a_trainer_that_fails_says_why(tmp_path: Path) -> None:
    script = tmp_path / "trainer.py"
    script.write_text("raise SystemExit('no such option')", "utf-8")
    with pytest.raises(RuntimeError, match="no such option"):
        measure({OURS: Program((str(script),))}, os.environ, tmp_path, processes=1, counted=1)


def test_demands_are_made_of_what_was_measured() -> None:
    sides = {OURS: {"times_ours": 1.0}, "diffusers": {"times_ours": 1.7}}
    report = {"one after the other": sides, "in turns": sides}
    assert [one.passed for one in criteria(report)] == [True, False]
