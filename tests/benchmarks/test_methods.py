"""The comparison of methods: its recipes load, and its table and plot say what its pieces say."""

from __future__ import annotations

import io
import itertools
from dataclasses import asdict
from pathlib import Path

import methods
import numpy as np
import pytest
from figures import write_json
from methods import METHODS
from methods_report import Piece, markdown, plot
from PIL import Image

from lora_studio.adapters import ADAPTERS
from lora_studio.plots import spaced
from lora_studio.recipe.adapter import NO_ADAPTER
from lora_studio.recipe.load import load_recipe
from lora_studio.training.prepare.checks import name_faults

RECIPES = Path(methods.__file__).parents[1] / "recipes"
PIECES = [
    Piece("style", 1, 600, fidelity=0.8, following=0.7, leaking=0.0, drift=0.2, rests_on=""),
    Piece("style", 2, 600, fidelity=0.9, following=0.8, leaking=0.1, drift=0.4, rests_on=""),
    Piece("subject, full", 1, 300, fidelity=0.5, following=1.0, leaking=0.0, drift=0.9, rests_on=""),
]
GROUPS = {name: one.about for name, one in METHODS.items()}


@pytest.mark.parametrize("name", METHODS)
def test_every_method_is_a_recipe_that_loads_and_names_what_exists(name: str) -> None:
    one = METHODS[name]
    assert name.partition(",")[0] == ("style" if one.is_style else "subject")
    recipe = load_recipe(RECIPES / f"{one.recipe}.toml", changes=one.changes)
    assert name_faults(recipe) == []
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


def test_a_piece_counts_only_while_it_rests_on_what_is_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def piece(method: str, seed: int, rests_on: str) -> Piece:
        return Piece(method, seed, 440, fidelity=1, following=1, leaking=0, drift=0, rests_on=rests_on)

    held = piece("style, dora", 2, methods.rests_on("style, dora", 2, 48))
    former = piece("style", 1, "0" * 16)
    for one in (held, former):
        write_json(asdict(one), tmp_path / f"{one.method}.json")
    assert methods.pieces(tmp_path, 48) == [held]
    assert "style, seed 1: not counted" in capsys.readouterr().out
    assert methods.pieces(tmp_path, 32) == []


def test_what_a_piece_rests_on_differs_by_method_seed_images_and_prompts() -> None:
    told = {
        methods.rests_on(method, seed, prompts)
        for method in ("style", "style, dora", "subject")
        for seed in (1, 2)
        for prompts in (32, 48)
    }
    assert len(told) == 12


def test_the_plot_is_an_image_with_both_panels() -> None:
    with Image.open(io.BytesIO(plot(PIECES, GROUPS))) as image:
        assert image.width > 1000 and len(np.unique(np.asarray(image.convert("L")))) > 50


def test_names_beside_the_plot_stay_apart_and_within_it() -> None:
    heights = spaced([0.99, 0.99, 0.98, 0.5, 0.01, 0.0, 0.0])
    gaps = [a - b for a, b in itertools.pairwise(heights)]
    assert heights[3] == 0.5 and min(gaps) > 0.03 and 0 <= heights[-1] < heights[0] <= 1


def test_drift_is_one_where_images_changed_as_much_as_with_another_noise() -> None:
    black, grey, white = (Image.new("RGB", (4, 4), (level,) * 3) for level in (0, 100, 200))
    assert methods.distance([black, grey], [grey, white]) == pytest.approx(100)
    assert methods.distance([black], [white]) == pytest.approx(200)
