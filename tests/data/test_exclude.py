"""data.exclude: what it names is not trained on, with the reason in the manifest."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny import recipe_text

from lora_studio.data.scan import ScanOptions, scan
from lora_studio.data.scan.layouts import ExcludeList, read_exclude
from lora_studio.errors import DatasetError, RecipeError
from lora_studio.recipe import Recipe
from lora_studio.recipe.load import load_recipe
from lora_studio.training.prepare.dataset import read_dataset


def test_names_and_paths_are_left_out_with_the_reason(paint, folder: Path, reason, tmp_path: Path) -> None:
    for number, name in enumerate(("a.png", "b.png", "c #1.png", "ü.png")):
        paint(name, colour=(number, 9, 9), caption=name)
    (tmp_path / "out.txt").write_text("# a remark\n\na.png\r\n  c #1.png \nu\u0308.png\n", "utf-8")
    manifest = scan(folder, ScanOptions(exclude=read_exclude(tmp_path / "out.txt")))
    assert [record.name for record in manifest.used] == ["b.png"]
    assert {reason(manifest, name) for name in ("a.png", "c #1.png", "ü.png")} == {"left out by out.txt"}
    assert len(manifest.records) == 4  # their captions are claimed, and no orphans


def test_a_path_is_that_file_alone_and_a_bare_name_the_file_in_any_folder() -> None:
    names = ["a.png", "one/a.png", "one/b.png", "two/b.png"]
    assert ExcludeList("x", ("a.png",)).chosen(names) == {"a.png"}
    assert ExcludeList("x", ("b.png",)).chosen(names) == {"one/b.png", "two/b.png"}
    assert ExcludeList("x", ("one/a.png",)).chosen(names) == {"one/a.png"}


def test_a_source_is_named_by_its_folder_or_not() -> None:
    entries = ExcludeList("x", ("style/a.png", "other/a.png", "b.png"))
    assert entries.below("style/").chosen(["a.png", "b.png", "c.png"]) == {"a.png", "b.png"}


def test_what_is_left_out_makes_room_for_what_it_stood_in_the_way_of(paint, folder: Path, reason) -> None:
    for name in ("a.png", "a.jpg", "b.png", "copy.png"):
        paint(name, colour=("red" if name in ("b.png", "copy.png") else "blue"))
    paint("lonely.png", colour="green")
    exclude = ExcludeList("out.txt", ("a.jpg", "b.png"))
    manifest = scan(folder, ScanOptions(exclude=exclude))
    assert [record.name for record in manifest.used] == ["a.png", "copy.png", "lonely.png"]


def test_the_list_may_lie_among_the_images(paint, folder: Path, reason) -> None:
    paint("a.png"), paint("b.png", colour="blue")
    (folder / "out.txt").write_text("a.png")
    manifest = scan(folder, ScanOptions(exclude=read_exclude(folder / "out.txt")))
    assert reason(manifest, "out.txt") == "the list of files to leave out"


@pytest.fixture
def recipe_with(tmp_path: Path, images: Path):  # type: ignore[no-untyped-def]
    """`recipe_with("00.png")`: a recipe whose list of files to leave out says so."""

    def make(text: str, *changes: str) -> Recipe:
        (tmp_path / "out.txt").write_text(text, "utf-8")
        (tmp_path / "recipe.toml").write_text(recipe_text(images, "pocket"), "utf-8")
        return load_recipe(tmp_path / "recipe.toml", changes=("data.exclude=out.txt", *changes))

    return make


def test_a_recipe_leaves_out_what_its_list_names(recipe_with) -> None:  # type: ignore[no-untyped-def]
    everything, fewer = (
        read_dataset(recipe_with("# nothing"), 8),
        read_dataset(recipe_with("00.png\n02.webp"), 8),
    )
    assert [record.name for record in everything.used] == ["00.png", "01.jpg", "02.webp", "03.png", "04.jpg"]
    assert [record.name for record in fewer.used] == ["01.jpg", "03.png", "04.jpg"]
    assert '"excluded": "left out by out.txt"' in fewer.to_jsonl()


def test_a_name_that_is_not_there_is_an_error_with_a_suggestion(recipe_with) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(
        DatasetError, match=r"out\.txt lists 0O\.png, but there is no such image; did you mean"
    ):
        read_dataset(recipe_with("0O.png"), 8)


def test_a_list_that_is_not_there_or_no_text_is_an_error(recipe_with, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    recipe = recipe_with("")
    (tmp_path / "out.txt").write_bytes(b"\xff\xfe\x00\xd8")
    with pytest.raises(DatasetError, match="neither UTF-8 nor UTF-16"):
        read_dataset(recipe, 8)
    (tmp_path / "out.txt").unlink()
    with pytest.raises(DatasetError, match=r"set data\.exclude to a text file"):
        read_dataset(recipe, 8)
    with pytest.raises(RecipeError, match=r"data\.exclude"):
        recipe_with("", "data.exclude=3")
