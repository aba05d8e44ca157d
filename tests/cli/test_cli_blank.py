"""An option that is given but empty, as a shell's unset variable makes it, is not taken for its default."""

from __future__ import annotations

import pytest
from console import run

CALLS = {
    "caption images --template": "--template is empty",
    "caption images --with": "--with is empty",
    "caption images --threshold": "--threshold is empty",
    "sample run --strength": "--strength is empty",
    "sample run --seeds": "--seeds is empty",
    "sample run --checkpoint": "--checkpoint is empty",
    "sample run --grid": "--grid is empty",
    "sample run --base": "--base is empty",
    "resize a.safetensors --rank 1 -o": "--out is empty",
    "convert a.safetensors --to kohya --dtype": "--dtype is empty",
    "compare a.safetensors": "FILE[:STRENGTH] is empty",
    "doctor images --trigger": "--trigger is empty",
    "train recipe.toml --set": "--set is empty",
    "start images --learn": "--learn is empty",
    "export run --checkpoint": "--checkpoint is empty",
    "cache prune --older-than": "--older-than is empty",
    "train": "RECIPE|RUN is empty",
}


@pytest.mark.parametrize("call", CALLS)
def test_an_empty_value_is_refused_by_its_name(call: str, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    for empty in ("", " "):
        code, out, err = run([*call.split(), empty], capsys)
        assert (code, out) == (2, "") and CALLS[call] in err


@pytest.mark.parametrize("option", ["--strength", "--seeds", "--checkpoint", "--grid"])
def test_a_list_of_nothing_is_refused_too(option: str, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    code, _, err = run(["sample", "run", option, ", ,"], capsys)
    assert code == 2 and f"{option} has nothing in it" in err


def test_words_that_may_be_none_are_taken(tmp_path, monkeypatch, capsys) -> None:
    """An image without a prompt, and captions with words taken out."""
    monkeypatch.chdir(tmp_path)
    for call in (["sample", "gone", "--prompt", "", "--negative", ""], ["captions", "gone", "--find", "a"]):
        more = ["--replace", ""] if call[0] == "captions" else []
        code, _, err = run([*call, *more], capsys)
        assert code == 2 and "empty" not in err and "gone" in err
