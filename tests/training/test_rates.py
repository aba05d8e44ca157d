"""Learning rates as options say them: those of all that is trained, and what Prodigy refuses of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from ready import prepared
from tiny import recipe_text

from lora_studio.errors import RecipeError
from lora_studio.families.loading import load_base
from lora_studio.recipe import Recipe
from lora_studio.recipe.load import load_recipe
from lora_studio.training.prepare.base_model import plan_adapters
from lora_studio.training.prepare.checks import used_rates

PRODIGY = ("training.optimizer=prodigy", "training.lr_schedule=constant")
ONE = (*PRODIGY, "training.learning_rate=1")
ALONE = ("adapter.kind=none", "adapter.rank=16", "adapter.alpha=16", "training.learning_rate=1e-4")


def token(*rate: str) -> str:
    return f'tokens=[{{ token = "zwx", start = "red ball"{"".join(rate)} }}]'


@pytest.fixture
def recipe_of(tmp_path: Path, base_of: Callable[[str], Path], images: Path) -> Callable[..., Recipe]:
    def made(*changes: str, name: str = "sd15") -> Recipe:
        path = tmp_path / "tiny.toml"
        path.write_text(recipe_text(images, str(base_of(name))), "utf-8")
        return load_recipe(path, changes=changes)

    return made


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ((), "sd15"),
        (("adapter.text_encoder=true", "adapter.lora_plus_ratio=4", token()), "sdxl"),
        (("adapter.kind=loha", "adapter.lora_plus_ratio=8"), "sd15"),
        (("adapter.kind=oft", "adapter.rank=4", "adapter.blocks=style"), "sdxl"),
        (('adapter.layers=[{ pattern = "*", learning_rate = 3e-4 }]',), "sd15"),
        (
            (
                "adapter.text_encoder=true",
                'adapter.layers=[{ pattern = "*attn2*", learning_rate = 3e-4 }, '
                '{ pattern = "text_encoder.*", train = false }]',
            ),
            "sd15",
        ),
        (
            ("adapter.text_encoder=true", 'adapter.layers=[{ pattern = "*.bias", learning_rate = 2e-5 }]'),
            "full",
        ),
        ((*ALONE, token(", learning_rate = 1e-3")), "sd15"),
    ],
)
def test_the_rates_that_options_say_are_those_of_the_optimizer(
    changes: tuple[str, ...], name: str, recipe_of: Callable[..., Recipe], tmp_path: Path
) -> None:
    recipe = recipe_of(*changes, name="sd15" if name == "full" else name)
    if name == "full":
        values = recipe.model_dump(exclude={"adapter": {"rank", "alpha"}}, exclude_unset=True)
        values["adapter"]["kind"] = "full"
        recipe = Recipe.model_validate(values)
    groups = prepared(recipe, tmp_path / "run").loop.state.optimizer.param_groups
    base = load_base(recipe.base.model)
    rates = used_rates(recipe, plan_adapters(recipe, base), base)
    assert set(rates.values()) == {group["lr"] for group in groups}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (PRODIGY, "training.learning_rate is 0.001, but 'prodigy' finds its own rate"),
        (
            (*PRODIGY, *ALONE, token()),
            "tokens.learning_rate of 'zwx' is 0.0005, but 'prodigy' finds its own rate",
        ),
        (
            (*ONE, 'adapter.layers=[{ pattern = "*", learning_rate = 1e-4 }]'),
            "adapter.layers.learning_rate of '*' is 0.0001, but 'prodigy' finds its own rate",
        ),
        (
            (*ONE, "adapter.text_encoder=true", token()),
            "factors on it: training.learning_rate is 1, training.text_encoder_learning_rate is 1e-05, "
            "tokens.learning_rate of 'zwx' is 0.0005; set each of these options to 1.",
        ),
        (
            (*ONE, "adapter.lora_plus_ratio=4"),
            "training.learning_rate is 1, training.learning_rate times adapter.lora_plus_ratio is 4; set",
        ),
        (
            (*ONE, 'adapter.layers=[{ pattern = "*attn2*", learning_rate = 0.5 }]'),
            "training.learning_rate is 1, adapter.layers.learning_rate of '*attn2*' is 0.5; set each",
        ),
    ],
)
def test_what_prodigy_cannot_take_is_refused_before_an_image_is_read(
    changes: tuple[str, ...], words: str, recipe_of: Callable[..., Recipe], tmp_path: Path
) -> None:
    pytest.importorskip("prodigyopt")
    with pytest.raises(RecipeError) as caught:
        prepared(recipe_of(*changes), tmp_path / "run")
    assert words in str(caught.value)
    assert not (tmp_path / "run" / "manifest.jsonl").exists()


@pytest.mark.parametrize(
    "changes",
    [
        (*PRODIGY, *ALONE, token(", learning_rate = 1")),
        (*PRODIGY, 'adapter.layers=[{ pattern = "*", learning_rate = 1 }]'),
        (*PRODIGY, "training.learning_rate=0.5", "adapter.layers=[{pattern='*attn2*',learning_rate=0.5}]"),
    ],
)
def test_rates_that_nothing_is_trained_with_need_not_suit_prodigy(
    changes: tuple[str, ...], recipe_of: Callable[..., Recipe], tmp_path: Path
) -> None:
    pytest.importorskip("prodigyopt")
    session = prepared(recipe_of(*changes), tmp_path / "run")
    assert len({group["lr"] for group in session.loop.state.optimizer.param_groups}) == 1
