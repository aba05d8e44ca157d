"""A file that a step or two have hardly changed is what was trained, but for the digits of its dtype."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny import recipe_text

from lora_studio.recipe.load import load_recipe
from lora_studio.training.finish import Finished
from lora_studio.training.session import train
from lora_studio.verify.trained import TOLERANCE

TOKEN = '[[tokens]]\ntoken = "zwx"\nstart = "robot"\n[export]\ndtype = "{}"\n'


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_a_learned_word_of_one_step_is_no_fault(
    tmp_path: Path, images: Path, tiny_base: Path, dtype: str
) -> None:
    """Rounding moves the word by a share of what it is, and one step by less."""
    text = recipe_text(images, str(tiny_base), steps=1, extra=TOKEN.format(dtype))
    (tmp_path / "r.toml").write_text(text.replace("learning_rate = 1e-3\nwarmup_steps = 1", ""), "utf-8")
    result = train(load_recipe(tmp_path / "r.toml"), tmp_path / "run")
    assert isinstance(result, Finished) and result.report.ok
    assert result.report.checks["probe_difference_share"] > TOLERANCE  # so that the floor decides
