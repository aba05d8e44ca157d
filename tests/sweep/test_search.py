"""Settings by what earlier ones found, and trainings that are ended early because they are behind."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
from tiny import recipe_text

from lora_studio.errors import RecipeError, StudioError
from lora_studio.evaluate.choosing import Budget, Candidate, choose, score_of
from lora_studio.evaluate.result import Interval, Variant
from lora_studio.jobs import Job, worker
from lora_studio.recipe.load import load_recipe
from lora_studio.recipe.run_recipe import RUN_RECIPE
from lora_studio.sweep import SweepPlan, plan_sweep, search
from lora_studio.sweep.folder import Placed, SweepFolder
from lora_studio.sweep.halving import behind
from lora_studio.sweep.result import result_of
from lora_studio.sweep.running import TrialChange, run_sweep
from lora_studio.sweep.trials import Setting

RATES = {"training.learning_rate": "log:1e-5..1e-1", "adapter.rank": (2, 4, 8, 16)}
BEST = 1e-3
VALIDATED = "[validation]\ncount = 1\nevery = 1\n"


@pytest.fixture
def plan(tmp_path: Path):  # type: ignore[no-untyped-def]
    def make(vary: dict = RATES, *, extra: str = "", steps: int = 18, **asked: object) -> SweepPlan:
        text = recipe_text(tmp_path / "images", "pocket", steps=steps, extra=VALIDATED + extra)
        (tmp_path / "one.toml").write_text(text, "utf-8")
        return plan_sweep(load_recipe(tmp_path / "one.toml"), vary, by="validation", **asked)

    return make


def loss_of(setting: Setting) -> float:
    """Least at a rate of `BEST` and a rank of 8."""
    rate, rank = setting["training.learning_rate"], setting["adapter.rank"]
    return 0.2 + 0.1 * math.log10(rate / BEST) ** 2 + 0.02 * math.log2(rank / 8) ** 2


def searched(plan: SweepPlan, most: int) -> list[Setting]:
    """With all that were tried before known at each."""
    while len(plan.settings) < most:
        scores = {number: 1 - loss_of(one) for number, one in enumerate(plan.settings, start=1)}
        if (found := search.following(plan, scores)) is None:
            break
        plan = plan.with_settings([*plan.added, found])
    return list(plan.settings)


def test_settings_come_nearer_to_the_best_than_by_chance(plan) -> None:
    def far(settings: list[Setting]) -> float:
        return float(np.mean([abs(math.log10(one["training.learning_rate"] / BEST)) for one in settings]))

    found, by_chance = searched(plan(trials=24, search="tpe"), 24), list(plan(trials=24).settings)
    assert len(set(map(repr, found))) == 24 and found[: search.FIRST] == by_chance[: search.FIRST]
    assert far(found[search.FIRST :]) < 0.6 * far(by_chance[search.FIRST :])
    assert all(1e-5 <= one["training.learning_rate"] <= 1e-1 for one in found)


def test_lists_are_tried_to_their_end(plan, monkeypatch) -> None:
    monkeypatch.setitem(globals(), "loss_of", lambda setting: setting["adapter.rank"] / 10)
    vary = {"adapter.rank": (4, 2, 8), "adapter.kind": ("lora", "loha"), "training.batch_size": (1, 2)}
    assert len(set(map(repr, searched(plan(vary, trials=30, search="tpe"), 30)))) == 12


class Losses:
    """Commands that leave a run's validation loss."""

    def __call__(self, job: Job) -> list[str]:
        recipe = load_recipe(job.recipe)
        rate, rank = recipe.training.learning_rate, recipe.adapter.rank
        loss = loss_of({"training.learning_rate": rate, "adapter.rank": rank})
        validation = {"relative_last": loss, "relative_best": loss, "best_step": 1}
        told = json.dumps({"file_bytes": 1000, "checkpoint": {"step": 2}, "validation": validation})
        code = f"import pathlib; run = pathlib.Path({job.run!r}); run.mkdir(parents=True, exist_ok=True); "
        return [sys.executable, "-S", "-E", "-c", f"{code}(run / 'summary.json').write_text({told!r})"]


def work(plan: SweepPlan, folder: Path, **options):  # type: ignore[no-untyped-def]
    return run_sweep(plan, SweepFolder(folder), devices=["cpu"], command=Losses(), **options)


def test_a_stopped_search_goes_on_as_it_would_have_and_can_grow(plan, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(sys.modules["lora_studio.sweep"], "FIRST", 3)

    def stop(change: TrialChange) -> None:
        assert change.total == 5
        if change.ended == 4:
            raise KeyboardInterrupt

    asked = {"trials": 5, "search": "tpe"}
    with pytest.raises(KeyboardInterrupt):
        work(plan(**asked), tmp_path / "sweep", on_change=stop)
    found = work(plan(**asked), tmp_path / "sweep")
    expected = searched(plan(**asked), 6)
    assert [one.values for one in found.tried] == expected[:5] and not found.unfinished
    more = work(plan(**asked | {"trials": 6}), tmp_path / "sweep")
    assert [one.values for one in more.tried] == expected
    with pytest.raises(StudioError, match=r"sweep\.search: tpe -> chance"):
        work(plan(trials=6), tmp_path / "sweep")


def test_what_a_search_cannot_do_is_refused(plan, monkeypatch) -> None:
    with pytest.raises(RecipeError, match="say with --trials how far"):
        plan(search="tpe")
    with pytest.raises(RecipeError, match="trains each setting once, not with 2 seeds"):
        plan(search="tpe", trials=9, seeds=2)
    with pytest.raises(RecipeError, match=r"evaluate\.every is 0"):
        plan_sweep(plan(trials=9).recipe, RATES, by="evaluation", stop_early=True)
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(StudioError, match=r'pip install "lora-studio\[optuna\]"'):
        plan(search="tpe", trials=9)


def trained(folder: Path, losses: list[float]) -> None:
    """A run's folder, measured every step."""
    folder.mkdir(parents=True)
    (folder / RUN_RECIPE).write_text(recipe_text(folder, "pocket", steps=18), "utf-8")
    rows = [{"step": step, "loss": one, "relative": one} for step, one in enumerate(losses)]
    (folder / "validation.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))


def test_what_is_not_in_the_best_third_at_a_rung_is_behind(plan, tmp_path) -> None:
    asked, rng = plan(trials=9), np.random.default_rng(0)
    losses = rng.uniform(0.2, 0.9, size=(9, 7))  # by steps 0 to 6 of 18: rungs are steps 2 and 6
    losses[4, 6] = np.nan  # one is at step 5
    placed = [Placed(one, tmp_path / one.name, None) for one in asked.trials]
    for one, row in zip(placed, losses, strict=True):
        trained(one.folder, [float(loss) for loss in row if np.isfinite(loss)])
    for place, (one, row) in enumerate(zip(placed, losses, strict=True)):
        expected = row[2] > np.sort(losses[:, 2])[2]
        if np.isfinite(row[6]):
            expected = expected or row[6] > np.sort(losses[np.isfinite(losses[:, 6]), 6])[2]
        assert bool(behind(one, placed, asked)) == expected, place
    first = placed[int(np.argmax(losses[:, 2]))]
    assert behind(first, placed, asked) == "ended early: 8 of 9 trainings were ahead of it by step 2"
    assert behind(first, placed[:2] if first in placed[:2] else [first, placed[0]], asked) == ""


WAITS = """
import json, pathlib, signal, sys, time
run, loss = pathlib.Path(sys.argv[1]), float(sys.argv[2])
(run / "validation.jsonl").write_text(json.dumps({"step": 2, "loss": loss, "relative": loss}) + "\\n")
signal.signal(signal.SIGTERM, lambda *_: sys.exit(130))
deadline = time.time() + float(sys.argv[3])
while time.time() < deadline:
    time.sleep(0.02)
found = {"relative_last": loss, "relative_best": loss, "best_step": 2}
told = {"file_bytes": 9, "checkpoint": {"step": 2}, "validation": found}
(run / "summary.json").write_text(json.dumps(told))
"""


def test_a_training_that_is_behind_ends_and_is_not_taken_up_again(plan, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(worker, "BEAT_SECONDS", 0.05)
    losses, began = {2: 0.4, 4: 0.5, 8: 0.6, 16: 0.3}, []

    def command(job: Job) -> list[str]:
        run, rank = Path(job.run), load_recipe(job.recipe).adapter.rank
        began.append(rank)
        run.mkdir(parents=True, exist_ok=True)
        (run / RUN_RECIPE).write_text(Path(job.recipe).read_text("utf-8"), "utf-8")
        seconds = "60" if rank == 8 else "0"  # the third, and the first that can be behind two others
        return [sys.executable, "-S", "-E", "-c", WAITS, job.run, str(losses[rank]), seconds]

    asked = plan({"adapter.rank": tuple(losses)}, stop_early=True)
    folder = SweepFolder(tmp_path / "sweep")
    result = run_sweep(asked, folder, devices=["cpu"], command=command)
    assert began == [2, 4, 8, 16] and not result.unfinished
    assert result.recommended is not None and result.recommended.values == {"adapter.rank": 16}
    assert result.scores() == {1: pytest.approx(0.6), 2: pytest.approx(0.5), 3: 0.4, 4: pytest.approx(0.7)}
    table = (tmp_path / "sweep" / "sweep.md").read_text("utf-8")
    assert "| trial_003_seed_1 | ended early: 2 of 3 trainings were ahead of it by step 2 |" in table
    run_sweep(asked, folder, devices=["cpu"], command=command)
    assert began == [2, 4, 8, 16]
    assert result_of(asked, folder).scores() == result.scores()


def test_the_score_has_the_order_of_the_rule() -> None:
    rng, budget = np.random.default_rng(1), Budget(1.0, 0.15)
    candidates = []
    for step in range(60):
        values = {"fidelity": rng.uniform(-1, 1), "drift": rng.uniform(0, 2), "leakage": rng.uniform(0, 0.4)}
        measures = {name: Interval(one, one - 0.1, one + 0.1, 9) for name, one in values.items()}
        spoiled = ("burnt",) if rng.random() < 0.2 else ()
        candidates.append(Candidate(Variant(step), measures, spoiled))
    left, order = list(candidates), []
    while left:
        choice = choose(left, budget)
        assert choice is not None
        order.append(score_of(choice.taken, budget))
        left.remove(choice.taken)
    assert order == sorted(order, reverse=True)
