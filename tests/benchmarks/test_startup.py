"""The start-up benchmark counts whole commands and refuses those that fail."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import pytest
from startup import Start, criteria, measure, processor_seconds, starts

from lora_studio.verify import verify

TREE = Path(__file__).parent.parent.parent


def test_the_file_that_commands_read_is_a_valid_lora(tmp_path: Path) -> None:
    by_name = {one.name: one for one in starts(tmp_path)}
    assert verify(Path(by_name["verify"].arguments[-1])).ok
    assert len(list((tmp_path / "images").glob("*.png"))) == 30
    assert len(list((tmp_path / "files").iterdir())) == 500


def test_both_trees_are_measured_and_judged(tmp_path: Path) -> None:
    busy = Start("--help", ("-c", "sum(range(3_000_000))"), limit=60.0)
    found = measure([busy], {"before": TREE, "after": TREE}, tmp_path, rounds=1)
    assert all(0 < seconds < 60 for seconds in found["--help"].values())
    strict = dataclasses.replace(busy, limit=0.0)
    assert [one.passed for one in criteria([busy, strict], found)] == [True, False]


def test_a_command_that_fails_is_not_timed(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="broken exits with 3"):
        processor_seconds(
            Start("broken", ("-c", "raise SystemExit(3)"), limit=1.0), Path(sys.prefix), tmp_path
        )
