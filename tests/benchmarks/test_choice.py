"""What the choice benchmark is made of: pieces that are read again, a table, and references."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import numpy as np
from choice import Judged, Piece, distances, markdown, pieces, references
from figures import Share, interval_of, write_json
from PIL import Image

BETTER, WORSE = Share(0.1, -0.02, 0.2), Share(-0.2, -0.3, -0.1)


def piece(task: str, seed: int, better_by: Share) -> Piece:
    chosen, last = Judged(440, 0.9, 0.3, 0.0), Judged(1320, 0.95, 0.6, 0.1)
    return Piece(task, seed, 1320, chosen, last, True, "step 440: fidelity", better_by)


def test_a_piece_is_read_as_it_was_written_and_holds_unless_it_is_surely_worse(tmp_path: Path) -> None:
    some = [piece("style", 1, BETTER), piece("subject", 2, WORSE)]
    for one in some:
        write_json(asdict(one), tmp_path / f"{one.task}_{one.seed}.json")
    assert pieces(tmp_path) == some
    assert [one.holds for one in some] == [True, False]
    told = markdown(some).splitlines()
    assert told[2].startswith("| style | 1 | 440 | 1320 | 90 % | 95 % | 0.30 | 0.60 | +0.100 (-0.020 to")
    assert told[2].endswith("holds |") and told[3].endswith("FAILS |")


def test_references_show_what_was_taught_and_are_drawn_once(tmp_path: Path) -> None:
    for task in ("style", "subject"):
        folder = references(task, tmp_path)
        files = sorted(folder.glob("*.png"))
        assert len(files) == 24 and references(task, tmp_path) == folder
        assert len({one.read_bytes() for one in files}) == 24


def test_the_distance_is_the_root_mean_square_of_levels() -> None:
    black, grey = Image.new("RGB", (4, 4)), Image.new("RGB", (4, 4), (30, 30, 30))
    assert distances([black, grey], [grey, grey]).tolist() == [30.0, 0.0]


def test_the_interval_of_a_constant_is_it() -> None:
    assert interval_of(np.full(9, 0.25)) == Share(0.25, 0.25, 0.25)
