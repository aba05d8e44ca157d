"""Training on a base in a single file, from the recipe to the verified LoRA."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from original_layout import random_original
from safetensors.torch import save_file
from tiny import recipe_text

from lora_studio.errors import BaseModelError
from lora_studio.recipe.load import load_recipe
from lora_studio.training.events import TrainingPlan
from lora_studio.training.finish import Finished
from lora_studio.training.prepare.base_model import base_of
from lora_studio.training.session import train


@pytest.fixture(scope="module")
def tensors() -> dict[str, torch.Tensor]:
    """What the file of a miniature holds; its probe has a sixteenth of the usual attention."""
    return random_original("sd15", vae_levels=5)[1] | {"model_ema.decay": torch.zeros(1)}


def recipe(folder: Path, base: Path, images: Path, extra: str = ""):
    text = recipe_text(images, str(base), steps=2)
    (folder / "recipe.toml").write_text(text.replace("[data]", f"{extra}\n[data]"), "utf-8")
    return load_recipe(folder / "recipe.toml")


def test_a_recipe_trains_on_a_single_file_and_its_plan_says_how_it_was_read(tensors, images, tmp_path):
    path = tmp_path / "Ünïcödé base.safetensors"
    save_file(tensors, path)
    heard = []
    # at 64 pixels the middle block attends to one token: its gradients are too small for half precision
    wide = recipe(tmp_path, path, images, '[export]\ndtype = "float32"')
    result = train(wide, tmp_path / "run", on_event=heard.append)
    assert isinstance(result, Finished)
    assert json.loads((result.folder / "verify.json").read_text())["whole"] is True
    (plan,) = [event for event in heard if isinstance(event, TrainingPlan)]
    notes = [text for _, text in plan.rows]
    assert "Stable Diffusion 1.x, predicts epsilon (Stable Diffusion 1.x usually does)" in notes
    assert "left out: 1 averaged (EMA) weight (model_ema.decay)" in notes


def test_a_recipe_allows_a_ckpt_and_names_a_tokenizer(tensors, images, tmp_path):
    path = tmp_path / "base.ckpt"
    torch.save({"state_dict": tensors}, path)
    with pytest.raises(BaseModelError, match=r"set base\.allow_pickle = true"):
        base_of(recipe(tmp_path, path, images), weights=False)
    allowed = recipe(tmp_path, path, images, "allow_pickle = true")
    base_of(allowed, weights=False).tokenizers["tokenizer"].save_pretrained(tmp_path / "own")
    words = f'allow_pickle = true\ntokenizer = "{tmp_path / "own"}"'
    family = base_of(recipe(tmp_path, path, images, words), weights=False)
    assert len(family.tokenizers["tokenizer"]) == 49408
    with pytest.raises(BaseModelError, match=r"has no vocab\.json and no merges\.txt"):
        base_of(recipe(tmp_path, path, images, words.replace("own", "none")), weights=False)
