"""The verb about buckets, as a user calls it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from console import run
from PIL import Image
from tiny import recipe_text


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two images of one shape, a smaller square, and a file that is none."""
    folder = tmp_path / "images"
    folder.mkdir()
    for number, size in enumerate([(300, 200), (150, 100), (50, 50)]):
        Image.new("RGB", size, (number, 0, 0)).save(folder / f"{number} [bold].png")
    (folder / "notes.pdf").write_text("x")
    return folder


def test_without_a_folder_it_shows_the_common_shapes(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(["buckets"], capsys)
    assert code == 0 and "3:2" in out and "576x384" in out
    assert "mean of all 15: 2.15% cropped, 95.4% of the area asked for" in out
    code, out, _ = run(["buckets", "--resolution", "1024", "--stride", "8", "--json"], capsys)
    rows = json.loads(out)
    assert code == 0 and len(rows) == 15 and rows[3]["aspect"] == "3:2"
    assert rows[0]["bucket"] == {"width": 1024, "height": 1024}


def test_a_folder_shows_its_plan(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(["buckets", str(folder), "--resolution", "64", "--stride", "8"], capsys)
    assert code == 0 and "3 used, 1 excluded" in out and "excluded: notes.pdf" in out
    assert "64x64: 1, 72x48: 2" in out and "0.0% of an image is cropped away" in out
    assert "enlarged, up to 1.28 times: 1 (2 [bold].png)" in out


def test_a_recipe_shows_its_plan_with_its_bases_stride(
    folder: Path, tmp_path: Path, tiny_base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    extra = "[data]"
    text = recipe_text(folder, str(tiny_base)).replace(extra, f'{extra}\ninstance_prompt = "zwx style"')
    text = text.replace("resolution = 64", "resolution = 64\nextra_resolutions = [96]\nflip = true")
    (tmp_path / "recipe.toml").write_text(text, "utf-8")
    code, out, err = run(["buckets", str(tmp_path / "recipe.toml"), "--json"], capsys)
    plan = json.loads(out)
    assert code == 0, err
    assert plan["buckets"] == {"64x64": 1, "72x48": 2, "72x72": 1, "120x80": 2}
    assert plan["mirrored"] == 0.5 and plan["latents"] == 12 and "notes.pdf" in plan["excluded"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nowhere"], "nowhere is neither a folder nor a recipe; give a folder of images or a .toml file"),
        (["nowhere.toml"], "there is no recipe at nowhere.toml"),
        (["--resolution", "100"], "this base needs a multiple of 64, so set it to 64 or 128"),
        (["--resolution", "6400000000"], "at most 4096 pixels are trained"),
    ],
)
def test_a_mistake_is_one_sentence(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = run(["buckets", *arguments], capsys)
    assert code == 2 and words in err and "Traceback" not in err
