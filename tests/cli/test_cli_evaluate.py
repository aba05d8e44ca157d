"""`evaluate` as a user types it: a page, a table, and exit 1 where a bound is not kept."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from console import run
from tiny import recipe_text

from lora_studio.evaluate.saved import read_evaluation
from lora_studio.training.session import train


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path, images: Path) -> Path:
    """A run of a few steps."""
    folder = tmp_path_factory.mktemp("evaluated")
    (folder / "a.toml").write_text(recipe_text(images, str(tiny_base)), "utf-8")
    train(folder / "a.toml", folder / "run")
    return folder / "run"


def call(finished: Path, *more: str) -> list[str]:
    few = ["--count", "2", "--seeds", "1,2", "--steps", "2", "--encoder", "pocket"]
    return ["evaluate", str(finished), *few, *more]


def test_page_and_table_are_there_and_bounds_decide_the_exit(
    finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = run(call(finished), capsys)
    assert code == 0, err
    found = read_evaluation(finished / "evaluation" / "evaluation.json")
    assert (finished / "evaluation" / "evaluation.html").read_text("utf-8").count("<img ") > 10
    assert "evaluation.html" in out and all(one.sentence.split(":")[-1][:20] in out for one in found.verdicts)
    code, out, err = run(call(finished, "--require", "drift<=99, change>=99", "--json"), capsys)
    assert code == 1 and "not kept: run: change>=99 is required, and change is" in err.replace("\n", " ")
    assert "drift<=99" not in err
    told = json.loads(out)
    assert Path(told.pop("folder")) == finished / "evaluation"
    assert told["measures"] == json.loads(json.dumps(found.to_json()))["measures"]
    assert run(call(finished, "--require", "drift<=99"), capsys)[0] == 0


def test_a_bound_that_cannot_be_read_is_refused_before_anything_is_drawn(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = run(call(tmp_path, "--require", "fidelty>=0.3"), capsys)
    assert code == 2 and "did you mean 'fidelity'?" in err.replace("\n", " ")
    code, _, err = run(call(tmp_path, "--require", ""), capsys)
    assert code == 2 and "--require is empty" in err.replace("\n", " ")
