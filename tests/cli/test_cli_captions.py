"""The verbs about captions, as a user calls them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from console import run
from PIL import Image


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two images, one with a caption by hand."""
    folder = tmp_path / "my images"
    folder.mkdir()
    Image.new("RGB", (40, 30), "red").save(folder / "red_ball.png")
    Image.new("RGB", (40, 30), "blue").save(folder / "blue_cat.png")
    (folder / "red_ball.txt").write_text("my own [bold] words", "utf-8")
    return folder


def test_captions_are_written_shown_and_counted(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(["caption", str(folder), "--with", "filename", "--trigger", "zwx"], capsys)
    assert code == 0 and "blue_cat.png: zwx, blue cat" in out
    assert "1 caption written" in out and "1 caption written by hand is kept; --overwrite replaces it" in out
    assert (folder / "blue_cat.txt").read_text() == "zwx, blue cat\n"


def test_overwriting_shows_both_captions_and_where_the_old_one_is(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = run(["caption", str(folder), "--with", "filename", "--overwrite"], capsys)
    assert code == 0 and "- my own [bold] words" in out and "+ red ball" in out
    (kept,) = folder.glob(".lora-studio-backup/*/red_ball.txt")
    assert kept.read_text() == "my own [bold] words" and str(kept.parent) in out


def test_a_dry_run_says_so(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(["caption", str(folder), "--with", "filename", "--dry-run"], capsys)
    assert code == 0 and "1 caption would be written" in out
    assert not (folder / "blue_cat.txt").exists()


def test_an_image_that_still_has_no_caption_is_exit_1(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.new("RGB", (40, 30), "white").save(folder / "IMG_1234.png")
    code, out, _ = run(["caption", str(folder), "--with", "filename"], capsys)
    assert code == 1 and "no caption for IMG_1234.png: its name does not say what is in it" in out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--with", "filname"], "unknown captioner 'filname'; did you mean 'filename'?"),
        (["--with", "sidecar"], "sidecar only reads the captions that are there"),
        (["--with", "filename", "--model", "x"], "filename does nothing with --model; leave it out"),
        (["--with", "template"], '"a photo of {trigger} {class}" holds {trigger}, so say what'),
        (["--with", "filename", "--suffix", "{trigger}"], "--trigger WORDS"),
        (["--with", "filename", "--threshold", "general=2"], "a number from 0 to 1"),
        (["--with", "filename", "--threshold", "high"], "CATEGORY=NUMBER"),
    ],
)
def test_a_mistake_is_one_sentence_and_exit_2(
    arguments: list[str], words: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = run(["caption", str(folder), *arguments], capsys)
    assert code == 2 and words in err and "Traceback" not in err
    assert not list(folder.glob("blue*.txt"))


def test_a_model_is_named_and_a_download_is_announced(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = run(["caption", str(folder), "--with", "blip", "--model", "nobody/nothing"], capsys)
    assert code == 2 and "blip with the model nobody/nothing, which is downloaded" in out
    assert "the model nobody/nothing cannot be loaded" in err and "Traceback" not in err


@pytest.mark.parametrize("name", ["missing", "a_file"])
def test_a_folder_that_is_none_is_one_sentence(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a_file").touch()
    code, _, err = run(["caption", str(tmp_path / name), "--with", "filename"], capsys)
    assert code == 2 and "there is no folder" in err and name in err


def test_captions_are_counted_for_people_and_as_json(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = run(["captions", str(folder), "--trigger", "zwx", "--base", "pocket"], capsys)
    assert code == 0 and "1 of 2 images have a caption: 1 by hand" in out
    assert "without a caption: blue_cat.png" in out and '"zwx" is in 0 of 1' in out
    assert "bold 1" in out and "tokens (tokenizer, " in out
    code, out, _ = run(["captions", str(folder), "--json"], capsys)
    assert code == 0 and json.loads(out)["without"] == ["blue_cat.png"]


def test_find_and_replace_is_shown_first_and_written_when_asked(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = run(["captions", str(folder), "--find", "bold"], capsys)
    assert code == 0 and "red_ball.txt: my own [bold] words" in out and "found in 1 caption\n" in out
    arguments = ["captions", str(folder), "--find", "bold", "--replace", "shy"]
    code, out, _ = run(arguments, capsys)
    assert code == 0 and "+ my own [shy] words" in out and "1 caption would change; --write" in out
    assert (folder / "red_ball.txt").read_text() == "my own [bold] words"
    code, out, _ = run([*arguments, "--write"], capsys)
    assert code == 0 and "1 caption changed" in out and ".lora-studio-backup" in out
    assert (folder / "red_ball.txt").read_text() == "my own [shy] words"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--replace", "x"], "need --find"),
        (["--find", "x", "--write"], "--write needs --replace"),
        (["--find", "("], "found in 0 captions"),
        (["--find", "(", "--regex"], "no regular expression"),
        (["--base", "/nowhere"], "there is no base model at '/nowhere'"),
    ],
)
def test_a_mistake_in_captions_is_one_sentence(
    arguments: list[str], words: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = run(["captions", str(folder), *arguments], capsys)
    assert code == (0 if "found" in words else 2) and words in out + err and "Traceback" not in err


def test_subfolders_are_looked_into_if_asked_for_and_named(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "more").mkdir()
    Image.new("RGB", (40, 30), "green").save(folder / "more" / "green_tree.png")
    code, out, _ = run(["caption", str(folder), "--with", "filename"], capsys)
    assert code == 0 and "1 caption written" in out and "green" not in out
    code, out, _ = run(["caption", str(folder), "--with", "filename", "--recursive"], capsys)
    assert code == 0 and "more/green_tree.png: green tree" in out
    assert (folder / "more" / "green_tree.txt").read_text() == "green tree\n"
    code, out, _ = run(["captions", str(folder), "--recursive"], capsys)
    assert code == 0 and "3 of 3 images have a caption" in out
    change = ["--recursive", "--find", "tree", "--replace", "bush", "--write"]
    code, out, _ = run(["captions", str(folder), *change], capsys)
    assert code == 0 and "more/green_tree.txt" in out
    assert (folder / "more" / "green_tree.txt").read_text() == "green bush\n"
    (kept,) = folder.glob(".lora-studio-backup/*/more/green_tree.txt")
    assert kept.read_text() == "green tree\n"
    code, out, _ = run(["captions", str(folder), "--recursive"], capsys)
    assert "3 of 3" in out, "the backup holds no images and is not looked into"


@pytest.fixture
def recipe(folder: Path) -> Path:
    """A subject's recipe beside the images."""
    text = 'name = "x"\nbase.model = "pocket"\n[data]\nimages = "my images"\ntrigger = "Bella cat"\n'
    path = folder.parent / "x.toml"
    path.write_text(text + 'class_words = "cat"\nresolution = 64\n', "utf-8")
    return path


def test_without_a_captioner_one_that_needs_no_download_is_taken_and_said(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = run(["caption", str(folder)], capsys)
    assert code == 0 and "(--with filename), which needs no download; blip, florence" in out
    assert (folder / "blue_cat.txt").read_text() == "blue cat\n"


def test_a_recipe_says_folder_trigger_and_class(
    folder: Path, recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = run(["caption", str(recipe)], capsys)
    assert code == 0 and "one sentence for all images (--with template), which needs no download" in out
    assert (folder / "blue_cat.txt").read_text() == "a photo of Bella cat\n"
    assert (folder / "red_ball.txt").read_text() == "my own [bold] words"
    code, out, _ = run(["captions", str(recipe)], capsys)
    assert code == 0 and '"Bella cat" is in 1 of 2' in out and "tokens (tokenizer, 32 fit)" in out
    code, out, _ = run(["captions", str(recipe), "--find", "Bella"], capsys)
    assert code == 0 and "found in 1 caption\n" in out


def test_what_the_command_says_wins_over_the_recipe(
    folder: Path, recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, _ = run(
        ["caption", str(recipe), "--trigger", "zwx", "--class-word", "dog", "--with", "template"], capsys
    )
    assert code == 0 and (folder / "blue_cat.txt").read_text() == "a photo of zwx dog\n"


def test_a_recipe_of_several_folders_captions_each_with_its_own_words(
    folder: Path, recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = folder.parent / "other"
    other.mkdir()
    Image.new("RGB", (40, 30), "green").save(other / "a_tree.png")
    sources = '[[data.sources]]\nimages = "my images"\n[[data.sources]]\nimages = "other"\n'
    sources += 'trigger = "vkq"\nclass_words = ""\n[[data.sources]]\nimages = "my images"\nrole = "prior"\n'
    text = recipe.read_text("utf-8").replace('images = "my images"\n', "")
    recipe.write_text(text + sources, "utf-8")
    code, out, _ = run(["caption", str(recipe)], capsys)
    assert code == 0 and out.count("my images:") == 1 and "other:" in out
    assert (other / "a_tree.txt").read_text() == "vkq, a tree\n"
    code, out, _ = run(["captions", str(recipe), "--json"], capsys)
    assert code == 0 and [one["images"] for one in json.loads(out)] == [2, 1]


def test_a_recipe_whose_base_is_not_here_has_its_words_counted(
    recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe.write_text(recipe.read_text("utf-8").replace('"pocket"', '"nobody/nothing"'), "utf-8")
    code, out, err = run(["captions", str(recipe)], capsys)
    assert code == 0 and "1 of 2 images have a caption" in out and "tokens are not counted: " in err


def test_a_recipe_with_a_mistake_is_one_sentence(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe.write_text(recipe.read_text("utf-8") + "repeat = 2\n", "utf-8")
    for verb in ("caption", "captions"):
        code, _, err = run([verb, str(recipe)], capsys)
        assert code == 2 and "repeat" in err and "Traceback" not in err
