"""A regularization image is taken from the cache only if the very same base drew it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL
from tiny import image_folder, recipe_text

from lora_studio.recipe.load import load_recipe
from lora_studio.training.events import ignore_events
from lora_studio.training.finish import Finished
from lora_studio.training.prepare.regularization_images import draw_ahead

ONE = ("data.regularization_images.count=1", "data.regularization_images.steps=1", "data.class_words=thing")


@pytest.fixture
def recipe_path(tmp_path: Path, tiny_base: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Of a base whose scheduler does not say what it predicts; and a cache that holds nothing yet."""
    monkeypatch.setenv("LORA_STUDIO_CACHE", str(tmp_path / "cache"))
    shutil.copytree(tiny_base, tmp_path / "base")
    edit_scheduler(tmp_path, prediction_type=None)
    image_folder(tmp_path / "images")
    path = tmp_path / "recipe.toml"
    path.write_text(recipe_text(tmp_path / "images", str(tmp_path / "base")), "utf-8")
    return path


def edit_scheduler(folder: Path, **values: object) -> None:
    """Set values of its configuration; None takes one out."""
    path = folder / "base" / "scheduler" / "scheduler_config.json"
    config = json.loads(path.read_text("utf-8")) | values
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not None}), "utf-8")


def draw(recipe_path: Path, *changes: str) -> tuple[str, int]:
    """The image's hash, and how many were drawn now."""
    drawing = draw_ahead(load_recipe(recipe_path, changes=(*ONE, *changes)), ignore_events)
    return drawing.records[0].sha256, drawing.drawn


def is_drawn_anew(recipe_path: Path, before: str, *changes: str) -> bool:
    """Whether there now is another image, drawn now."""
    digest, drawn = draw(recipe_path, *changes)
    return drawn == 1 and digest != before


def test_a_corrected_prediction_draws_anew(recipe_path: Path) -> None:
    wrong, drawn = draw(recipe_path)
    assert drawn == 1 and draw(recipe_path) == (wrong, 0)
    assert is_drawn_anew(recipe_path, wrong, "base.prediction_type=v_prediction")
    # What is said is what was meant where nothing was said.
    assert draw(recipe_path, "base.prediction_type=epsilon") == (wrong, 0)


@pytest.mark.parametrize("values", [{"beta_end": 0.02}, {"beta_schedule": "linear"}])
def test_another_noise_schedule_draws_anew(
    recipe_path: Path, tmp_path: Path, values: dict[str, object]
) -> None:
    before, _ = draw(recipe_path)
    edit_scheduler(tmp_path, **values)
    assert is_drawn_anew(recipe_path, before)


def test_zero_terminal_snr_draws_anew(recipe_path: Path, tmp_path: Path) -> None:
    before, _ = draw(recipe_path, "base.prediction_type=v_prediction")
    edit_scheduler(tmp_path, rescale_betas_zero_snr=True)
    assert is_drawn_anew(recipe_path, before, "base.prediction_type=v_prediction")


def test_fewer_bits_draw_anew(recipe_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    rounded, _ = draw(recipe_path, "base.quantize=bnb_nf4")
    assert is_drawn_anew(recipe_path, rounded)
    assert draw(recipe_path, "base.quantize=bnb_nf4") == (rounded, 0)


def test_merged_loras_and_another_vae_draw_anew(
    recipe_path: Path, tmp_path: Path, tiny_base: Path, finished: Finished
) -> None:
    before, _ = draw(recipe_path)
    merged = f'base.loras=[{{file="{finished.lora_file}", strength=5.0}}]'
    assert is_drawn_anew(recipe_path, before, merged)
    vae = AutoencoderKL.from_pretrained(tiny_base / "vae")
    with torch.no_grad():
        vae.decoder.conv_out.bias += 0.5
    vae.save_pretrained(tmp_path / "vae")
    assert is_drawn_anew(recipe_path, before, f"base.vae={tmp_path / 'vae'}")


def test_a_tokenizer_that_fills_up_with_another_token_draws_anew(recipe_path: Path, tmp_path: Path) -> None:
    before, _ = draw(recipe_path)
    path = tmp_path / "base" / "tokenizer" / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | {"pad_token": "!"}), "utf-8")
    assert is_drawn_anew(recipe_path, before)
