"""Fuzzed recipes are refused in sentences or trained with; nothing crashes, hangs or takes the memory."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import pytest
from fuzzing_recipes import run
from memory import needs_proc, said_alone
from tiny import recipe_text


def test_fuzzed_recipes_are_refused_in_sentences_or_have_a_first_step(
    tmp_path: Path, images: Path, tiny_base: Path
) -> None:
    base = tomllib.loads(recipe_text(images, str(tiny_base), steps=2))
    counts, crashes = run(tmp_path, base, range(300), steps=4)
    assert not crashes, "\n".join(crashes)
    assert counts["refused"] > 100 and counts["accepted"] > 60 and counts["stepped"] == 4


@needs_proc
@pytest.mark.slow
@pytest.mark.parametrize("first", range(1000, 3000, 500))
def test_two_thousand_fuzzed_recipes_take_less_than_a_gigabyte(
    first: int, tmp_path: Path, images: Path, tiny_base: Path
) -> None:
    """The libraries that are imported take half a gigabyte of it."""
    script = (
        "from fuzzing_recipes import run\nimport torch; torch.set_num_threads(1)\n"
        "folder, base = Path(sys.argv[1]), json.loads(sys.argv[2])\n"
        f"counts, crashes = run(folder, base, range({first}, {first + 500}), steps=500)\n"
        "print(json.dumps([counts, crashes, peak_bytes()]))"
    )
    base = tomllib.loads(recipe_text(images, str(tiny_base), steps=2))
    counts, crashes, peak = said_alone(script, str(tmp_path), json.dumps(base))
    assert not crashes, "\n".join(crashes)
    assert counts["refused"] > 100 and counts["stepped"] > 50
    assert peak < 1e9, peak
