"""A folder of images as the examples need it."""

from __future__ import annotations

from pathlib import Path

import pytest

FOLDERS = ("", "dog", "reg", "portraits", "landscapes", "style", "held", "a", "b")


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Folders of two empty files each: only their names and numbers are looked at."""
    for name in FOLDERS:
        folder = tmp_path / "photos" / name
        folder.mkdir(parents=True, exist_ok=True)
        for number in range(2):
            (folder / f"{number}.png").touch()
    return tmp_path / "photos"
