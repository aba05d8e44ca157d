"""`lora-studio cache` shows and prunes, `lora-studio regularization images` draws."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from console import run
from tiny import image_folder, recipe_text


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache with a latent of 40 days and one of today."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("LORA_STUDIO_CACHE", str(folder))
    (folder / "latents").mkdir(parents=True)
    for letter, days, size in (("a", 40, 3_000_000), ("b", 0, 2_000_000)):
        path = folder / "latents" / f"{letter * 64}.safetensors"
        path.write_bytes(bytes(size))
        os.utime(path, (time.time() - days * 24 * 3600,) * 2)
    return folder


def left(cache: Path) -> list[str]:
    return sorted(path.name[0] for path in (cache / "latents").iterdir())


def test_cache_shows_entries_sizes_dates_and_the_folder(
    cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = run(["cache"], capsys)
    assert code == 0 and str(cache) in out
    old, today = (
        time.strftime("%Y-%m-%d", time.localtime(path.stat().st_mtime))
        for path in sorted((cache / "latents").iterdir())
    )
    rows = [line.split() for line in out.splitlines()]
    assert ["latents", "2", "5.0", "MB", old, today] in rows and ["all", "2", "5.0", "MB", old, today] in rows


def test_an_empty_cache_is_no_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LORA_STUDIO_CACHE", str(tmp_path / "nowhere"))
    code, out, _ = run(["cache"], capsys)
    assert code == 0 and "0 bytes" in out
    assert "nothing to remove" in run(["cache", "prune", "--max-size", "0"], capsys)[1]


@pytest.mark.parametrize(
    ("options", "rest"),
    [
        (["--older-than", "30d"], ["b"]),
        (["--max-size", "2MB"], ["b"]),
        (["--max-size", "5MB"], ["a", "b"]),
        (["--older-than", "8w", "--max-size", "0"], []),
    ],
)
def test_prune_shows_first_and_removes_when_told_to(
    cache: Path, capsys: pytest.CaptureFixture[str], options: list[str], rest: list[str]
) -> None:
    code, out, _ = run(["cache", "prune", *options], capsys)
    assert code == 0 and left(cache) == ["a", "b"]
    assert ("add --yes" in out) == (rest != ["a", "b"])
    code, _, _ = run(["cache", "prune", *options, "--yes"], capsys)
    assert code == 0 and left(cache) == rest


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ([], "say what may go: --older-than 30d"),
        (["--older-than", "soon"], "'soon' is no age"),
        (["--max-size", "small"], "'small' is no size"),
    ],
)
def test_a_mistake_is_one_sentence(
    cache: Path, capsys: pytest.CaptureFixture[str], options: list[str], words: str
) -> None:
    code, _, err = run(["cache", "prune", "--yes", *options], capsys)
    assert code == 2 and words in err and "Traceback" not in err and left(cache) == ["a", "b"]


def test_cache_answers_without_the_heavy_libraries(cache: Path) -> None:
    script = (
        "import sys; from lora_studio import cli; "
        "cli.guarded(lambda: cli.app(['cache', 'prune', '--max-size', '1GB'], standalone_mode=False)); "
        "print('loaded:', sorted({'torch', 'diffusers', 'numpy', 'PIL'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "nothing to remove" in result.stdout and result.stdout.rstrip().endswith("loaded: []")


def test_regularization_images_are_drawn_and_named(
    tmp_path: Path, tiny_base: Path, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image_folder(tmp_path / "images", count=2)
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(recipe_text(tmp_path / "images", str(tiny_base)), "utf-8")
    wanted = ["--set", "data.regularization_images.count=3", "--set", "data.regularization_images.steps=1"]
    code, out, _ = run(["regularization-images", str(recipe), *wanted], capsys)
    assert code == 0 and f"3 regularization images, 3 of them drawn now, in {cache / 'class_images'}" in out
    code, out, _ = run(["regularization-images", str(recipe), *wanted], capsys)
    assert code == 0 and "3 regularization images, 0 of them drawn now" in out
    assert "regularization images" in run(["cache"], capsys)[1]
    code, _, err = run(["regularization-images", str(recipe)], capsys)
    assert code == 2 and "data.regularization_images.count is 0" in err
