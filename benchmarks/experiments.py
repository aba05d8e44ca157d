"""The two experiments of the learning benchmark: what style and subject LoRAs do to held-out prompts."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from diffusers import DiffusionPipeline
from figures import Criterion, Share, at_least, at_most, difference_of, share_of
from images import Prompt, generate
from judge import Judge, Verdict
from PIL import Image

from lora_studio.pocket.samples import FLOW_STYLE, STYLE, SUBJECT, SUBJECT_TRIGGER, TRIGGERS, subject_samples
from lora_studio.pocket.scenes import BACKGROUNDS, COLOURS, POSITIONS, held_out_scenes
from lora_studio.pocket.shapes import CLASS_WORDS

CLEARLY = 0.20  # "clearly fewer images without the trigger": by so much, and the interval excludes zero
_SCENES_SEED = 9  # not the card's, nor the stages' own


@dataclass(frozen=True)
class Limits:
    """What a base's LoRAs have to keep to: least shares learned, most without the trigger, most falls."""

    style: float
    subject: float
    leak: float | None  # of the tuned base without the trigger
    object_fall: float
    background_fall: float | None  # of the style; the subject's is 0.1


LIMITS = {
    STYLE: Limits(0.85, 0.70, None, 0.10, None),  # the woodcut hides backgrounds
    FLOW_STYLE: Limits(0.90, 0.75, 0.05, 0.08, 0.15),
}
"""By the style that the base is taught."""

BASE_PLAIN = "base, no trigger"
BASE_TRIGGER = "base, trigger"
TUNED_TRIGGER = "tuned, trigger"
TUNED_PLAIN = "tuned, no trigger"


@dataclass(frozen=True)
class Question:
    """A prompt with and without the trigger words, on the same noise, and what its image should show."""

    with_trigger: str
    without_trigger: str
    seed: int
    object: str
    background: str


@dataclass(frozen=True)
class Setting:
    """What every arm has in common."""

    pipe: DiffusionPipeline
    judge: Judge
    guidance: float
    style: str = STYLE


@dataclass(frozen=True)
class Outcome:
    """One experiment: its part of the report, its criteria, and the images of its arms."""

    report: dict[str, object]
    criteria: list[Criterion]
    images: dict[str, list[Image.Image]]


def style_questions(count: int, seed: int, style: str = STYLE) -> list[Question]:
    """Scenes whose object-colour-background triple neither the base nor the LoRA was trained on."""
    scenes = held_out_scenes(count, seed=_SCENES_SEED)
    return [
        Question(s.caption(TRIGGERS[style]), s.caption(), seed * 10**6 + i, s.things[0].name, s.background)
        for i, s in enumerate(scenes)
    ]


def subject_questions(count: int, seed: int) -> list[Question]:
    """The subject at positions and backgrounds that no training image has together, each on new noise."""
    shown = {sample.caption for sample in subject_samples()}
    colours = itertools.cycle(COLOURS)
    questions: list[Question] = []
    for position, (background, phrase) in itertools.cycle(itertools.product(POSITIONS, BACKGROUNDS.items())):
        triggered = f"a {SUBJECT_TRIGGER} {position} {phrase}"
        if triggered in shown:
            continue
        colour, class_word = next(colours), CLASS_WORDS[SUBJECT]
        plain = f"{'an' if colour[0] in 'aeiou' else 'a'} {colour} {class_word} {position} {phrase}"
        questions.append(Question(triggered, plain, seed * 10**6 + len(questions), class_word, background))
        if len(questions) == count:
            break
    return questions


@contextmanager
def tuned(pipe: DiffusionPipeline, lora: Path) -> Iterator[None]:
    """The pipeline with the LoRA file loaded by diffusers, and as it was afterwards."""
    pipe.load_lora_weights(str(lora.parent), weight_name=lora.name, local_files_only=True)
    if not pipe.get_list_adapters():
        raise SystemExit(
            f"{lora.name}: diffusers found no adapter in it; run lora-studio verify on the file."
        )
    try:
        yield
    finally:
        pipe.unload_lora_weights()


def draw_arms(
    setting: Setting, questions: list[Question], lora: Path, name: str
) -> dict[str, list[Image.Image]]:
    """The images of all four arms, on the same seeds."""
    triggered = [Prompt(q.with_trigger, q.seed) for q in questions]
    plain = [Prompt(q.without_trigger, q.seed) for q in questions]

    def arm(prompts: list[Prompt], title: str) -> list[Image.Image]:
        return generate(setting.pipe, prompts, guidance=setting.guidance, name=f"{name}: {title}")

    images = {BASE_PLAIN: arm(plain, BASE_PLAIN), BASE_TRIGGER: arm(triggered, BASE_TRIGGER)}
    with tuned(setting.pipe, lora):
        images[TUNED_TRIGGER] = arm(triggered, TUNED_TRIGGER)
        images[TUNED_PLAIN] = arm(plain, TUNED_PLAIN)
    return images


def _hits(
    verdicts: dict[str, list[Verdict]], right: Callable[[Verdict, Question], bool], questions: list[Question]
) -> dict[str, list[bool]]:
    return {
        arm: [right(v, q) for v, q in zip(seen, questions, strict=True)] for arm, seen in verdicts.items()
    }


def _clearly_more_with_trigger(name: str, learned: dict[str, list[bool]]) -> tuple[Share, Criterion]:
    gain = difference_of(learned[TUNED_TRIGGER], learned[TUNED_PLAIN])
    passed = gain.share >= CLEARLY and gain.low > 0
    return gain, Criterion(name, gain.share, f">= {CLEARLY:g}, interval above 0", passed)


def _at_most(name: str, share: Share, limit: float | None) -> tuple[Criterion, ...]:
    return () if limit is None else (at_most(name, share.share, limit),)


def _report(hits: dict[str, dict[str, list[bool]]], distinct: int) -> dict[str, object]:
    arms = {
        arm: {figure: asdict(share_of(by_arm[arm])) for figure, by_arm in hits.items()}
        for arm in (BASE_PLAIN, BASE_TRIGGER, TUNED_TRIGGER, TUNED_PLAIN)
    }
    return {"distinct_prompts": distinct, "arms": arms}


def style_experiment(setting: Setting, lora: Path, count: int, seed: int) -> Outcome:
    """Does the style come, only when called, and do the objects stay what they were?"""
    name, limits = setting.style, LIMITS[setting.style]
    questions = style_questions(count, seed, name)
    images = draw_arms(setting, questions, lora, "style")
    verdicts = {arm: setting.judge.classify(made) for arm, made in images.items()}
    style = _hits(verdicts, lambda v, q: v.style == name, questions)
    objects = _hits(verdicts, lambda v, q: v.object == q.object, questions)
    backgrounds = _hits(verdicts, lambda v, q: v.background == q.background, questions)
    drop = difference_of(objects[BASE_PLAIN], objects[TUNED_TRIGGER])
    hidden = difference_of(backgrounds[BASE_PLAIN], backgrounds[TUNED_TRIGGER])
    gain, clearly = _clearly_more_with_trigger("style: tuned, trigger less no trigger", style)
    criteria = [
        *(at_most(f"style: {arm}", share_of(style[arm]).share, 0.05) for arm in (BASE_PLAIN, BASE_TRIGGER)),
        at_least(f"style: {TUNED_TRIGGER}", share_of(style[TUNED_TRIGGER]).share, limits.style),
        *_at_most(f"style: {TUNED_PLAIN}", share_of(style[TUNED_PLAIN]), limits.leak),
        at_most("style: fall of object accuracy", drop.share, limits.object_fall),
        *_at_most("style: fall of background accuracy", hidden, limits.background_fall),
        clearly,
    ]
    report = _report({name: style, "object": objects, "background": backgrounds}, _distinct(questions))
    report |= {"trained_style": name, "trigger": TRIGGERS[name], "trigger_gain": asdict(gain)}
    falls = {"object_fall": asdict(drop), "background_fall": asdict(hidden)}
    return Outcome(report | falls, criteria, images)


def subject_experiment(setting: Setting, lora: Path, count: int, seed: int) -> Outcome:
    """Does the character come, only when called, before the background that was asked for?"""
    questions, limits = subject_questions(count, seed), LIMITS[setting.style]
    images = draw_arms(setting, questions, lora, "subject")
    verdicts = {arm: setting.judge.classify(made) for arm, made in images.items()}
    subject = _hits(verdicts, lambda v, q: v.object == SUBJECT, questions)
    kin = _hits(verdicts, lambda v, q: v.object == q.object, questions)
    backgrounds = _hits(verdicts, lambda v, q: v.background == q.background, questions)
    drop = difference_of(backgrounds[BASE_PLAIN], backgrounds[TUNED_TRIGGER])
    gain, clearly = _clearly_more_with_trigger("subject: tuned, trigger less no trigger", subject)
    criteria = [
        *(
            at_most(f"subject: {arm}", share_of(subject[arm]).share, 0.05)
            for arm in (BASE_PLAIN, BASE_TRIGGER)
        ),
        at_least(f"subject: {TUNED_TRIGGER}", share_of(subject[TUNED_TRIGGER]).share, limits.subject),
        *_at_most(f"subject: {TUNED_PLAIN}", share_of(subject[TUNED_PLAIN]), limits.leak),
        at_most("subject: fall of background accuracy", drop.share, 0.10),
        clearly,
    ]
    hits = {SUBJECT: subject, f"plain {CLASS_WORDS[SUBJECT]}": kin, "background": backgrounds}
    report = _report(hits, _distinct(questions)) | {"subject": SUBJECT, "trigger": SUBJECT_TRIGGER}
    return Outcome(report | {"background_fall": asdict(drop), "trigger_gain": asdict(gain)}, criteria, images)


def _distinct(questions: list[Question]) -> int:
    return len({question.with_trigger for question in questions})
