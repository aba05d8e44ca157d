"""The comparison of methods: its recipes load, and its table and plot say what its pieces say."""

from __future__ import annotations

import io
from pathlib import Path

import methods
import numpy as np
import pytest
from methods import METHODS, Piece, markdown, plot
from PIL import Image

from lora_studio.adapters import ADAPTERS
from lora_studio.recipe import load_recipe
from lora_studio.recipe_tokens import NO_ADAPTER
from lora_studio.training.build import check_names

RECIPES = Path(methods.__file__).parents[1] / "recipes"
PIECES = [
    Piece("style", 1, 600, fidelity=0.8, following=0.7, leaking=0.0, drift=0.2),
    Piece("style", 2, 600, fidelity=0.9, following=0.8, leaking=0.1, drift=0.4),
    Piece("subject, full", 1, 300, fidelity=0.5, following=1.0, leaking=0.0, drift=0.9),
]


@pytest.mark.parametrize("name", METHODS)
def test_every_method_is_a_recipe_that_loads_and_names_what_exists(name: str) -> None:
    one = METHODS[name]
    assert name.partition(",")[0] == ("style" if one.is_style else "subject")
    recipe = load_recipe(RECIPES / f"{one.recipe}.toml", changes=one.changes)
    check_names(recipe)
    assert one.changes == () or recipe != load_recipe(RECIPES / f"{one.recipe}.toml")


def test_every_kind_of_adapter_is_among_them() -> None:
    kinds = {
        load_recipe(RECIPES / f"{one.recipe}.toml", changes=one.changes).adapter.kind
        for one in METHODS.values()
    }
    assert kinds == {*ADAPTERS.names(), NO_ADAPTER}


def test_the_table_has_means_and_the_spread_of_seeds() -> None:
    rows = markdown(PIECES).splitlines()
    assert rows[2] == "| style | 2 | 85 % (80 to 90) | 75 % (70 to 80) | 5 % (0 to 10) | 30 % (20 to 40) |"
    assert rows[3] == "| subject, full | 1 | 50 % | 100 % | 0 % | 90 % |"


def test_the_plot_is_a_picture_with_both_panels() -> None:
    with Image.open(io.BytesIO(plot(PIECES))) as picture:
        assert picture.width > 1000 and len(np.unique(np.asarray(picture.convert("L")))) > 50


def test_drift_is_one_where_pictures_changed_as_much_as_with_another_noise() -> None:
    black, grey, white = (Image.new("RGB", (4, 4), (level,) * 3) for level in (0, 100, 200))
    assert methods._distance([black, grey], [grey, white]) == pytest.approx(100)
    assert methods._distance([black], [white]) == pytest.approx(200)
