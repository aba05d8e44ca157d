"""What to try next: a small table from verdicts to what changes them, each with its reason."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lora_studio.evaluate.result import Evaluation
from lora_studio.evaluate.statistics import MOST_QUESTIONS
from lora_studio.text import plural


@dataclass(frozen=True)
class Suggestion:
    """Something to do, and why it helps with what was measured."""

    what: str
    why: str


_SUGGESTIONS: Mapping[str, Sequence[Suggestion]] = {
    "no effect": (
        Suggestion(
            "See whether the file is for this base: lora-studio verify FILE --base BASE.",
            "Layers that a base does not have are passed over, and nothing is drawn otherwise.",
        ),
        Suggestion(
            "Train longer, or with a training.learning_rate two to five times as high.",
            "What is drawn does not yet differ from the base by more than chance.",
        ),
    ),
    "memorised": (
        Suggestion(
            "Add training images, or end at an earlier checkpoint.",
            "Few images that are shown often are learned by heart, and are drawn again as they are.",
        ),
        Suggestion(
            "Lower adapter.rank, or set data.flip for what may be mirrored.",
            "Less room and more views leave less to learn by heart.",
        ),
    ),
    "burnt": (
        Suggestion(
            "Use a lower strength, or an earlier checkpoint.",
            "Clipped colours and hard contrast come from a change that is too large for the base.",
        ),
        Suggestion(
            "Train with a lower training.learning_rate.",
            "Weights that grew too fast burn at every checkpoint.",
        ),
    ),
    "leaks": (
        Suggestion(
            "Set objective.preservation, e.g. to 0.2 for a subject and 0.6 for a style.",
            "The class without the trigger is then trained to stay as the base draws it.",
        ),
        Suggestion(
            "Or add [data.regularization_images].",
            "Images of the class without the trigger in every batch do the same with images in place of the "
            "base's prediction.",
        ),
    ),
    "overfitted": (
        Suggestion(
            "Use an earlier checkpoint, or fewer training.steps.",
            "What the base knew is lost while little is won any more.",
        ),
        Suggestion(
            "Write captions that name what shall not be learned: place, light, pose.",
            "What no caption names becomes a part of the trigger.",
        ),
    ),
    "worse than the base": (
        Suggestion(
            "Use a lower strength, or an earlier checkpoint.",
            "A smaller change takes less of what the base could do.",
        ),
        Suggestion(
            "Set objective.preservation, or add [data.regularization_images].",
            "Both hold on to what the base draws without the trigger.",
        ),
    ),
    "learned": (
        Suggestion(
            "Look at the prompts with the lowest fidelity below, and add images of what they miss.",
            "The mean is above its threshold; what is left to win is in single prompts.",
        ),
    ),
}
_NOTHING = Suggestion(
    "Look at the images below.",
    "No measure is far enough from its threshold to say what would help.",
)


def advice_for(evaluation: Evaluation) -> list[Suggestion]:
    """By the verdicts' words in the order of the table, the gravest first; at least one."""
    decided = {one.word for one in evaluation.verdicts if one.decided}
    found = [one for word, several in _SUGGESTIONS.items() if word in decided for one in several]
    if decided - {"learned"}:  # single prompts come after what is wrong with all
        found = [one for one in found if one not in _SUGGESTIONS["learned"]]
    undecided = [
        one for one in evaluation.verdicts if not one.decided and 0 < one.more_questions < MOST_QUESTIONS
    ]
    if undecided:
        more = max(one.more_questions for one in undecided)
        words = ", ".join(f"{one.word!r}" for one in undecided)
        found.append(
            Suggestion(
                f"Ask about {plural(more, 'prompt')} more: --count, or --prompts.",
                f"The intervals hold their thresholds, so that {words} can neither be said nor ruled out.",
            )
        )
    return list(dict.fromkeys(found)) or [_NOTHING]
