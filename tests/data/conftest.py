"""Real image files and records, made on the spot."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from lora_studio.data.manifest import Bucket, Manifest, Record

Paint = Callable[..., Path]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An empty folder for images, apart from whatever else a test writes."""
    path = tmp_path / "images"
    path.mkdir()
    return path


@pytest.fixture
def paint(folder: Path) -> Paint:
    """`paint("a.png", 40, 30, "red", caption="...")` writes an image, and its .txt, into the folder."""

    def write(
        name: str, width: int = 40, height: int = 30, colour: object = "red", *, caption: str = ""
    ) -> Path:
        path = folder / name
        Image.new("RGB", (width, height), colour).save(path)  # type: ignore[arg-type]
        if caption:
            path.with_suffix(".txt").write_text(caption, "utf-8")
        return path

    return write


@pytest.fixture
def reason() -> Callable[[Manifest, str], str]:
    """`reason(manifest, name)`: why the file is excluded; empty if it is used."""

    def find(manifest: Manifest, name: str) -> str:
        (record,) = [record for record in manifest.records if record.name == name]
        return record.excluded

    return find


@pytest.fixture
def records_in() -> Callable[..., list[Record]]:
    """`records_in([(64, 64), (72, 56)], repeats=2)`: used records in these buckets, without files."""

    def make(sizes: list[tuple[int, int]], *, repeats: int = 1) -> list[Record]:
        buckets = [Bucket(*size) for size in sizes]
        return [
            Record(path=f"/{number}.png", name=f"{number}.png", repeats=repeats, bucket=bucket)
            for number, bucket in enumerate(buckets)
        ]

    return make
