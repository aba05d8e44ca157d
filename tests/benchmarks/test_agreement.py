"""The agreement with the judge and the planted cases: their figures, tables and plot say what pieces say."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import agreement
import numpy as np
import planted
import pytest
from agreement_report import PAIRS, Agreed, correlations, markdown, plot, ranks, spearman
from PIL import Image
from planted import CASES, ITSELF, Planted
from taught import FEW, OTHER_STYLE, QUESTIONS, Known, few_images

from lora_studio.evaluate.verdicts import THRESHOLDS
from lora_studio.metadata.provenance import recipe_hash
from lora_studio.pocket.samples import FLOW_STYLE, STYLE
from lora_studio.training.prepare.checks import name_faults


def piece(number: int, name: str = "style") -> Agreed:
    """Of measures that rank as the judge does, but for drift, which ranks the other way round."""
    judged = {"fidelity": number / 10, "leakage": number / 20, "drift": number / 5, "changed": 0.5}
    judged["following"] = 1.0
    measured = {"fidelity": number**2, "leakage": number**3, "drift": -number, "prompt_following": 0}
    return Agreed(name, number, judged, {name: float(value) for name, value in measured.items()}, "")


def test_equal_values_share_the_mean_of_their_ranks() -> None:
    assert ranks([3, 1, 3, 2, 3]).tolist() == [3, 0, 3, 1, 3]


def test_a_rank_correlation_is_the_formula_for_distinct_values() -> None:
    rng = np.random.default_rng(0)
    some, others = rng.permutation(12).tolist(), rng.permutation(12).tolist()
    apart = sum((a - b) ** 2 for a, b in zip(some, others, strict=True))
    assert spearman(some, others) == pytest.approx(1 - 6 * apart / (12 * (12**2 - 1)))
    assert np.isnan(spearman([1, 1, 1], [1, 2, 3]))


def test_correlations_are_told_of_all_runs_and_of_each_task() -> None:
    found = [piece(number) for number in range(1, 7)]
    found += [piece(number, "subject") for number in range(1, 7)]
    by_key = {(one.measure, one.judged, one.task): one for one in correlations(found)}
    assert len(by_key) == 3 * len(PAIRS)
    assert by_key["fidelity", "fidelity", "all"].rank_correlation == 1
    assert by_key["drift", "drift", "subject"].rank_correlation == -1
    assert by_key["fidelity", "fidelity", "all"].runs == 12
    assert [one.task for one in correlations(found[:8]) if one.measure == "fidelity"] == ["all", "style"]


def test_the_table_has_a_row_a_run_and_the_plot_is_an_image() -> None:
    found = [piece(number) for number in range(1, 7)]
    rows = markdown(found).splitlines()
    assert "| fidelity, judged fidelity | all | 6 | 1.00 (1.00 to 1.00) | >= 0.8 |" in rows
    assert "| style, seed 2 | 0.20 | 4.00 | 0.10 | 8.00 | 0.40 | 0.50 | -2.00 | 1.00 | 0.00 |" in rows
    with Image.open(io.BytesIO(plot(found))) as image:
        assert image.width > 1000


@pytest.mark.parametrize("name", [*agreement.RUNS])
def test_every_run_is_a_recipe_that_loads(name: str, tmp_path: Path) -> None:
    known = Known(name, 2)
    recipe = known.recipe(tmp_path)
    assert name_faults(recipe) == [] and recipe.training.seed == 2
    assert known.style == {OTHER_STYLE: FLOW_STYLE}.get(name, "" if name.startswith("subject") else STYLE)
    assert recipe_hash(recipe) != recipe_hash(replace(known, seed=3).recipe(tmp_path))
    assert len(known.questions()) == QUESTIONS


def test_few_images_are_four_with_their_captions(tmp_path: Path) -> None:
    for name in FEW:
        captions = sorted(few_images(name, tmp_path).glob("*.txt"))
        assert len(Known(name, 1).training_images(tmp_path)) == len(captions) == 4


def test_definitions_are_told_apart_by_what_they_do_and_not_by_what_is_said_of_them() -> None:
    told = agreement._definitions()
    assert "FunctionDef(name='fidelity'" in told and "How far images with the trigger" not in told


def said(case: str, *words: str) -> Planted:
    """Of which the thresholds make these words."""
    found = {"fidelity": (0.1, 0.0, 0.15, 9), "change": (1.0, 0.9, 1.1, 9), "leakage": (0.0, -0.1, 0.1, 9)}
    made = {"learned": {"fidelity": (0.5, 0.4, 0.6, 9)}, "leaks": {"leakage": (0.5, 0.4, 0.6, 9)}}
    for word in words:
        found |= made[word]
    return Planted(case, 1, found, 10, "")


def test_a_case_is_right_with_all_that_is_so_and_nothing_that_is_not() -> None:
    words = {one.word for one in THRESHOLDS}
    assert all({*one.must} | {*one.must_not} <= words for one in CASES.values())
    assert said("good", "learned").right
    assert not said("good").right and not said("good", "learned", "leaks").right
    assert said("another style").right and not said("another style", "learned").right
    assert said(ITSELF).right and not said(ITSELF, "leaks").right


def test_the_planted_table_says_what_was_said() -> None:
    found = [said("good", "learned"), said("burnt", "learned"), said(ITSELF), said(ITSELF, "leaks")]
    text = planted.markdown(found)
    assert "| good, seed 1 | learned | learned | yes | 0.50 | 0.00 |" in text
    assert "| burnt, seed 1 | burnt | learned | NO | 0.50 | 0.00 |" in text
    assert text.endswith("The base against itself: no verdict in 1 of 2 resamples.")
