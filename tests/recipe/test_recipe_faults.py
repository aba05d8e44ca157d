"""What a recipe's faults say: other trainers' words, patterns, and where paths are looked for."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from lora_studio.errors import RecipeError
from lora_studio.recipe import Recipe, options
from lora_studio.recipe.load import load_recipe, names_elsewhere

GOOD = 'name = "a"\n[base]\nmodel = "pocket"\n[data]\nimages = "images"\n'


def written(folder: Path, text: str) -> Path:
    path = folder / "recipe.toml"
    path.write_text(text, "utf-8")
    return path


def refusal(folder: Path, text: str) -> str:
    with pytest.raises(RecipeError) as caught:
        load_recipe(written(folder, text))
    return str(caught.value)


def test_every_word_of_other_trainers_leads_to_an_option_and_is_none_itself() -> None:
    known = {name for name, _ in options()}
    for word, option in names_elsewhere().items():
        assert option in known, word
        assert option.rpartition(".")[2] != word


def test_another_trainers_word_is_answered_with_ours(tmp_path: Path) -> None:
    said = refusal(tmp_path, GOOD + "[adapter]\nnetwork_dim = 8\nnetwork_alpha = 4\n")
    assert "unknown key adapter.network_dim; here it is adapter.rank" in said
    assert "unknown key adapter.network_alpha; here it is adapter.alpha." in said
    assert said.count("known here:") == 1  # once a table
    said = refusal(tmp_path, GOOD + "[training]\nmax_train_epochs = 8\n")
    assert "unknown key training.max_train_epochs; here it is training.epochs" in said
    said = refusal(tmp_path, GOOD + "[training]\ngradient_accumulation_steps = 8\n")
    assert "here it is training.gradient_accumulation" in said


def test_a_name_that_does_not_fit_says_what_does(tmp_path: Path) -> None:
    said = refusal(tmp_path, GOOD.replace('"a"', '"my style"'))
    assert (
        "name is 'my style'; it must be 1 to 64 letters, digits, dots, _ and - (names the run folder" in said
    )


def test_a_windows_path_in_double_quotes_is_told_from_other_mistakes(tmp_path: Path) -> None:
    said = refusal(tmp_path, GOOD.replace('"pocket"', r'"C:\models\x.safetensors"'))
    assert said.endswith("write paths with / or in 'single quotes'.")
    assert "single quotes" not in refusal(tmp_path, "name = ")


def base(folder: Path, model: str) -> str:
    return load_recipe(written(folder, GOOD.replace("pocket", model))).base.model


def test_a_base_is_looked_for_beside_the_recipe_then_where_one_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    beside, here = tmp_path / "beside", tmp_path / "here"
    for folder in (beside, here):
        (folder / "own").mkdir(parents=True)
    (here / "other").mkdir()
    (beside / "pocket").mkdir()
    monkeypatch.chdir(here)
    assert base(beside, "own") == str(beside / "own")
    assert base(beside, "other") == str(here / "other")
    assert base(beside, "gone.safetensors") == str(beside / "gone.safetensors")
    assert base(beside, "somebody/a-model") == "somebody/a-model"
    assert base(beside, "pocket") == "pocket"  # the one in the package, whatever lies there


def test_a_run_of_a_base_beside_the_recipe_is_read_again_from_its_folder(tmp_path: Path) -> None:
    (tmp_path / "own").mkdir()
    recipe = load_recipe(written(tmp_path, GOOD.replace("pocket", "own")))
    moved = tmp_path / "runs"
    moved.mkdir()
    shutil.copy(tmp_path / "recipe.toml", moved)
    stored = written(moved, GOOD.replace("pocket", recipe.base.model))
    assert load_recipe(stored).base == recipe.base


@pytest.mark.parametrize("key", ["images", "masks", "exclude"])
def test_the_home_folder_may_be_written_as_a_tilde(
    key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "me"))
    monkeypatch.setenv("USERPROFILE", str(tmp_path / "me"))
    values = {"images": "images"} | {key: "~/there"}
    text = 'name = "a"\n[base]\nmodel = "pocket"\n[data]\n'
    recipe: Recipe = load_recipe(
        written(tmp_path, text + "".join(f'{name} = "{value}"\n' for name, value in values.items()))
    )
    assert getattr(recipe.data, key) == tmp_path / "me" / "there"


def test_nobodys_home_folder_is_one_sentence(tmp_path: Path) -> None:
    said = refusal(tmp_path, GOOD.replace('"images"', '"~nobody-at-all/images"'))
    assert "no user of that name has a home folder" in said
