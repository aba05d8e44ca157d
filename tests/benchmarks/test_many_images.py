"""The benchmark of many images runs the real commands and judges what they took."""

from __future__ import annotations

from pathlib import Path

import many_images
import pytest


def test_each_set_is_planned_and_examined_in_a_process_of_its_own(tmp_path: Path) -> None:
    if not Path("/proc/self/status").exists():
        pytest.skip("the peak is read from Linux's /proc")
    small, larger = many_images.sets_of((4, 12), tmp_path)
    assert (small["images"], larger["images"]) == (4, 12)
    assert 20 < larger["doctor_peak_mb"] < 400 and larger["buckets_seconds"] > 0
    photos = {"ratio": 1.6}
    passed = [one.passed for one in many_images.criteria([small, larger], photos)]
    assert passed[:2] == [True, True] and not passed[3]
    assert not many_images.criteria([small, larger | {"doctor_peak_mb": 401.0}], photos)[1].passed


def test_a_command_that_fails_is_not_timed(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="doctor exits with 2"):
        many_images.run_command(["doctor", str(tmp_path / "missing")], tmp_path)
