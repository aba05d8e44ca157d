"""`runs compare`: measures with intervals beside the options that differ, in every form that it has."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from console import run
from evaluations import evaluation
from PIL import Image

from lora_studio.evaluate.result import Evaluation, Interval


def make_run(folder: Path, *, fidelity: float, options: str = "", known: Evaluation | None = None) -> Path:
    """A run's folder as far as the comparison asks: a recipe and an evaluation."""
    known = known or evaluation()
    interval = Interval(fidelity, fidelity - 0.05, fidelity + 0.05, 18)
    measures = [replace(one, interval=interval) if one.name == "fidelity" else one for one in known.measures]
    (folder / "evaluation").mkdir(parents=True)
    told = replace(known, measures=tuple(measures)).to_json()
    (folder / "evaluation" / "evaluation.json").write_text(json.dumps(told), "utf-8")
    head = f'name = "{folder.name}"\nbase.model = "pocket"\ndata.images = "/home/mia/{folder.name}"\n'
    (folder / "recipe.toml").write_text(head + options, "utf-8")
    return folder


@pytest.fixture
def three(tmp_path: Path) -> list[str]:
    return [
        str(make_run(tmp_path / "slow", fidelity=0.3)),
        str(make_run(tmp_path / "fast", fidelity=0.6, options="training.learning_rate = 1e-3\n")),
        str(make_run(tmp_path / "wide", fidelity=0.45, options="adapter.rank = 64\n")),
    ]


def test_figures_and_differing_options_are_those_of_the_runs(
    three: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = run(["runs", "compare", *three, "--json"], capsys)
    found = json.loads(out)["runs"]
    assert code == 0 and [one["name"] for one in found] == ["fast", "wide", "slow"]  # the best first
    assert [one["measures"]["fidelity"]["low"] for one in found] == pytest.approx([0.55, 0.4, 0.25])
    options = [one["options"] for one in found]
    assert [one["training.learning_rate"] for one in options] == ["0.001", "0.0001", "0.0001"]
    assert [one["adapter.rank"] for one in options] == ["16", "64", "16"]
    assert set(options[0]) == {"training.learning_rate", "adapter.rank", "data.images"}
    assert options[0]["data.images"] == "fast" and "mia" not in out


def test_the_terminal_has_room_for_it(three: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(["runs", "compare", *three], capsys)
    assert code == 0 and max(map(len, out.splitlines())) <= 80
    assert "0.60 [0.55, 0.65]" in out and "learned, leaks" in out and "0.001" in out


def test_of_many_options_each_has_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = (
        "adapter.rank = 64\nadapter.alpha = 8\ntraining.learning_rate = 1e-3\nobjective.preservation = 0.2\n"
    )
    one = make_run(tmp_path / "one", fidelity=0.3)
    other = make_run(tmp_path / "other", fidelity=0.6, options=options)
    _, out, _ = run(["runs", "compare", str(one), str(other)], capsys)
    assert "adapter.rank 64 (other), 16 (one)" in " ".join(out.split())


def test_markdown_is_one_table(three: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = run(["runs", "compare", *three, "--markdown"], capsys)
    lines = [line for line in out.splitlines() if line.startswith("|")]
    assert len(lines) == 5 and len({line.count("|") for line in lines}) == 1
    assert (
        lines[0].startswith("| run | verdict | fidelity | drift |")
        and "+0.600 (+0.550 to +0.650)" in lines[2]
    )


def test_a_plot_is_drawn_and_never_over_something(
    three: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plot = tmp_path / "plot.png"
    assert run(["runs", "compare", *three, "-o", str(plot)], capsys)[0] == 0
    with Image.open(plot) as image:
        assert image.width > 600
    code, _, err = run(["runs", "compare", *three, "-o", str(plot)], capsys)
    assert code == 2 and "is there already" in err


def test_what_cannot_be_compared_is_refused(
    three: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = run(["runs", "compare", three[0]], capsys)
    assert code == 2 and "compares with nothing" in err
    other = replace(evaluation(), facts={"encoder_sha256": "00"})
    odd = make_run(tmp_path / "odd", fidelity=0.5, known=other)
    code, _, err = run(["runs", "compare", *three, str(odd)], capsys)
    assert code == 2 and "another image encoder" in err.replace("\n", " ")
    (tmp_path / "empty").mkdir()
    code, _, err = run(["runs", "compare", *three, str(tmp_path / "empty")], capsys)
    assert code == 2 and "has no evaluation" in err.replace("\n", " ")


def test_other_prompts_are_told(three: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = make_run(tmp_path / "other", fidelity=0.5, known=evaluation(seeds=(5, 6, 7)))
    code, out, _ = run(["runs", "compare", *three, str(other)], capsys)
    assert code == 0 and "not all were asked the same prompts" in out.replace("\n", " ")
