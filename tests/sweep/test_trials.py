"""What is varied becomes trials: lists and ranges, drawn alike every time, and every one a recipe."""

from __future__ import annotations

import math
from pathlib import Path
from statistics import mean

import pytest
from console import run
from tiny import recipe_text

from lora_studio.errors import RecipeError
from lora_studio.recipe.load import load_recipe
from lora_studio.sweep import plan_sweep
from lora_studio.sweep.varied import read_vary, varied_of

RATE = {"training.learning_rate": "log:1e-4..1e-2"}


@pytest.fixture
def recipe(tmp_path: Path):
    def make(extra: str = ""):
        (tmp_path / "one.toml").write_text(recipe_text(tmp_path / "images", "pocket", extra=extra), "utf-8")
        return load_recipe(tmp_path / "one.toml")

    return make


def test_lists_make_a_grid_whose_last_option_changes_fastest(recipe) -> None:
    plan = plan_sweep(recipe(), {"adapter.rank": (4, 8), "adapter.rslora": (True, False)}, seeds=2)
    assert [tuple(one.values()) for one in plan.settings] == [(4, True), (4, False), (8, True), (8, False)]
    names = [one.name for one in plan.trials]
    assert names[:2] == ["trial_001_seed_1", "trial_002_seed_1"] and names[4] == "trial_001_seed_2"
    third = plan.trials[6].recipe
    assert (third.adapter.rank, third.adapter.rslora, third.training.seed) == (8, True, 2)
    assert third.training.steps == 4 and third.sweep == type(third.sweep)()  # a trial is no sweep


def test_the_table_of_the_recipe_is_the_same_as_the_command_line(recipe) -> None:
    words = ["adapter.rank=4,8", "training.learning_rate=log:1e-4..1e-2"]
    typed = plan_sweep(recipe(), read_vary(words), trials=5, seeds=2)
    quoted = '[sweep]\ntrials = 5\nseeds = 2\n[sweep.vary]\n"adapter.rank" = [4, 8]\n'
    bare = quoted.replace('"adapter.rank"', "adapter.rank")
    for table in (quoted, bare):
        rate = 'training.learning_rate = "log:1e-4..1e-2"\n'
        assert plan_sweep(recipe(table + rate)).settings == typed.settings


def test_draws_are_the_same_every_time_and_fewer_are_the_first_of_more(recipe) -> None:
    some, more = (plan_sweep(recipe(), RATE, trials=number).settings for number in (6, 40))
    assert some == more[:6] and plan_sweep(recipe(), RATE, trials=6, search_seed=1).settings != some
    rates = [one["training.learning_rate"] for one in more]
    assert all(1e-4 <= rate <= 1e-2 for rate in rates) and len(set(rates)) == 40
    assert mean(math.log10(rate) for rate in rates) == pytest.approx(-3, abs=0.2)  # of -4 to -2


@pytest.mark.parametrize(
    ("given", "kind"),
    [
        ({"adapter.rank": "log:2..64"}, int),
        ({"training.learning_rate": "lin:0..1"}, float),
        ({"adapter.dropout": "lin:0..0.5"}, None),
        ({"training.warmup_steps": "lin:1..20"}, int),
        ({"objective.preservation": "lin:0..0.5"}, float),
    ],
)
def test_whole_numbers_stay_whole_where_the_option_takes_them(recipe, given, kind) -> None:
    if kind is None:
        with pytest.raises(RecipeError, match=r"unknown key adapter\.dropout; did you mean"):
            plan_sweep(recipe(), given, trials=3)
        return
    values = [value for one in plan_sweep(recipe(), given, trials=8).settings for value in one.values()]
    assert {type(one) for one in values} == {kind}


def test_values_are_read_as_set_reads_them() -> None:
    (kinds,) = varied_of({"adapter.kind": "lora,dora"})
    (ranges,) = varied_of({"objective.timestep_range": "[0, 0.8],[0,1]"})
    (flips,) = varied_of({"adapter.rslora": "true, false"})
    assert kinds.values == ("lora", "dora") and flips.values == (True, False)
    assert ranges.values == ((0, 0.8), (0, 1))


def test_of_lists_fewer_trials_than_settings_are_drawn_and_none_twice(recipe) -> None:
    grid = {"adapter.rank": "2,4,8,16", "data.repeats": "1,2,3"}
    drawn = plan_sweep(recipe(), grid, trials=7).settings
    assert len({repr(one) for one in drawn}) == 7
    assert len(plan_sweep(recipe(), grid, trials=99).settings) == 12


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "nothing is varied"),
        (["--vary", "adapter.rank"], "is not key=values"),
        (["--vary", "adapter.rnk=4,8"], "unknown key adapter.rnk; did you mean 'rank'?"),
        (["--vary", "adapter.rank=4"], "has one value, 4; give two or more"),
        (["--vary", "adapter.rank=4,4"], "has 4 twice"),
        (["--vary", "adapter.rank=0,4"], "adapter.rank is 0: input should be greater than or equal to 1"),
        (["--vary", "adapter.rank=uni:4..8"], "which is no range; give a list of values"),
        (["--vary", "adapter.rank=log:8..4"], "write two numbers, the lower one first"),
        (["--vary", "objective.preservation=log:0..0.5"], "factors begin above 0"),
        (["--vary", "adapter.rank=log:4.5..9", "--trials", "2"], "takes whole numbers; write log:4..9"),
        (["--vary", "training.learning_rate=log:1e-4..1e-3"], "say with --trials how many"),
        (["--vary", "adapter.rank=log:2..4", "--trials", "30"], "give --trials 3, or wider ranges"),
        (["--vary", "evaluate.prompts=3,4"], "what is learned stays the same with every value"),
        (["--vary", "training.seed=1,2"], "seeds are trained with --seeds"),
        (["--vary", "base.model=pocket,other"], "each base has its own sweep"),
        (["--vary", "adapter.rank=4,8", "--by", "loss"], "sweep.by is 'loss'"),
        (["--vary", "adapter.rank=4,8", "-o", "a.json"], "named like a file"),
        (["--vary", "adapter.rank=4,8", "--by", "validation"], "the recipe has none"),
    ],
)
def test_a_mistake_is_one_sentence_before_anything_begins(recipe, words, message, tmp_path, capsys) -> None:
    recipe("[validation]\ncount = 0\n")
    code, out, err = run(["sweep", str(tmp_path / "one.toml"), *words], capsys)
    assert code == 2 and message in " ".join(err.split()) and not out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one.toml"]


def test_what_goes_wrong_in_one_combination_is_told_with_it(recipe) -> None:
    given = {"training.warmup_steps": (0, 1), "training.steps": (1, 100), "export.checkpoint": (5, 6)}
    with pytest.raises(RecipeError, match=r"export\.checkpoint is not varied"):
        plan_sweep(recipe(), given)
    given.pop("export.checkpoint")
    with pytest.raises(RecipeError, match=r"training\.steps 1: export\.checkpoint is 3, but the run has 1"):
        plan_sweep(recipe("[export]\ncheckpoint = 3\n"), given)
