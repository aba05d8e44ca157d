"""The verb doctor: what it prints, writes, and exits with."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from console import run
from photographs import Planted
from tiny import recipe_text

from lora_studio.recipe.load import load_recipe
from lora_studio.training.prepare.dataset import read_dataset


@pytest.fixture
def planted(tmp_path: Path) -> Planted:
    planted = Planted(tmp_path / "images")
    for number in range(5):
        planted.add(f"good_{number}.png")
    shutil.copyfile(planted.folder / "good_0.png", planted.add("twice_0.png"))
    return planted


def ask(planted: Planted, *options: object) -> list[str]:
    return ["doctor", str(planted.folder), "--resolution", "256", *map(str, options)]


def test_exit_codes_are_0_without_errors_1_with_and_2_for_a_mistake(planted: Planted, capsys) -> None:
    assert run(ask(planted), capsys)[0] == 0  # a duplicate is only a warning
    (planted.folder / "good_3.txt").unlink()
    assert run(ask(planted), capsys)[0] == 1
    assert run(ask(planted, "--trigger", "x", "--resolution", "100"), capsys)[0] == 2
    assert run(ask(planted, "--resolution", "6400000000"), capsys)[0] == 2
    assert run(ask(planted, "--html", "/dev/zero"), capsys)[0] == 2  # of which no more is read than of a page


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["doctor", "nowhere"], "there is no nowhere; give a folder of images or a recipe"),
        (["doctor", "empty"], "is empty"),
        (["doctor", "recipe.toml"], "there is no base model at '/nowhere'"),
        (["doctor", "recipe.toml", "--trigger", "x"], "a recipe says that itself"),
        (["doctor", "empty", "--base", "/nowhere"], "there is no base model at '/nowhere'"),
    ],
)
def test_a_mistake_is_one_sentence(arguments, words: str, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "recipe.toml").write_text(recipe_text(tmp_path / "empty", "/nowhere"))
    code, _, err = run(arguments, capsys)
    assert code == 2 and words in err.replace("\n", " ") and "Traceback" not in err


def test_findings_are_printed_by_kind_with_evidence_and_advice(planted: Planted, capsys) -> None:
    (planted.folder / "good_3.txt").write_text("")
    _, printed, _ = run(ask(planted), capsys)
    assert "images: 5 images to train on, 1 error, 1 warning, 1 note" in printed
    assert printed.index("caption empty (1)") < printed.index("exact duplicate (1)")
    assert "  good_3.png: good_3.txt is blank\n" in printed
    assert "  twice_0.png: the same bytes as good_0.png; its other caption is not used\n" in printed
    assert (
        "  Remove one. To weigh an image more, use data.repeats, or repeats in a" in printed
        and "256x256: 5" in printed
    )


def test_json_is_all_that_is_printed_and_the_page_is_written_beside(
    planted: Planted, tmp_path: Path, capsys
) -> None:
    _, printed, _ = run(ask(planted, "--json", "--html", tmp_path / "page.html"), capsys)
    report = json.loads(printed)
    assert [finding["kind"] for finding in report["findings"]] == ["exact_duplicate", "too_few"]
    assert report["plan"]["buckets"] == {"256x256": 5} and report["plan"]["used"] == 5
    assert {"path", "bucket", "resize", "crop", "cropped_away"} <= set(report["plan"]["images"][0])
    assert (tmp_path / "page.html").read_text("utf-8").startswith("<!doctype html>")


def test_the_suggested_list_works_in_a_recipe(planted: Planted, tmp_path: Path, capsys) -> None:
    from PIL import Image

    with Image.open(planted.folder / "good_1.png") as image:
        planted.add("again.jpg", image.resize((300, 300)))
    planted.add("plain #1.png", Image.new("RGB", (300, 300), "red"))
    listed = tmp_path / "leave_out.txt"
    assert run(ask(planted, "--write-exclude", listed), capsys)[0] == 0
    names = [line for line in listed.read_text("utf-8").splitlines() if line and not line.startswith("#")]
    assert names == ["again.jpg", "plain #1.png"]
    (tmp_path / "recipe.toml").write_text(recipe_text(planted.folder, "pocket"))
    recipe = load_recipe(tmp_path / "recipe.toml", changes=(f"data.exclude={listed}",))
    manifest = read_dataset(recipe, 8)
    assert [record.name for record in manifest.used] == [f"good_{number}.png" for number in range(5)]
    before = listed.read_bytes()
    code, _, err = run(ask(planted, "--write-exclude", listed), capsys)
    assert code == 2 and "is there already" in err and listed.read_bytes() == before


def test_a_recipes_list_is_kept_in_the_next_suggestion(planted: Planted, tmp_path: Path, capsys) -> None:
    (tmp_path / "first.txt").write_text("good_2.png")
    text = recipe_text(planted.folder, "pocket").replace("[data]", '[data]\nexclude = "first.txt"')
    (tmp_path / "recipe.toml").write_text(text)
    run(["doctor", str(tmp_path / "recipe.toml"), "--write-exclude", str(tmp_path / "second.txt")], capsys)
    assert "# left out before\ngood_2.png\n" in (tmp_path / "second.txt").read_text("utf-8")


def test_nothing_is_written_unless_asked_for(planted: Planted, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    run(ask(planted), capsys)
    assert sorted(tmp_path.rglob("*")) == before
