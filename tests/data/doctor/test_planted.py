"""Forty planted faults, two of each kind: all are found, each as what it is, and nothing else is."""

from __future__ import annotations

import json
import shutil
from collections import defaultdict
from io import BytesIO
from pathlib import Path

import pytest
from photographs import Planted
from PIL import Image, ImageFilter, ImageOps
from typer.testing import CliRunner

from lora_studio import cli

SAMPLES = Path(__file__).parents[3] / "sample_images"
LONG = "a very detailed image of something, with many words about every part of it, " * 8


def plant_duplicates(planted: Planted) -> None:
    goods = [planted.folder / f"a_good_{number}.png" for number in range(4)]
    for number, good in enumerate(goods[:2]):
        shutil.copyfile(good, planted.add(f"exact_duplicate_{number}.png"))
    with Image.open(goods[2]) as first, Image.open(goods[3]) as second:
        planted.add("near_duplicate_0.jpg", first.resize((300, 300)), quality=85)
        planted.add("near_duplicate_1.png", ImageOps.mirror(second.crop((3, 3, 317, 317))))


def plant_poor_detail(planted: Planted) -> None:
    for number, radius in enumerate((3, 5)):
        planted.add(f"blur_{number}.png", planted.fresh().filter(ImageFilter.GaussianBlur(radius)))
    planted.add("blank_0.png", Image.new("RGB", (320, 320), (90, 120, 60)))
    gradient = Image.linear_gradient("L").resize((320, 320)).point(lambda value: 100 + value // 64)
    planted.add("blank_1.png", gradient)
    planted.add("upscaled_0.png", planted.fresh(160, 160).resize((320, 320), Image.Resampling.BICUBIC))
    planted.add("upscaled_1.png", planted.fresh(80, 80).resize((320, 320), Image.Resampling.NEAREST))
    planted.add("heavy_compression_0.jpg", quality=15)
    written = BytesIO()
    planted.fresh().save(written, "JPEG", quality=8)
    with Image.open(written) as again:  # saved as PNG, so that no table of its tells
        planted.add("heavy_compression_1.png", again)


def plant_shapes(planted: Planted) -> None:
    planted.add("tiny_0.png", planted.fresh(150, 150))
    planted.add("tiny_1.png", planted.fresh(120, 120))
    planted.add("crop_loss_0.png", planted.fresh(384, 300))
    planted.add("crop_loss_1.png", planted.fresh(300, 384))
    planted.add("extreme_aspect_0.png", planted.fresh(1200, 300))
    planted.add("extreme_aspect_1.png", planted.fresh(300, 900))
    planted.add("border_0.png", ImageOps.expand(planted.fresh(320, 260), (0, 30)))
    planted.add("border_1.jpg", ImageOps.expand(planted.fresh(290, 290), 15, "white"), quality=90)


def plant_captions(planted: Planted) -> None:
    for number in range(2):
        planted.add(f"caption_missing_{number}.png").with_suffix(".txt").unlink()
        planted.add(f"caption_empty_{number}.png").with_suffix(".txt").write_text(" \n")
        text = planted.add(f"caption_unreadable_{number}.png").with_suffix(".txt")
        text.write_bytes("Grün, zwx style".encode(("latin-1", "utf-16-le")[number]))
        shared = planted.add(f"other_{number}.png").with_suffix(".txt").read_text()
        planted.add(f"caption_identical_{number}.png").with_suffix(".txt").write_text(shared)
        text = planted.add(f"caption_too_long_{number}.png").with_suffix(".txt")
        text.write_text(f"zwx style {number}, {LONG}")
        text = planted.add(f"trigger_missing_{number}.png").with_suffix(".txt")
        text.write_text(f"an image without, number {number}")


def plant_files(planted: Planted) -> None:
    for number in range(2):
        planted.add(f"same_name_{number}.jpg", quality=95)
        planted.add(f"same_name_{number}.png")
        (planted.folder / f"orphan_caption_{number}.txt").write_text("nobody's")
    whole = planted.add("unusable_0.jpg").read_bytes()
    (planted.folder / "unusable_0.jpg").write_bytes(whole[: len(whole) // 2])
    planted.add("unusable_1.jpg").write_text("<html>not found</html>")
    (planted.folder / "Thumbs.db").write_bytes(b"ignored")
    (planted.folder / "ignored_1.pdf").write_bytes(b"%PDF-1.7")


def doctor(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(cli.app, ["doctor", *map(str, arguments)], env={"COLUMNS": "200"})
    return result.exit_code, result.stdout


@pytest.fixture(scope="module")
def findings(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, str]]:
    """What the command says of forty faults among twenty good images."""
    planted = Planted(tmp_path_factory.mktemp("planted") / "images")
    for number in range(20):
        planted.add(f"a_good_{number}.{('png', 'jpg', 'webp')[number % 3] if number > 3 else 'png'}")
    for plant in (plant_duplicates, plant_poor_detail, plant_shapes, plant_captions, plant_files):
        plant(planted)
    before = {path: path.read_bytes() for path in planted.folder.iterdir()}
    code, output = doctor(planted.folder, "--json", "--trigger", "zwx style", "--resolution", "256")
    assert before == {path: path.read_bytes() for path in planted.folder.iterdir()}  # it changes nothing
    report = json.loads(output)
    assert code == 1 and set(report) == {"findings", "plan"}
    return report["findings"]


def test_forty_planted_faults_are_found_and_nothing_else(findings: list[dict[str, str]]) -> None:
    found: dict[str, set[str]] = defaultdict(set)
    for finding in findings:
        assert list(finding) == ["kind", "severity", "path", "detail", "advice"]
        assert all(finding.values())
        found[finding["kind"]].add(finding["path"])
    assert {kind: len(paths) for kind, paths in found.items()} == dict.fromkeys(found, 2)
    assert len(found) == 20 and len(findings) == 40
    assert found.pop("ignored") == {"Thumbs.db", "ignored_1.pdf"}
    assert all(path.startswith(kind) for kind, paths in found.items() for path in paths)


def test_what_stops_a_training_is_an_error(
    findings: list[dict[str, str]],
) -> None:
    severities = {finding["kind"]: finding["severity"] for finding in findings}
    errors = {"caption_missing", "caption_empty", "caption_unreadable", "same_name"}
    assert {kind for kind, severity in severities.items() if severity == "error"} == errors
    assert {kind for kind, severity in severities.items() if severity == "note"} == {"ignored"}


@pytest.mark.parametrize("recipe", ["pocket_style", "pocket_subject"])
def test_nothing_is_said_against_the_recipes_sample_images(recipe: str) -> None:
    code, output = doctor(SAMPLES.parent / "recipes" / f"{recipe}.toml", "--json")
    report = json.loads(output)
    assert code == 0 and report["findings"] == []
    assert (
        report["plan"]["used"]
        == len(report["plan"]["images"])
        == {"pocket_style": 28, "pocket_subject": 12}[recipe]
    )


@pytest.mark.parametrize("folder", ["style_woodcut", "subject_bolt"])
def test_for_a_base_of_512_pixels_the_samples_are_only_small(folder: str) -> None:
    code, output = doctor(SAMPLES / folder, "--json")
    findings = json.loads(output)["findings"]
    assert code == 0 and [(finding["kind"], finding["path"]) for finding in findings] == [("tiny", "")]
    assert "images are much smaller than 512x512" in findings[0]["detail"]
