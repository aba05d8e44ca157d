"""Evaluations that no model was needed for, and images to go with them."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

from PIL import Image, ImageDraw

from lora_studio.evaluate.report import ReportImages
from lora_studio.evaluate.result import (
    GROUPS,
    Evaluation,
    Interval,
    Measured,
    Near,
    Question,
    Variant,
    Verdict,
)

FIGURES = {  # name -> value, half of the interval, base, tuned
    "fidelity": (0.613, 0.05, 0.0, 0.613),
    "leakage": (0.211, 0.03, 0.0, 0.211),
    "prompt_following": (-0.112, 0.08, 1.0, 0.888),
    "plain_following": (-0.012, 0.06, 1.0, 0.988),
    "drift": (0.48, 0.09, None, None),
    "change": (1.31, 0.11, None, None),
    "diversity": (0.91, 0.08, None, None),
    "burn": (0.04, 0.02, None, None),
    "validation_loss": (0.874, 0.03, None, None),
    "memorisation": (0.02, 0.02, None, None),
}
VERDICTS = (
    Verdict("learned", "fidelity", "With the trigger its images go 61% of the way to the reference images."),
    Verdict("leaks", "leakage", "What was learned shows in prompts without the trigger, too."),
    Verdict(
        "memorised",
        "memorisation",
        "The interval holds the threshold.",
        decided=False,
        more_questions=24,
    ),
)


def evaluation(*, name: str = "woodcut", each: int = 9, seeds: Sequence[int] = (1, 2, 3)) -> Evaluation:
    """One with `each` questions in each group, and all that an evaluation can have."""
    random_one = random.Random(7)
    questions = tuple(
        Question(group, f"{group.replace('_', ' ')}, number {number}, a zwx woodcut of a harbour", "text")
        for group in GROUPS
        for number in range(each)
    )
    return Evaluation(
        name=name,
        variant=Variant(400, 0.8),
        facts={
            "base": "pocket",
            "encoder": "pocket",
            "encoder_sha256": "4f" * 32,
            "sampler": "ddim",
            "steps": 20,
            "guidance": 4.5,
            "images": len(questions) * len(seeds) * 2,
            "seconds": 123.4,
        },
        questions=questions,
        seeds=tuple(seeds),
        measures=tuple(_measured(one, len(questions), random_one) for one in FIGURES),
        verdicts=VERDICTS,
        nearest=tuple(Near(n, 1, f"boat_{n}.png", 0.97 - n / 20, copied=n == 0) for n in range(min(5, each))),
        notes=("clip was asked of images of 224 x 224 pixels",),
    )


def _measured(name: str, questions: int, chance: random.Random) -> Measured:
    value, half, base, tuned = FIGURES[name]
    interval = Interval(value, value - half, value + half, questions)
    each = {number: chance.gauss(value, half) for number in range(questions)}
    return Measured(name, interval, each if name != "validation_loss" else {}, base, tuned)


def with_prompts(known: Evaluation, prompt: str) -> Evaluation:
    """The same, asked of this prompt only."""
    return replace(known, questions=tuple(replace(one, prompt=prompt) for one in known.questions))


def drawn_image(question: int, seed: int, tuned: bool, side: int = 96) -> Image.Image:
    """A disc on a ground, another one for each question, seed and model."""
    chance = random.Random(f"{question} {seed} {tuned}")
    colours = [tuple(chance.randrange(256) for _ in range(3)) for _ in range(2)]
    image = Image.new("RGB", (side, side), colours[0])
    place = chance.randrange(side // 2)
    ImageDraw.Draw(image).ellipse((place, place, place + side // 2, place + side // 2), fill=colours[1])
    return image


def report_images(*, side: int = 96) -> ReportImages:
    """For `write_report`: any number of drawn images, and training images of every name."""
    return ReportImages(
        lambda question, seed, tuned: drawn_image(question, seed, tuned, side),
        lambda name: drawn_image(len(name), 0, False, side),
    )
