"""The verbs on finished files: what they print, write, and exit with."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from console import run
from lora_files import write_random_lora

from lora_studio.cli.combine import file_and_strength


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with two files to be worked in."""
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate("ab"):
        write_random_lora(tmp_path / f"{name}.safetensors", seed=seed)
    return tmp_path


def words(line: str) -> list[str]:
    return [word.replace("A", "a.safetensors").replace("B", "b.safetensors") for word in line.split()]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("combine A", "give at least 2 files, not 1"),
        ("combine A B:strong", "the strength 'strong' is not a number"),
        ("combine A B:0", "the strength is 0; it must be from 1e-06 to 100, or as far below 0"),
        ("combine A B:1e-320", "it must be from 1e-06 to 100"),  # 0 in float32
        ("compare A:nan B", "the strength is nan"),
        ("combine A B --method tise", "unknown method 'tise'; did you mean 'ties'?"),
        ("combine A B --method svd", "needs --rank or --energy"),
        ("combine A B --rank 4", "concat is exact"),
        ("combine A B --density 0.5", "--density is for ties and dare"),
        ("combine A B --dtype float8", "it must be one of float16, bfloat16, float32"),
        ("combine A B --blocks attn=much", "it must be PATTERN=WEIGHT"),
        ("combine A B --blocks 3:*=1", "--blocks names file 3; there are 2"),
        ("combine A nowhere.safetensors", "there is no file at nowhere.safetensors"),
        ("resize A", "say how much is kept: --rank 16, or --energy 0.99"),
        ("resize A --rank 2 --energy 0.9", "give --rank or --energy, not both"),
        ("resize A --energy 1.5", "it must be above 0 and at most 1"),
        ("extract nowhere pocket --rank 4", "there is no base model at 'nowhere'"),
        ("merge-into pocket A", "it is for another kind of base"),
    ],
)
def test_a_mistake_is_one_sentence_and_nothing_is_written(line: str, said: str, here: Path, capsys) -> None:
    out = "out" if line.startswith("merge-into") else "out.safetensors"
    code, _, err = run([*words(line), "-o", out], capsys)
    assert code == 2 and said in err.replace("\n", " ") and "Traceback" not in err
    assert sorted(path.name for path in here.iterdir()) == ["a.safetensors", "b.safetensors"]


def test_nothing_is_written_over_unless_asked_for_and_inputs_never(here: Path, capsys) -> None:
    ask = ["combine", "a.safetensors:0.8", "b.safetensors:-0.5", "-o"]
    assert run([*ask, "out.safetensors"], capsys)[0] == 0
    first = (here / "out.safetensors").read_bytes()
    code, _, err = run([*ask, "out.safetensors"], capsys)
    assert code == 2 and "is there already" in err
    assert run([*ask, "out.safetensors", "--force"], capsys)[0] == 0
    assert (here / "out.safetensors").read_bytes() == first, "equal calls give equal bytes"
    code, _, err = run([*ask, "b.safetensors", "--force"], capsys)
    assert code == 2 and "is what is read" in err


@pytest.mark.parametrize("verb", ["resize --rank 2", "convert --to kohya", "metadata --strip", "inspect"])
@pytest.mark.parametrize("out", ["x" * 300, "a.safetensors/b"], ids=["long", "under a file"])
def test_a_place_that_no_file_can_have_is_one_sentence(verb: str, out: str, here: Path, capsys) -> None:
    name, *options = verb.split()
    ending = ".png" if name == "inspect" else ".safetensors"
    before = (here / "a.safetensors").read_bytes()
    code, _, err = run([name, "a.safetensors", *options, "-o", out + ending], capsys)
    assert code == 2 and "cannot be" in err and "Traceback" not in err
    assert (here / "a.safetensors").read_bytes() == before and len([*here.iterdir()]) == 2


def test_nothing_is_written_in_place_of_a_pipe(here: Path, capsys) -> None:
    if hasattr(os, "mkfifo"):
        os.mkfifo(here / "out.safetensors")
        ask = ["resize", "a.safetensors", "--rank", "2", "--force", "-o", "out.safetensors"]
        code, _, err = run(ask, capsys)
        assert code == 2 and "is a pipe or a device" in err and (here / "out.safetensors").is_fifo()


def test_each_verb_tells_what_it_did_as_text_and_as_json(here: Path, capsys) -> None:
    _, said, _ = run(["combine", "a.safetensors", "b.safetensors", "-o", "c.safetensors"], capsys)
    assert "layers       3, rank 8" in said and "nothing, it is the exact sum" in said
    _, said, _ = run(["resize", "c.safetensors", "--rank", "2", "-o", "r.safetensors", "--json"], capsys)
    assert json.loads(said)["ranks"] == [2, 2]
    _, said, _ = run(["compare", "a.safetensors", "b.safetensors:0.1", "-o", "heat.png"], capsys)
    assert said.startswith("one dominates: a.safetensors drowns the other") and (here / "heat.png").is_file()
    _, said, _ = run(["compare", "a.safetensors", "b.safetensors", "--json"], capsys)
    assert {"verdict", "reasons", "cosine", "shared"} <= json.loads(said).keys()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a.safetensors:0.8", ("a.safetensors", 0.8)),
        ("a.safetensors:-1e-1", ("a.safetensors", -0.1)),
        (r"C:\files\a.safetensors", (r"C:\files\a.safetensors", 1.0)),
        (r"C:\files\a.safetensors:2", (r"C:\files\a.safetensors", 2.0)),
        ("a.safetensors", ("a.safetensors", 1.0)),
    ],
)
def test_a_strength_stands_behind_the_last_colon(text: str, expected: tuple[str, float]) -> None:
    assert file_and_strength(text) == (Path(expected[0]), expected[1])
