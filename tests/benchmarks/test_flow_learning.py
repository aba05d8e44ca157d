"""What the benchmark of the second base says of verdicts that are known."""

from __future__ import annotations

from experiments import BASE_PLAIN, TUNED_PLAIN, TUNED_TRIGGER, style_questions
from figures import Share
from flow_learning import CHOSEN_ON, Finding, Piece, digest_of, findings, markdown, questions_of

from lora_studio.pocket.samples import FLOW_STYLE

COUNT, JUDGE = 40, "11"


def piece(seed: int, arms: dict[str, tuple[int, str]]) -> Piece:
    """In each arm the first images show another object, and all of them the style."""
    questions = questions_of("style", COUNT)
    seen = {
        arm: [
            ["nothing" if number < wrong else one.object, one.background, style]
            for number, one in enumerate(questions)
        ]
        for arm, (wrong, style) in arms.items()
    }
    return Piece("style", seed, "", digest_of(questions), COUNT, {JUDGE: seen})


def test_falls_are_counted_against_the_base_and_over_all_seeds() -> None:
    base = piece(0, {BASE_PLAIN: (4, "plain")})
    tuned = [
        piece(seed, {TUNED_TRIGGER: (wrong, FLOW_STYLE), TUNED_PLAIN: (4, "plain")})
        for seed, wrong in ((1, 8), (2, 4))
    ]
    shown, leaking, objects, backgrounds = findings(base, tuned, JUDGE)
    assert (shown.value.share, shown.holds) == (1.0, True)
    assert (leaking.value.share, leaking.holds) == (0.0, True)
    assert objects.by_seed == [0.1, 0.0] and objects.value.share == 0.05
    assert objects.value.high > 0.08 and not objects.holds  # the mean alone would hold
    assert backgrounds.value == Share(0.0, 0.0, 0.0) and backgrounds.holds


def test_the_style_is_asked_for_what_its_recipe_was_not_chosen_on() -> None:
    chosen_on, new = style_questions(CHOSEN_ON, 0, FLOW_STYLE), questions_of("style", 600)
    assert len(new) == 600 and digest_of(new) != digest_of(chosen_on)
    assert not {one.without_trigger for one in new} & {one.without_trigger for one in chosen_on}
    assert not {one.seed for one in new} & {one.seed for one in chosen_on}


def test_a_demand_is_met_by_the_whole_interval_alone() -> None:
    near = Share(0.92, 0.89, 0.95)
    assert not Finding("style", JUDGE, "shown", near, [0.92], least=0.9).holds
    assert Finding("style", JUDGE, "shown", near, [0.92], least=0.89).holds
    assert not Finding("style", JUDGE, "lost", near, [0.92], most=0.94).holds
    row = markdown([Finding("style", JUDGE, "lost", near, [0.92], most=0.94)]).splitlines()[2]
    assert row == "| style | 11 | lost | 92.0 % (89.0 to 95.0) | <= 94% | 92.0% | FAILS |"
