"""All that is wrong with a recipe is said at once, before an image or the base's weights are read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ready import prepared
from tiny import recipe_text

from lora_studio.errors import BaseModelError, RecipeError
from lora_studio.recipe import Recipe
from lora_studio.recipe.load import load_recipe
from lora_studio.training.prepare import base_model
from lora_studio.training.prepare.base_model import plan_adapters
from lora_studio.training.prepare.checks import check_recipe
from lora_studio.training.session import train


@pytest.fixture
def recipe_of(tmp_path: Path, tiny_base: Path, images: Path) -> Callable[..., Recipe]:
    def made(*changes: str) -> Recipe:
        (tmp_path / "tiny.toml").write_text(recipe_text(images, str(tiny_base)), "utf-8")
        return load_recipe(tmp_path / "tiny.toml", changes=changes)

    return made


WRONG = {
    "data.captioner=sidecars": "unknown captioner 'sidecars'",
    "training.optimizer_options={ beta = 1 }": "has 'beta', which 'adamw' does not know",
    "training.lr_schedule=cosin": "unknown schedule 'cosin'",
    "training.warmup_steps=4": "training.warmup_steps is 4, but there are only 4 steps",
    'tracking.to=["wandbe"]': "unknown tracker 'wandbe'",
    "machine.device=cuda:99": "machine.device is 'cuda:99', which this machine does not have",
    "adapter.init_from=absent.safetensors": "absent.safetensors, but there is no such file",
    'base.loras=[{ file = "gone.safetensors" }]': "gone.safetensors, but there is no such file",
    "adapter.blocks=middle": "adapter.blocks is 'middle'; for this base it may be 'all'",
    "adapter.conv_rank=2": "adapter.conv_rank and adapter.conv_alpha are of convolutions",
    'adapter.layers=[{ pattern = "*none*", rank = 2 }]': "the pattern '*none*' matches none of the",
    'tokens=[{ token = "red", start = "robot" }]': "tokens.token 'red' is one token of this base",
}


def test_a_recipe_with_a_fault_of_every_kind_is_refused_once_with_all_of_them(
    recipe_of: Callable[..., Recipe], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[bool] = []

    def load_base(model: str, *, weights: bool = True, **how: Any) -> object:
        asked.append(weights)
        return plain(model, weights=weights, **how)

    plain = base_model.load_base
    monkeypatch.setattr("lora_studio.training.prepare.base_model.load_base", load_base)
    with pytest.raises(RecipeError) as caught:
        train(recipe_of(*WRONG), tmp_path / "run")
    said = str(caught.value)
    assert [words for words in WRONG.values() if words not in said] == []
    assert len(said.splitlines()) == len(WRONG)
    assert asked == [False]  # the base's weights were not read
    assert not (tmp_path / "run" / "manifest.jsonl").exists()


def test_each_fault_alone_is_one_line(recipe_of: Callable[..., Recipe]) -> None:
    for change, words in WRONG.items():
        with pytest.raises(RecipeError) as caught:
            check_recipe(recipe_of(change))
        assert words in str(caught.value) and len(str(caught.value).splitlines()) == 1, change


def test_a_base_that_is_not_there_is_among_the_faults(recipe_of: Callable[..., Recipe]) -> None:
    missing = "base.model=./no_such_base"
    with pytest.raises(BaseModelError, match="no_such_base"):
        check_recipe(recipe_of(missing))
    with pytest.raises(RecipeError, match=r"(?s)unknown schedule 'cosin'.*no_such_base"):
        check_recipe(recipe_of(missing, "training.lr_schedule=cosin"))


def test_a_resume_is_refused_for_its_recipe_and_everything_else_at_once(
    recipe_of: Callable[..., Recipe], tmp_path: Path
) -> None:
    train(recipe_of(), tmp_path / "run")
    wrong = recipe_of("training.seed=9", 'tracking.to=["wandbe"]', "adapter.blocks=middle")
    with pytest.raises(RecipeError) as caught:
        train(wrong, tmp_path / "run", resume=True)
    for words in ("training.seed: 1 -> 9", "unknown tracker 'wandbe'", "adapter.blocks is 'middle'"):
        assert words in str(caught.value)


def test_the_layers_that_are_planned_are_those_that_learn_and_are_chosen_once(
    recipe_of: Callable[..., Recipe], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lora_studio.training.prepare import base_model as adapters

    chosen = []

    def choose(*arguments: object, **named: object) -> object:
        chosen.append(plain(*arguments, **named))  # type: ignore[arg-type]
        return chosen[-1]

    plain = adapters.choose_layers
    monkeypatch.setattr(adapters, "choose_layers", choose)
    layers = '[{ pattern = "*attn2*", rank = 2 }, { pattern = "*to_v*", train = false }]'
    recipe = recipe_of("adapter.text_encoder=true", f"adapter.layers={layers}")
    session = prepared(recipe, tmp_path / "run")
    assert len(chosen) == 1
    fresh = base_model.base_of(recipe, weights=False)
    planned = {
        f"{part}.{fresh.canonical_path(part, path)}": one.rank
        for (part, path), one in plan_adapters(recipe, fresh).chosen.layers.items()
    }
    assert {layer.name: layer.rank for layer in session.adapters.layers} == planned
    assert {2, recipe.adapter.rank} == set(planned.values())
