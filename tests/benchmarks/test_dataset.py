"""The dataset benchmark compares like with like."""

from __future__ import annotations

import json
from pathlib import Path

import dataset
import pytest
import torch
from PIL import Image


def test_both_sides_make_the_same_pixels(tmp_path: Path) -> None:
    for number, size in enumerate(((600, 400), (400, 600), (560, 560))):
        dataset.photograph(number, size).save(tmp_path / f"{number}.{('jpg', 'png')[number % 2]}")
    plain, ours = dataset.plain_pixels(tmp_path), dataset.our_pixels(tmp_path)
    assert len(plain) == len(ours) == 3
    for one, other in zip(plain, ours, strict=True):
        torch.testing.assert_close(one, other, atol=0.05, rtol=0)


def test_a_drawn_photograph_is_as_hard_to_compress_as_a_real_one(tmp_path: Path) -> None:
    dataset.photograph(1, (600, 400)).save(tmp_path / "a.jpg", quality=92)
    bits_per_pixel = (tmp_path / "a.jpg").stat().st_size * 8 / (600 * 400)
    assert 1 < bits_per_pixel < 5  # cameras' JPEGs have 2 to 4


def test_ratios_are_taken_round_by_round() -> None:
    duel = dataset.Duel(plain=[2.0, 8.0, 3.0], ours=[1.0, 2.0, 3.0], images=4)
    assert duel.ratios == [2.0, 4.0, 1.0] and duel.report()["median_ratio"] == 2.0
    assert duel.report()["our_images_per_second"] == 2.0


def test_scanning_is_measured_in_a_process_of_its_own(tmp_path: Path) -> None:
    if not Path("/proc/self/status").exists():
        pytest.skip("the peak is read from Linux's /proc")
    (small, larger) = dataset.scaling(tmp_path, (5, 40))
    assert (small["images"], larger["images"]) == (5, 40)
    assert 20 < larger["peak_mb"] < 400  # type: ignore[operator]
    with Image.open(next((tmp_path / "all").iterdir())) as image:
        assert image.size == (96, 64)


def test_the_committed_results_meet_what_is_asked_for() -> None:
    report = json.loads(dataset.RESULTS.read_text("utf-8"))
    assert all(criterion["passed"] for criterion in report["criteria"])
    rows = {row["images"]: row for row in report["scan_and_plan"]}
    assert {50, 20_000} <= set(rows)
    # Flat: what 20,000 images take more than 50 is the records, a few kilobytes each.
    assert (rows[20_000]["peak_mb"] - rows[50]["peak_mb"]) * 1e6 / 20_000 < 8_000
