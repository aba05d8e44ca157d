"""LoRA files of every kind and spelling, mutated, are used or refused in words; what is written is whole."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from lora_mutator import EXTRAS, KINDS, SPELLINGS, Verbs, mutated, run, whole_file
from memory import needs_proc, said_alone
from safetensors.torch import save_file

from lora_studio.tools.inspect import inspect_file


def test_mutated_files_of_every_kind_are_used_or_refused_in_one_sentence(tmp_path: Path) -> None:
    counts, crashes = run(tmp_path, range(24))
    assert not crashes, "\n".join(crashes)
    assert min(counts.values()) >= 30  # neither everything nor nothing


FOUND = (1305, 1519, 1838, 2522, 2537)  # products beyond their dtype, norms of what does not go together


def test_what_thousands_found_stays_mended(tmp_path: Path) -> None:
    counts, crashes = run(tmp_path, FOUND)
    assert not crashes and sum(counts.values()) == 8 * len(FOUND)


def test_the_files_that_are_mutated_are_read(tmp_path: Path) -> None:
    """So that what is mutated is known: each kind in kohya's names, plain LoRA in each spelling."""
    path = tmp_path / "x.safetensors"
    for kind, spelling in [(kind, "kohya") for kind in KINDS] + [("lora", one) for one in SPELLINGS]:
        tensors, metadata = whole_file(kind, spelling, "nothing")
        save_file({key: one.contiguous() for key, one in tensors.items()}, path, metadata=metadata)
        facts = inspect_file(path)
        assert sum(facts.layers.values()) == 5 and facts.kind not in ("other", "checkpoint"), (kind, spelling)
        assert not any("of no layer" in note for note in facts.notes), (kind, spelling, facts.notes)


def test_every_kind_spelling_and_companion_is_drawn() -> None:
    labels = [mutated(random.Random(number))[0].split(", ") for number in range(400)]
    for at, known in enumerate((KINDS, SPELLINGS, EXTRAS)):
        assert {label[at] for label in labels} == set(known)


@needs_proc
@pytest.mark.slow
@pytest.mark.parametrize("first", range(1000, 3000, 250))
def test_two_thousand_mutated_files_take_less_than_a_gigabyte(first: int, tmp_path: Path) -> None:
    """The libraries that are imported take half of it."""
    script = (
        "from lora_mutator import run\nimport torch; torch.set_num_threads(1)\n"
        f"counts, crashes = run(Path(sys.argv[1]), range({first}, {first + 250}))\n"
        "print(json.dumps([counts, crashes, peak_bytes()]))"
    )
    counts, crashes, peak = said_alone(script, str(tmp_path))
    assert not crashes, "\n".join(crashes)
    assert min(counts.values()) > 300
    assert peak < 1e9, peak


def test_a_whole_file_goes_through_every_verb(tmp_path: Path) -> None:
    verbs = Verbs(tmp_path)
    verbs.path.write_bytes(verbs.good.read_bytes())
    for call in (verbs.verify, verbs.inspect, verbs.convert, verbs.resize, verbs.combine, verbs.compare):
        call()
