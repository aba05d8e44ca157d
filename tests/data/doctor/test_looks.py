"""Images are measured while the scan decodes them, JPEGs at a half where that is enough."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from photographs import Planted, photograph
from PIL import Image, ImageFilter, ImageOps

from lora_studio.data import scan
from lora_studio.data.doctor import DoctorOptions, examine_folder
from lora_studio.data.doctor import look as looking
from lora_studio.data.doctor.likeness import LEAST_CORRELATION, MAX_BITS, Likeness, Pair, similar_pairs
from lora_studio.data.images import UnreadableFile
from lora_studio.data.images import decode as images

RESOLUTION = 128


def examined(folder: Path) -> list[tuple[str, str, str]]:
    report, _ = examine_folder(folder, DoctorOptions(resolution=RESOLUTION))
    return [(finding.kind, Path(finding.path).stem, finding.detail) for finding in report.findings]


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Planted:
    """Large enough to be decoded at a half, if they are JPEGs."""
    found = Planted(tmp_path_factory.mktemp("planted") / "images")
    large = [photograph(seed, 680, 500) for seed in range(6)]
    found.add("bars.png", ImageOps.expand(large[0], (0, 60)))
    found.add("blur.png", large[1].filter(ImageFilter.GaussianBlur(16)))
    found.add("good.png", large[2])
    found.add("like_good.png", large[2].resize((676, 497)))
    found.add("upscaled.png", photograph(3, 136, 100).resize((680, 500), Image.Resampling.BICUBIC))
    found.add("squares.png", photograph(4, 85, 62).resize((680, 496), Image.Resampling.NEAREST))
    found.add("sharp.png", large[5])
    return found


def test_each_image_is_decoded_once(planted: Planted, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[int] = []
    plain = images._decode
    monkeypatch.setattr(images, "_decode", lambda *arguments: decoded.append(1) or plain(*arguments))
    examined(planted.folder)
    assert len(decoded) == len(list(planted.folder.glob("*.png")))


def test_what_is_found_in_a_jpeg_decoded_at_a_half_is_what_is_found_in_all_its_pixels(
    planted: Planted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    as_jpeg, shrunk = Planted(tmp_path / "jpeg"), list[int]()
    for path in planted.folder.glob("*.png"):
        with Image.open(path) as image:
            as_jpeg.add(f"{path.stem}.jpg", image, quality=97, subsampling=0)
    whole = examined(planted.folder)
    look = looking.look
    monkeypatch.setattr(
        looking, "look", lambda decoded, *rest: shrunk.append(decoded.shrunk) or look(decoded, *rest)
    )
    halves = examined(as_jpeg.folder)
    assert shrunk.count(2) == len(list(as_jpeg.folder.glob("*.jpg")))
    assert {kind for kind, *_ in whole} > {"blur", "border", "near_duplicate", "upscaled"}
    assert [one[:2] for one in halves] == [one[:2] for one in whole]
    borders = [detail for kind, _, detail in (*whole, *halves) if kind == "border"]
    assert len(borders) == 2 and borders[0] == borders[1]  # in the pixels of the file


def test_threads_find_what_one_thread_finds(planted: Planted, monkeypatch: pytest.MonkeyPatch) -> None:
    several = examined(planted.folder)
    monkeypatch.setattr(scan, "in_threads", lambda work, items: map(work, items))
    assert examined(planted.folder) == several


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("share", [0.3, 0.9, 0.995])
def test_a_truncated_jpeg_is_found_at_a_half_of_its_sides_as_well(share: float, progressive: bool) -> None:
    written = BytesIO()
    photograph(7, 640, 480).save(written, "JPEG", quality=90, progressive=progressive)
    data = written.getvalue()
    assert images.decode(data, enough_pixels=70_000).shrunk == 2
    for enough_pixels in (0, 70_000):
        with pytest.raises(UnreadableFile, match="truncated"):
            images.decode(data[: round(share * len(data))], enough_pixels=enough_pixels)


def test_similar_pairs_are_those_that_comparing_every_two_images_finds() -> None:
    rng = np.random.default_rng(3)
    scenes = rng.integers(0, 255, (12, 16, 16, 3), np.uint8)
    looks = []
    for _ in range(300):
        scene, hashed = rng.integers(12), rng.integers(4)
        small = scenes[scene][:, :: int(rng.choice([-1, 1]))]
        base = int(np.random.default_rng(hashed).integers(2**63))
        flipped = sum(1 << int(bit) for bit in rng.choice(63, rng.integers(8), replace=False))
        mirrored = int(np.random.default_rng(hashed + 1).integers(2**63))
        looks.append(Likeness(base ^ flipped, mirrored, small.tobytes()))
    expected = []
    for second, look in enumerate(looks):
        pairs = (
            Pair(first, second, bits, mirrored)
            for mirrored, wanted in ((False, look.hash), (True, look.mirrored))
            for first in range(second)
            if (bits := (looks[first].hash ^ wanted).bit_count()) <= MAX_BITS
            and correlation(looks[first], look, mirrored) >= LEAST_CORRELATION
        )
        expected += [pair for pair in [next(pairs, None)] if pair]
    found = list(similar_pairs(looks))
    assert found == expected and {pair.mirrored for pair in found} == {False, True}


def correlation(one: Likeness, other: Likeness, mirrored: bool) -> float:
    first, second = (np.frombuffer(x.small, np.uint8).reshape(16, 16, 3).astype(float) for x in (one, other))
    second = second[:, ::-1] if mirrored else second
    deviations = [(pixels - pixels.mean((0, 1))).ravel() for pixels in (first, second)]
    return float(np.corrcoef(*deviations)[0, 1])
