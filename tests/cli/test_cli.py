"""The command line: quick to answer, and one sentence for a mistake."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from console import run
from lora_files import write_random_lora
from tiny import recipe_text

LOOK = (
    "import sys; from lora_studio import cli; "
    "code = cli.guarded(lambda: cli.app(['--help'], standalone_mode=False)); "
)
HEAVY = {"torch", "diffusers", "transformers", "peft", "numpy", "PIL"}


def test_help_answers_without_the_heavy_libraries() -> None:
    script = LOOK + f"print('loaded:', sorted({HEAVY!r} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "Usage" in result.stdout and "train" in result.stdout and "verify" in result.stdout
    assert result.stdout.rstrip().endswith("loaded: []")


def recipe_in(folder: Path, text: str) -> str:
    (folder / "recipe.toml").write_text(text, "utf-8")
    return str(folder / "recipe.toml")


def test_a_wrong_key_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = recipe_in(tmp_path, recipe_text(tmp_path, "pocket", extra="leraning_rate = 1"))
    code, _, err = run(["train", recipe], capsys)
    assert code == 2 and "unknown key training.leraning_rate; did you mean 'learning_rate'?" in err


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda folder: None, "does not exist|no folder|there is no"),
        (lambda folder: folder.mkdir(), "empty|no images|no usable|holds no"),
        (lambda folder: (folder.mkdir(), (folder / "a.jpg").write_text("<html>")), "a.jpg"),
        (lambda folder: (folder.mkdir(), _image(folder / "a.png")), "caption"),
    ],
    ids=["missing", "empty", "unreadable", "without captions"],
)
def test_a_folder_that_cannot_be_trained_on_is_one_sentence(
    make, words: str, tmp_path: Path, tiny_base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import re

    images = tmp_path / "images"
    make(images)
    recipe = recipe_in(tmp_path, recipe_text(images, str(tiny_base)))
    code, _, err = run(["train", recipe, "--out", str(tmp_path / "run")], capsys)
    assert code == 2 and re.search(words, err, re.IGNORECASE), err
    assert "Traceback" not in err and ("images" in err or "a.png" in err)


def _image(path: Path) -> None:
    from PIL import Image

    Image.new("RGB", (64, 64)).save(path)


def test_a_base_that_is_not_there_is_one_sentence(
    tmp_path: Path, images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = recipe_in(tmp_path, recipe_text(images, "/nowhere/base"))
    code, _, err = run(["train", recipe, "--out", str(tmp_path / "run")], capsys)
    assert code == 2 and "there is no base model at '/nowhere/base'" in err and "Traceback" not in err


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("training.optimizer=adamv", "unknown optimizer 'adamv'; did you mean 'adamw'?"),
        ("training.lr_schedule=cosin", "did you mean 'cosine'?"),
        ("machine.device=cuda:99", "which this machine does not have"),
        ("adapter.kind=lara", "did you mean 'lora'?"),
    ],
)
def test_names_that_no_table_knows_are_refused_with_a_suggestion(
    change: str,
    words: str,
    tmp_path: Path,
    images: Path,
    tiny_base: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    recipe = recipe_in(tmp_path, recipe_text(images, str(tiny_base)))
    code, _, err = run(["train", recipe, "--out", str(tmp_path / "run"), "--set", change], capsys)
    assert code == 2 and words in err


def test_verify_exits_0_1_and_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import torch
    from safetensors.torch import save_file

    name = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k"
    whole = {f"{name}.lora_down.weight": torch.ones(2, 4), f"{name}.lora_up.weight": torch.ones(4, 2)}
    whole[f"{name}.alpha"] = torch.tensor(2.0)
    save_file(whole, tmp_path / "whole.safetensors")
    save_file(whole | {f"{name}.lora_up.weight": torch.zeros(4, 2)}, tmp_path / "zero.safetensors")
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "whole.safetensors").read_bytes()[:-9])
    codes = [
        run(["verify", str(tmp_path / f"{n}.safetensors")], capsys)[0]
        for n in ("whole", "zero", "cut", "none")
    ]
    assert codes == [0, 1, 1, 2]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["train", "x.toml", "--set", "steps=100"], "unknown key steps; here it is training.steps"),
        (
            ["train", "x.toml", "--steps", "100"],
            "--steps is an option of the recipe: write --set training.steps=",
        ),
        (["plan", "x.toml", "--rank=4"], "write --set adapter.rank=VALUE"),
        (["train", "x.toml", "--network_dim", "4"], "write --set adapter.rank=VALUE"),
        (["demo", "--batch-size", "4"], "write --set training.batch_size=VALUE"),
        (
            ["init", "sd15_style", "--epochs", "3"],
            "--epochs is an option of the recipe: set training.epochs there",
        ),
    ],
)
def test_an_option_of_the_recipe_is_shown_where_it_belongs(
    words: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.toml").write_text(recipe_text(tmp_path, "pocket"), "utf-8")
    code, _, err = run(words, capsys)
    assert code == 2 and said in err


@pytest.mark.parametrize(
    "words", [["train", "x.toml", "--resum"], ["train", "x.toml", "--out"], ["train", "--zz"]]
)
def test_other_options_are_refused_as_ever(words: list[str], capsys) -> None:
    code, _, err = run(words, capsys)
    assert code == 2 and "option of the recipe" not in err and "--" in err


def test_verify_says_first_what_the_file_is_good_for(tmp_path: Path, capsys) -> None:
    write_random_lora(tmp_path / "a.safetensors", seed=0)
    code, out, _ = run(["verify", str(tmp_path / "a.safetensors")], capsys)
    lines = out.splitlines()
    assert code == 0 and lines[0] == "a.safetensors: valid" and lines[1].startswith("  made for: ")
    assert lines.index("measured") > next(place for place, line in enumerate(lines) if "kohya" in line)
