"""A run's folder with any one file damaged: refused in a sentence that names it, or used for what it was."""

from __future__ import annotations

from pathlib import Path

import pytest
from damaging import KINDS, run
from memory import needs_proc, said_alone

NUM_FAULTS = 60
pytestmark = pytest.mark.skipif("a pipe" not in KINDS, reason="Windows has other kinds of files")


@pytest.mark.filterwarnings("ignore")
def test_every_reader_of_a_damaged_folder_refuses_in_a_sentence_or_uses_it(tmp_path: Path) -> None:
    """Every twelfth is resumed, exported and sampled, too."""
    counts, crashes = run(tmp_path, range(NUM_FAULTS), every=12)
    assert not crashes, "\n".join(crashes)
    assert counts["refused"] > 40 and counts["used"] > 60


@needs_proc
@pytest.mark.slow
@pytest.mark.parametrize("first", range(1000, 2000, 250))
def test_a_thousand_damaged_folders_are_refused_or_resumed_to_the_same_bytes(
    first: int, tmp_path: Path
) -> None:
    """All readers of all of them, in less than a gigabyte beside the half that imported libraries take."""
    script = (
        "from damaging import run\nimport torch, warnings; torch.set_num_threads(1)\n"
        "warnings.simplefilter('ignore')\n"
        f"counts, crashes = run(Path(sys.argv[1]), range({first}, {first + 250}))\n"
        "print(json.dumps([counts, crashes, peak_bytes()]))"
    )
    counts, crashes, peak = said_alone(script, str(tmp_path))
    assert not crashes, "\n".join(crashes)
    assert counts["refused"] > 250 and counts["used"] > 500
    assert peak < 1e9, peak
