"""A sweep from its first trial to the recommended recipe: stopped, gone on with, with trials that fail."""

from __future__ import annotations

import io
import json
import math
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image
from scipy import stats
from tiny import recipe_text

from lora_studio.console import Screen
from lora_studio.console.sweep import print_sweep, print_sweep_plan, trial_in_words
from lora_studio.errors import StudioError
from lora_studio.recipe.load import load_recipe, recipe_from
from lora_studio.sweep import SweepPlan, plan_sweep
from lora_studio.sweep.folder import SweepFolder
from lora_studio.sweep.report import files_of
from lora_studio.sweep.result import SweepResult
from lora_studio.sweep.running import Estimate, TrialChange, run_sweep

RANKS = {"adapter.rank": (2, 4, 8)}
FIGURES = {  # fidelity, drift, leakage and bytes of each training
    "trial_001_seed_1": (0.40, 0.30, 0.05, 2000.0),
    "trial_002_seed_1": (0.60, 0.50, 0.05, 4000.0),
    "trial_003_seed_1": (0.80, 1.40, 0.05, 8000.0),  # beyond the budget of drift
    "trial_001_seed_2": (0.42, 0.34, 0.05, 2000.0),
    "trial_002_seed_2": (0.66, 0.50, 0.05, 4000.0),
    "trial_003_seed_2": (0.90, 1.20, 0.05, 8000.0),
}


@pytest.fixture
def plan(tmp_path: Path) -> Callable[..., SweepPlan]:
    def make(extra: str = "", vary: dict | None = None, **asked: object) -> SweepPlan:
        (tmp_path / "one.toml").write_text(recipe_text(tmp_path / "images", "pocket", extra=extra), "utf-8")
        given = {"seeds": 2} | asked
        return plan_sweep(load_recipe(tmp_path / "one.toml"), RANKS if vary is None else vary, **given)

    return make


def work(plan: SweepPlan, folder: Path, stub, **options) -> SweepResult:
    return run_sweep(plan, SweepFolder(folder), devices=["cpu"], command=stub, **options)


def test_the_highest_fidelity_within_the_budgets_is_recommended_with_its_reason(
    plan, stub_of, tmp_path
) -> None:
    stub = stub_of(FIGURES)
    result = work(plan(), tmp_path / "sweep", stub)
    assert stub.began == list(FIGURES)  # all settings with the first seed, then with the next
    assert result.recommended is not None and result.recommended.values == {"adapter.rank": 4}
    assert [(one.option, one.after) for one in result.changes] == []  # the given recipe has rank 4
    told = json.loads((tmp_path / "sweep" / "sweep.json").read_text("utf-8"))
    assert told["recommended"]["setting"] == 2 and told["recommended"]["within_budget"]
    assert "the most of 2 of 3 settings, those within drift 1 and leakage 0.15" in told["recommended"]["why"]
    assert [one["state"] for one in told["trials"]] == ["done"] * 6
    with Image.open(tmp_path / "sweep" / "sweep.png") as plot:
        assert plot.width > 600
    table = (tmp_path / "sweep" / "sweep.md").read_text("utf-8")
    assert "| 2 (recommended) |" in table and table.index("| 2 (rec") < table.index("| 3 |")
    seeds_are_pooled_as_the_statistics_books_say(result)
    (tmp_path / "sweep").rename(tmp_path / "moved")
    again = work(plan(), tmp_path / "moved", stub)
    assert len(stub.began) == 6 and again.to_json()["recommended"] == told["recommended"]


def seeds_are_pooled_as_the_statistics_books_say(result: SweepResult) -> None:
    pairs = [(0.40, 0.42), (0.60, 0.66), (0.80, 0.90)]
    variance = sum((one - other) ** 2 / 2 for one, other in pairs) / 3  # of three settings, pooled
    reach = stats.t.ppf(0.975, 3) * math.sqrt(variance / 2)
    found = result.pooled[2].measure("fidelity").interval
    assert found.value == pytest.approx(0.63)
    assert found.high - found.value == pytest.approx(math.hypot(0.05, reach))
    assert found.value - found.low == pytest.approx(math.hypot(0.05, reach))


def test_of_equals_the_smaller_file_is_taken_and_the_recipe_is_one(plan, stub_of, tmp_path) -> None:
    same = {name: (0.5, 0.3, 0.0, row[3]) for name, row in FIGURES.items()}
    result = work(plan(), tmp_path / "sweep", stub_of(same))
    assert result.recommended is not None and result.recommended.number == 1
    text = (tmp_path / "sweep" / "recommended.toml").read_text("utf-8")
    assert "# adapter.rank: 4 -> 2" in text and "setting 1 (rank 2): fidelity" in text
    recipe = recipe_from(tomllib.loads(text), folder=tmp_path)
    assert recipe.adapter.rank == 2 and recipe.training.seed == 1 and not recipe.sweep.vary
    given = load_recipe(tmp_path / "one.toml", changes=("adapter.rank=2", "training.seed=1"))
    assert recipe.model_dump() == given.model_dump()  # so it trains the same as the trial


def test_a_trial_that_fails_is_a_row_with_its_sentence_and_is_tried_again_when_asked(
    plan, stub_of, tmp_path
) -> None:
    stub = stub_of(FIGURES)
    stub.faults["trial_002_seed_1"] = "CUDA out of memory; lower training.batch_size"
    result = work(plan(), tmp_path / "sweep", stub)
    assert result.recommended is not None and result.recommended.number == 2  # by its other seed
    table = (tmp_path / "sweep" / "sweep.md").read_text("utf-8")
    assert "| trial_002_seed_1 | CUDA out of memory; lower training.batch_size |" in table
    screen = Screen(file=io.StringIO(), width=100)
    print_sweep(result, files_of(SweepFolder(tmp_path / "sweep")), screen)
    assert "CUDA out of memory" in screen.file.getvalue()  # type: ignore[attr-defined]
    stub.faults.clear()
    work(plan(), tmp_path / "sweep", stub)
    assert len(stub.began) == 6
    work(plan(), tmp_path / "sweep", stub, retry=True)
    assert stub.began[6:] == ["trial_002_seed_1"]


def test_a_sweep_that_was_stopped_goes_on_and_can_grow(plan, stub_of, tmp_path) -> None:
    stub, changes = stub_of(FIGURES), list[TrialChange]()

    def stop_after_two(change: TrialChange) -> None:
        changes.append(change)
        if change.ended == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        work(plan(seeds=1), tmp_path / "sweep", stub, on_change=stop_after_two)
    assert len(stub.began) == 2 and changes[-1].seconds_left is not None
    assert "2 of 3 have ended; about" in trial_in_words(changes[-1])
    half = json.loads((tmp_path / "sweep" / "sweep.json").read_text("utf-8"))
    assert [one["state"] for one in half["trials"]] == ["done", "done", "queued"]
    work(plan(seeds=1), tmp_path / "sweep", stub)
    work(plan(seeds=2), tmp_path / "sweep", stub)
    assert stub.began == list(FIGURES)
    with pytest.raises(StudioError, match=r"sweep\.seeds: 2 -> 1"):
        work(plan(seeds=1), tmp_path / "sweep", stub)


def test_a_folder_of_anything_else_is_refused_and_stays(plan, stub_of, tmp_path) -> None:
    stub = stub_of(FIGURES)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    with pytest.raises(StudioError, match="is not empty and no sweep's folder"):
        work(plan(), tmp_path / "mine", stub)
    work(plan(), tmp_path / "sweep", stub)
    with pytest.raises(StudioError, match=r"training\.weight_decay: 0\.01 -> 0\.2"):
        work(plan(extra="weight_decay = 0.2\n"), tmp_path / "sweep", stub)
    with pytest.raises(StudioError, match=r"holds another sweep \(sweep\.varied"):
        work(plan(vary={"adapter.rank": (2, 4)}), tmp_path / "sweep", stub)
    work(plan(), tmp_path / "sweep", stub)
    assert len(stub.began) == 6


def test_by_validation_the_lowest_loss_is_recommended(plan, stub_of, tmp_path) -> None:
    result = work(plan(by="validation"), tmp_path / "sweep", stub_of(FIGURES))
    assert result.recommended is not None and result.recommended.number == 1
    assert "validation loss of at most" in result.why and "the least of 3 settings" in result.why
    assert result.pooled[1].measure("validation_loss").interval.value == pytest.approx(0.41)
    with Image.open(tmp_path / "sweep" / "sweep.png") as plot:
        assert plot.width > 600


def test_the_plan_says_every_setting_and_how_long_it_takes(plan) -> None:
    screen = Screen(file=io.StringIO(), width=100)
    print_sweep_plan(plan(), Path("runs/tiny_sweep"), Estimate(4000.0), screen)
    said = screen.file.getvalue()  # type: ignore[attr-defined]
    assert "6: 3 settings x 2 seeds (1, 2), into runs/tiny_sweep" in said and "about 1 h 6 min" in said
    assert "within drift 1 and leakage 0.15; 60 images are drawn" in said and said.count("4 steps") == 3
