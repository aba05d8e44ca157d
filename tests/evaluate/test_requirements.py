"""`--require`: bounds for a whole interval, in a language that is refused rather than guessed at."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from evaluations import evaluation

from lora_studio.errors import StudioError
from lora_studio.evaluate.report.words import MEASURES
from lora_studio.evaluate.requirements import Requirement, failures, requirements_of
from lora_studio.evaluate.result import Interval
from lora_studio.evaluate.verdicts import THRESHOLDS


def test_a_list_of_bounds_is_read_as_it_is_written() -> None:
    text = "fidelity>=0.3, drift <= .6,leakage<5e-2, validation loss > -1.5 , prompt-following>=+0"
    assert requirements_of(text) == (
        Requirement("fidelity", ">=", 0.3),
        Requirement("drift", "<=", 0.6),
        Requirement("leakage", "<", 0.05),
        Requirement("validation_loss", ">", -1.5),
        Requirement("prompt_following", ">=", 0.0),
    )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("fidelty>=0.3", "unknown measure 'fidelty'; did you mean 'fidelity'?"),
        ("fidelity=0.3", "= in 'fidelity=0.3' is not understood; write <="),
        ("fidelity=>0.3", "=> in 'fidelity=>0.3' is not understood; write >="),
        ("fidelity>=much", "'much' in 'fidelity>=much' is no number"),
        ("fidelity>=nan", "is no number"),
        ("fidelity>=inf", "is no number"),
        ("fidelity>=1e999", "is no number"),
        ("fidelity>=", "'' in 'fidelity>=' is no number"),
        ("fidelity", "'fidelity' is no bound"),
        ("fidelity>=0.3,", "'' is no bound"),
        ("", "'' is no bound"),
        ("\x1b[31m", "'\\x1b[31m' is no bound"),
    ],
)
def test_what_cannot_be_read_is_one_sentence(text: str, said: str) -> None:
    with pytest.raises(StudioError) as raised:
        requirements_of(text)
    assert said in str(raised.value) and "\x1b" not in str(raised.value) and "\n" not in str(raised.value)


def test_all_faults_are_told_at_once() -> None:
    with pytest.raises(StudioError, match=r"'fidelty'.*'drfit'.*'x' in"):
        requirements_of("fidelty>=0.3, drfit<=0.6, leakage<=x")


@pytest.mark.parametrize(
    ("text", "low", "high", "kept"),
    [
        ("drift<=0.6", 0.4, 0.6, True),
        ("drift<0.6", 0.4, 0.6, False),
        ("drift<=0.6", 0.4, 0.61, False),  # what is not shown is not kept
        ("drift<=0.6", 0.7, 0.8, False),
        ("drift>=0.4", 0.4, 0.6, True),
        ("drift>0.4", 0.4, 0.6, False),
        ("drift>=0.5", 0.4, 0.6, False),
    ],
)
def test_the_whole_interval_keeps_a_bound_or_it_is_not_kept(
    text: str, low: float, high: float, kept: bool
) -> None:
    known = evaluation()
    measures = [
        replace(one, interval=Interval((low + high) / 2, low, high, 9)) if one.name == "drift" else one
        for one in known.measures
    ]
    found = failures(requirements_of(text), replace(known, measures=tuple(measures)))
    assert (found == []) is kept
    assert kept or (text in found[0] and f"{low:.3f} to {high:.3f}" in found[0])


def test_what_only_reaches_beyond_a_bound_is_told_from_what_is_beyond() -> None:
    (reaches,) = failures(requirements_of("drift<=0.5"), evaluation())
    assert reaches.endswith("its interval reaches to 0.570; more prompts would narrow it.")
    (beyond,) = failures(requirements_of("drift<=0.2"), evaluation())
    assert beyond == "drift<=0.2 is required, and drift is 0.480 (0.390 to 0.570)."


def test_what_was_not_measured_keeps_no_bound() -> None:
    known = evaluation()
    nan = Interval(math.nan, math.nan, math.nan, 0)
    without = replace(known, measures=known.measures[1:])
    unknown = replace(known, measures=(replace(known.measures[0], interval=nan), *known.measures[1:]))
    for one in (without, unknown):
        assert failures(requirements_of("fidelity>=-9"), one) == [
            "fidelity>=-9 is required, and fidelity was not measured."
        ]


def test_every_measure_that_has_a_threshold_can_be_required_and_is_explained() -> None:
    assert {one.measure for one in THRESHOLDS} <= set(MEASURES)
    assert all(requirements_of(f"{name}>=0") and words.line for name, words in MEASURES.items())
