"""Mutated files are read or refused in one sentence, in little memory; nothing crashes."""

from __future__ import annotations

from pathlib import Path

import pytest
from fuzzing import run
from memory import needs_proc, said_alone


def test_mutated_files_are_read_or_refused_in_one_sentence(tmp_path: Path) -> None:
    counts, crashes = run(tmp_path, range(100))
    assert not crashes, "\n".join(crashes)
    assert min(counts.values()) >= 50  # neither everything nor nothing


@needs_proc
@pytest.mark.slow
def test_two_thousand_mutated_files_take_less_than_500_megabytes(tmp_path: Path) -> None:
    """The libraries that are imported take most of it."""
    script = (
        "from fuzzing import run\n"
        "before = peak_bytes(); counts, crashes = run(Path(sys.argv[1]), range(100, 2100))\n"
        "print(json.dumps([counts, crashes, before, peak_bytes()]))"
    )
    counts, crashes, before, peak = said_alone(script, str(tmp_path))
    assert not crashes, "\n".join(crashes)
    assert min(counts.values()) > 1000
    assert peak < 500e6 and peak - before < 150e6, (before, peak)
