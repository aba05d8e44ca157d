"""The program for the first day on a GPU: guarded, budgeted, and the same on a CPU in small."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from gpu_acceptance import agenda, main
from gpu_cases import CASES, Bench, run_case
from gpu_checks import checks_of
from gpu_report import markdown
from guarded import FAILED, NOT_HERE, NOT_RUN, PASSED, Book, Check, supervise

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
TREE = f"{BENCHMARKS}{os.pathsep}{BENCHMARKS.parent}"
CHECKS = """
import os, sys, time
from pathlib import Path
from guarded import Check, NotHere, work_off

def absent():
    raise NotHere("no such part")

works = {"good": lambda: {"figure": 1}, "wrong": lambda: 1 / 0, "absent": absent,
         "crash": lambda: os._exit(7), "hang": lambda: time.sleep(60), "last": lambda: {"figure": 2}}
checks = [Check(name, "all", -9.7, work) for name, work in works.items()]
work_off(sys.argv[2:], checks, Path(sys.argv[1]))
"""
NAMES = ("good", "wrong", "absent", "crash", "hang", "last")


def starter(folder: Path) -> Callable[[list[str]], subprocess.Popen[bytes]]:
    environ = os.environ | {"PYTHONPATH": TREE}
    return lambda names: subprocess.Popen(
        [sys.executable, "-c", CHECKS, str(folder), *names], env=environ, stderr=subprocess.DEVNULL
    )


def book_of(folder: Path) -> tuple[list[Check], Book]:
    checks = [Check(name, "all", -9.7, dict) for name in NAMES]  # which gives each 0.9 seconds
    return checks, Book(folder, checks, markdown, {"rehearsal": True, "device": "cpu"})


def test_a_check_that_fails_crashes_or_hangs_does_not_end_the_others(tmp_path: Path) -> None:
    checks, book = book_of(tmp_path)
    supervise(checks, book, starter(tmp_path), until=time.monotonic() + 60)
    states = {one["name"]: one for one in json.loads((tmp_path / "results.json").read_text())["checks"]}
    found = {name: one["state"] for name, one in states.items()}
    assert found == {
        "good": PASSED,
        "wrong": FAILED,
        "absent": NOT_HERE,
        "crash": FAILED,
        "hang": FAILED,
        "last": PASSED,
    }
    assert "ZeroDivisionError" in states["wrong"]["why"]
    assert "ended with 7" in states["crash"]["why"]
    assert states["last"]["figures"] == {"figure": 2}
    assert not book.ok
    assert "| good | passed |" in (tmp_path / "results.md").read_text("utf-8")


def test_when_the_time_is_over_the_rest_is_not_run_and_that_is_no_success(tmp_path: Path) -> None:
    checks, book = book_of(tmp_path)
    supervise(checks, book, starter(tmp_path), until=time.monotonic() - 1)
    assert {one.state for one in book.outcomes.values()} == {NOT_RUN}
    assert not book.ok


def test_on_a_small_card_what_is_too_large_is_left_out_and_all_ends_in_nine_minutes(tmp_path: Path) -> None:
    checks = checks_of(Bench(tmp_path, rehearsal=True))
    assert sum(one.seconds for one in checks if not one.beside) <= 60 * 8.8
    small, large = agenda(checks, 8), agenda(checks, 139)
    assert "it takes about 36 GiB, and the device has 8" in small
    assert "and the device has" not in large
    assert all(one.name in large for one in checks)


def test_a_case_is_a_whole_run_whose_figures_stand_in_the_report(tmp_path: Path) -> None:
    case = next(one for one in CASES if one.prompts and one.resolution == 1024)
    found = run_case(case, Bench(tmp_path, rehearsal=True))
    run = next((tmp_path / "runs").iterdir())
    assert json.loads((run / "verify.json").read_text("utf-8"))["whole"]
    assert len(list(run.glob("previews/**/*.png"))) > 0
    outcome = {"name": case.title, "state": PASSED, "seconds": 1.0, "why": "", "figures": found}
    plain = {"seconds_per_step_batch_1_checkpointing": 2 * found["seconds_per_step"]}
    beside = {"name": "1024 px: plain loop", "state": PASSED, "seconds": 1.0, "why": "", "figures": plain}
    planned = {"name": f"plan of {case.title}", "state": PASSED, "seconds": 1.0, "why": ""}
    planned |= {"figures": {"training": 1.25, "previews": 2.5}}
    report = markdown({"rehearsal": True, "device": "cpu"}, [outcome, beside, planned])
    assert f"| {case.title} | {found['steps_per_second']} |" in report
    assert "| 2.00 |" in report
    assert "- / 1.25 | - / 2.50" in report


def test_without_a_gpu_it_says_how_to_rehearse(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    monkeypatch.setattr(sys, "argv", ["gpu_acceptance.py", "--out", str(tmp_path)])
    with pytest.raises(SystemExit, match="--rehearse"):
        main()


@pytest.mark.slow
def test_the_rehearsal_goes_to_its_end(tmp_path: Path) -> None:
    command = [sys.executable, str(BENCHMARKS / "gpu_acceptance.py"), "--rehearse", "--out", str(tmp_path)]
    environ = os.environ | {"PYTHONPATH": TREE}
    ended = subprocess.run([*command, "--minutes", "20"], env=environ, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout
    assert "On a GPU with 8 GiB" in ended.stdout
    assert "On a GPU with 139 GiB" in ended.stdout
    states = {one["state"] for one in json.loads((tmp_path / "results.json").read_text("utf-8"))["checks"]}
    assert states == {PASSED, NOT_HERE}
