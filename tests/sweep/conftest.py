"""Sweeps whose trials cost nothing: a stub writes what a training and its evaluation leave behind."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from evaluations import evaluation

from lora_studio.evaluate.result import Interval
from lora_studio.jobs import Job, worker

STUB = """
import json, pathlib, sys
arguments = json.loads(sys.argv[1])
run = pathlib.Path(arguments["run"])
with open(arguments["began"], "a") as file:
    file.write(run.name + "\\n")
if arguments["fault"]:
    sys.exit("error: " + arguments["fault"])
(run / "evaluation").mkdir(parents=True, exist_ok=True)
(run / "evaluation" / "evaluation.json").write_text(arguments["evaluation"])
(run / "summary.json").write_text(arguments["summary"])
"""
Figures = dict[str, tuple[float, float, float, float]]  # name of a trial -> fidelity, drift, leakage, bytes


class Stub:
    """Commands that leave the `figures` of each trial; `faults` are what a trial fails with instead."""

    def __init__(self, folder: Path, figures: Figures) -> None:
        self.figures, self.faults = figures, dict[str, str]()
        self.log = folder / "began.txt"

    def __call__(self, job: Job) -> list[str]:
        name = Path(job.run).name
        told = {"run": job.run, "began": str(self.log), "fault": self.faults.get(name, "")}
        told["evaluation"] = json.dumps(self.evaluation(name).to_json())
        size, loss = self.figures[name][3], self.figures[name][0]
        validation = {"relative_last": loss, "relative_best": loss / 2, "best_step": 1}
        summary = {"file_bytes": size, "checkpoint": {"step": 2}, "validation": validation}
        told["summary"] = json.dumps(summary)
        return [sys.executable, "-S", "-E", "-c", STUB, json.dumps(told)]

    def evaluation(self, name: str):  # type: ignore[no-untyped-def]
        """With intervals of 0.05 to either side."""
        found = dict(zip(("fidelity", "drift", "leakage"), self.figures[name], strict=False))
        known = evaluation(name=name)
        measures = []
        for one in known.measures:
            if (value := found.get(one.name)) is not None:
                each = dict.fromkeys(one.per_question, value)
                interval = Interval(value, value - 0.05, value + 0.05, 9)
                measures.append(replace(one, interval=interval, per_question=each))
        return replace(known, measures=tuple(measures), verdicts=())

    @property
    def began(self) -> list[str]:
        """Trials in the order in which they were started, again and again."""
        return self.log.read_text().splitlines() if self.log.exists() else []


@pytest.fixture(autouse=True)
def _looks_often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Jobs that last as long as a look are begun one after the other without waits."""
    monkeypatch.setattr(worker, "POLL_SECONDS", 0.02)


@pytest.fixture
def stub_of(tmp_path: Path) -> Callable[[Figures], Stub]:
    return lambda figures: Stub(tmp_path, figures)
