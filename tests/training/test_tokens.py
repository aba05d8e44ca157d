"""[[tokens]] through a whole run: alone and beside a LoRA, refused, stopped, resumed, verified."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny import recipe_text

from lora_studio.recipe import load_recipe
from lora_studio.training.session import Finished, train

TOKENS = '[[tokens]]\ntoken = "zwx"\nstart = "red ball"\n'
KEYS = {"sd15": {"emb_params"}, "sd2": {"emb_params"}, "sdxl": {"clip_l", "clip_g"}}


@pytest.mark.parametrize("kind", ["none", "lora"])
@pytest.mark.parametrize("name", ["sd15", "sd2", "sdxl"])
def test_a_run_ends_with_a_verified_embedding(
    name: str, kind: str, base_of: Callable[[str], Path], pictures: Path, tmp_path: Path
) -> None:
    text = recipe_text(pictures, str(base_of(name)), steps=3, extra=TOKENS)
    if kind == "none":
        text = text.replace("rank = 4\nalpha = 4", 'kind = "none"')
    (tmp_path / "tiny.toml").write_text(text, "utf-8")
    result = train(load_recipe(tmp_path / "tiny.toml"), tmp_path / "run")
    assert isinstance(result, Finished) and result.report.whole
    print(result.report.checks)
    assert load_file(result.embeddings["zwx"]).keys() == KEYS[name]
    assert (result.lora_file is None) == (kind == "none")
