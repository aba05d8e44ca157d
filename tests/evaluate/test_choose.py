"""The rule of checkpoints and strengths, beside a plain search, and what it says of itself."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from lora_studio.evaluate.choosing import (
    Budget,
    Candidate,
    candidate_of,
    choose,
    measured_candidate,
    measured_in_vain,
)
from lora_studio.evaluate.choosing.strength import choose_strength
from lora_studio.evaluate.result import Evaluation, Interval, Measured, Variant, Verdict
from lora_studio.evaluate.statistics import mean_of
from lora_studio.evaluate.verdicts import THRESHOLDS
from lora_studio.recipe.evaluate import EvaluateConfig

BUDGET = Budget(drift=0.6, leakage=0.05)
NAN = math.nan


def candidate(
    step: int | None,
    low: float,
    *,
    drift: float | None = 0.3,
    leakage: float | None = 0.0,
    strength: float = 1.0,
    spoiled: tuple[str, ...] = (),
) -> Candidate:
    measures = {"fidelity": Interval(low + 0.1, low, low + 0.2, 8)}
    measures |= {"drift": Interval(drift, drift - 0.2, drift + 0.2, 8)} if drift is not None else {}
    measures |= {"leakage": Interval(leakage, -1.0, 1.0, 8)} if leakage is not None else {}
    return Candidate(Variant(step, strength), measures, spoiled)


def test_the_highest_lower_bound_within_both_budgets_is_taken() -> None:
    found = choose(
        [
            candidate(50, 0.1),
            candidate(100, 0.2),
            candidate(150, 0.3, leakage=0.06),
            candidate(200, 0.4, drift=0.61),
        ],
        BUDGET,
    )
    assert found is not None and found.taken.variant.step == 100 and found.within
    assert found.why == (
        "step 100: fidelity of at least +0.200 (mean +0.300), the most of 2 of 4 checkpoints, those within "
        "drift 0.6 and leakage 0.05"
    )


def test_not_the_highest_mean_but_the_surest_is_taken() -> None:
    lucky = Candidate(Variant(100), {"fidelity": Interval(0.9, 0.05, 1.75, 2)})
    found = choose([lucky, candidate(200, 0.1)], BUDGET)
    assert found is not None and found.taken.variant.step == 200


def test_of_equals_the_earlier_step_and_the_lower_strength_are_taken() -> None:
    for order in ((300, 100, 200), (100, 200, 300)):
        found = choose([candidate(step, 0.2) for step in order], BUDGET)
        assert found is not None and found.taken.variant.step == 100
    found = choose([candidate(100, 0.2, strength=one) for one in (1.2, 0.8, 1.0)], BUDGET)
    assert found is not None and found.taken.variant.strength == 0.8


def test_if_none_keeps_the_budgets_the_one_least_beyond_is_taken_and_it_is_said() -> None:
    found = choose([candidate(50, 0.1, drift=0.9), candidate(100, 0.5, drift=1.2)], BUDGET)
    assert found is not None and found.taken.variant.step == 50 and not found.within
    assert "none of 2 checkpoints keeps drift 0.6 and leakage 0.05" in found.why
    assert "(drift 0.900 for 0.6)" in found.why


def test_what_is_burnt_is_not_taken_while_anything_else_is_there() -> None:
    found = choose([candidate(50, 0.1), candidate(100, 0.5, spoiled=("burnt",))], BUDGET)
    assert found is not None and found.taken.variant.step == 50


def test_without_fidelity_there_is_no_choice_and_what_is_not_known_is_said() -> None:
    assert choose([], BUDGET) is None
    assert choose([Candidate(Variant(50), {"fidelity": Interval(NAN, NAN, NAN, 0)})], BUDGET) is None
    found = choose([candidate(50, 0.1, leakage=None)], BUDGET)
    assert found is not None and found.within and found.why.endswith("leakage could not be measured")


def random_candidates(draw: random.Random) -> list[Candidate]:
    steps = draw.sample(range(50, 1000, 50), draw.randint(1, 12))
    return [
        candidate(
            step, draw.choice((0.1, 0.2, 0.3)), drift=draw.uniform(0, 1.2), leakage=draw.uniform(-0.1, 0.1)
        )
        for step in steps
    ]


def test_a_plain_search_finds_the_same_whatever_the_order() -> None:
    draw = random.Random(0)
    for _ in range(300):
        some = random_candidates(draw)
        kept = [
            one
            for one in some
            if one.measures["drift"].value <= 0.6 and one.measures["leakage"].value <= 0.05
        ]
        found = choose(some, BUDGET)
        again = choose(draw.sample(some, len(some)), BUDGET)
        assert found is not None and again is not None and found.taken == again.taken
        assert found.within == bool(kept)
        if kept:
            best = max(one.fidelity.low for one in kept)
            step = min(one.variant.step or 0 for one in kept if one.fidelity.low == best)
            assert found.taken.variant.step == step


def test_a_checkpoint_that_is_overtaken_is_never_taken_later() -> None:
    """So that it need not be kept for the choice."""
    draw = random.Random(1)
    for _ in range(200):
        some, out = random_candidates(draw), set[int | None]()
        for number in range(1, len(some) + 1):
            found = choose(some[:number], BUDGET)
            assert found is not None and found.taken.variant.step not in out
            out |= {one.variant.step for one in some[:number]} - {found.taken.variant.step}


def test_patience_counts_what_came_after_the_best() -> None:
    some = [candidate(50, 0.1), candidate(100, 0.3), candidate(150, 0.2), candidate(200, 0.3)]
    assert [measured_in_vain(some[:number], BUDGET) for number in range(5)] == [0, 0, 0, 1, 2]


def test_what_is_written_is_read_again_and_holds_no_number_that_json_lacks() -> None:
    some = [
        candidate(50, 0.1, spoiled=("burnt",)),
        Candidate(Variant(None, 0.4), {"fidelity": Interval(NAN, NAN, NAN, 0)}),
    ]
    for one in some:
        text = json.dumps(one.to_json(), allow_nan=False)
        assert repr(measured_candidate(json.loads(text))) == repr(one)
    found = choose(some, BUDGET, {"seeds": [1, 2]})
    assert found is not None
    told = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert told["step"] == 50 and told["why"] == found.why and told["seeds"] == [1, 2]
    assert [row["within_budget"] for row in told["candidates"]] == [True, True]


@pytest.mark.parametrize(
    "row", [{}, {"step": 5}, {"step": "x", "strength": 1, "measures": {}, "spoiled": []}]
)
def test_another_line_is_no_candidate(row: dict[str, object]) -> None:
    with pytest.raises((KeyError, TypeError, ValueError)):
        measured_candidate(row)


def test_an_evaluation_becomes_a_candidate_by_its_decided_verdicts() -> None:
    interval = Interval(0.3, 0.2, 0.4, 8)
    verdicts = [Verdict("burnt", "burn", ""), Verdict("leaks", "leakage", "")]
    whole = Evaluation(
        name="a",
        variant=Variant(100),
        facts={},
        questions=(),
        seeds=(1,),
        measures=(Measured("fidelity", interval, {}), Measured("diversity", interval, {})),
        verdicts=tuple(verdicts),
    )
    assert candidate_of(whole) == Candidate(Variant(100), {"fidelity": interval}, ("burnt",))
    undecided = replace(whole, verdicts=(replace(verdicts[0], decided=False),))
    assert candidate_of(undecided).spoiled == ()


def of_drifts(drifts: Sequence[float]) -> Candidate:
    """What the rule knows of a run whose prompts without the trigger changed so far."""
    per_question = dict(enumerate(drifts))
    found = Evaluation(
        "a", Variant(100), {}, (), (1,), (Measured("drift", mean_of(per_question), per_question),), ()
    )
    return candidate_of(found)


def test_one_prompt_that_changes_wholly_does_not_break_the_budget_and_many_that_change_do() -> None:
    budget = Budget(drift=1.0, leakage=0.15)
    assert not of_drifts([0.2, 0.3, 0.4, 0.3, 0.2, 0.3, 0.4, 9.0]).beyond(budget)
    assert of_drifts([0.2, 0.3, 0.4, 9.0, 9.0, 9.0, 0.4, 9.0]).beyond(budget)


def test_good_runs_are_hardly_ever_refused_for_chance_in_few_prompts_and_what_leaks_is() -> None:
    """Simulated: one prompt of ten changes wholly, by 5, the others by 0.3; in what leaks they do by 2.7."""
    draw, budget, refused = np.random.default_rng(5), Budget(drift=1.0, leakage=0.15), dict[str, float]()
    for kind, usual, trials in (("good", 0.3, 300), ("leaks", 2.7, 50)):
        found = [
            np.where(draw.random(8) < 0.1, draw.gamma(4, 5 / 4, 8), usual * draw.gamma(4, 1 / 4, 8))
            for _ in range(trials)
        ]
        refused[kind] = sum(bool(of_drifts(one.tolist()).beyond(budget)) for one in found) / trials
        refused[f"{kind}, by the mean"] = sum(one.mean() > 1 for one in found) / trials
    assert refused["good"] <= 0.12 < 0.22 <= refused["good, by the mean"]  # of many trials 0.08 and 0.28
    assert refused["leaks"] >= 0.98


def strengths(*rows: tuple[float, float, float]) -> list[Candidate]:
    return [candidate(100, low, strength=strength, drift=drift) for strength, low, drift in rows]


def test_the_usable_range_is_around_the_recommended_strength_without_gaps() -> None:
    found = choose_strength(
        strengths(
            (1.4, 0.5, 0.7),
            (0.4, -0.1, 0.1),
            (0.6, 0.1, 0.2),
            (0.8, 0.2, 0.3),
            (1.0, 0.3, 0.4),
            (1.2, 0.25, 0.5),
        ),
        BUDGET,
    )
    assert found is not None
    assert (found.recommended, found.lowest, found.highest) == (1.0, 0.6, 1.2)
    assert found.in_words == "strength 1, usable from 0.6 to 1.2"
    assert found.to_json()["usable"] == [0.6, 1.2]
    gap = choose_strength(strengths((0.4, 0.1, 0.1), (0.6, 0.2, 0.9), (0.8, 0.3, 0.3)), BUDGET)
    assert gap is not None and (gap.lowest, gap.highest) == (0.8, 0.8) and gap.in_words == "strength 0.8"


def test_no_range_is_claimed_where_nothing_is_surely_learned() -> None:
    found = choose_strength(strengths((0.8, -0.1, 0.1), (1.0, -0.05, 0.1)), BUDGET)
    assert found is not None and found.lowest is None and found.to_json()["usable"] is None
    assert found.in_words == "strength 1, though none is surely of use within the budgets"
    assert choose_strength([], BUDGET) is None


def test_the_budget_of_leakage_is_where_the_verdict_begins() -> None:
    (leaks,) = [one for one in THRESHOLDS if one.word == "leaks"]
    assert EvaluateConfig().leakage == leaks.value
