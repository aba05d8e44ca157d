"""Draw the questions with base and tuned model, look at the images, measure, and say what it means."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from lora_studio.data.images.decode import load_image
from lora_studio.errors import StudioError
from lora_studio.evaluate.burn import ASPECTS, aspects_of
from lora_studio.evaluate.copies import SIDE, nearest, small, threshold_of
from lora_studio.evaluate.drawings import Drawings, KeptImage, OnProgress
from lora_studio.evaluate.encoders import ImageEncoder
from lora_studio.evaluate.measures import Compared, Observed, measured, memorisation
from lora_studio.evaluate.questions import in_groups
from lora_studio.evaluate.result import Artist, Evaluation, Measured, Question, Variant
from lora_studio.evaluate.transfer import setbacks_in_words
from lora_studio.evaluate.verdicts import verdicts_of

AT_ONCE = 16  # images that the encoder is given
MOST_KIN = 32  # training images that are compared with one another, which takes the square of their number
MOST_NEAR = 12  # pairs that an evaluation names
USUAL_SEEDS = (1000, 1001, 1002)
FEWEST_SEEDS, MOST_SEEDS = 2, 32


@dataclass(frozen=True)
class Inquiry:
    """What is drawn, and what it is compared with."""

    questions: Sequence[Question]
    references: Sequence[Path]  # images of what was taught, not trained on; or else the training images
    training: Sequence[Path] = ()
    seeds: Sequence[int] = USUAL_SEEDS
    references_are_training: bool = False
    background: str = "white"  # behind what is transparent
    relative_losses: Mapping[str, float] = field(default_factory=dict)  # on validation images, of the base's
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class Evaluated:
    """The evaluation, and the images that it rests on."""

    evaluation: Evaluation
    base: Sequence[KeptImage]
    tuned: Sequence[KeptImage]
    training: Mapping[str, Path]  # by the name in `Near.training_image`

    def drawn(self, question: int, seed: int, tuned: bool) -> Image.Image | None:
        """The image of the base or the tuned model."""
        some = self.tuned if tuned else self.base
        found = next((one for one in some if (one.question, one.seed) == (question, seed)), None)
        return None if found is None else found.image()

    def training_image(self, name: str) -> Image.Image | None:
        """A training image as it lies in its folder."""
        return load_image(self.training[name]) if name in self.training else None


class Evaluator:
    """Asks the same of any number of variants; the base and the references are looked at once."""

    def __init__(
        self,
        artist: Artist,
        encoder: ImageEncoder,
        asked: Inquiry,
        *,
        folder: Path | None = None,
        on_progress: OnProgress = lambda what, done, total: None,
    ) -> None:
        """`folder`: of the images, instead of the cache's. Raises StudioError for what cannot be measured."""
        _check(asked)
        self.artist, self.encoder, self.asked, self.on_progress = artist, encoder, asked, on_progress
        self.drawings = Drawings(asked.questions, asked.seeds, folder)
        self._base: tuple[list[KeptImage], Observed] | None = None
        self._compared_with: tuple[Observed, Observed] | None = None
        self._threshold: float | None = None
        self._texts = encoder.texts([one.text for one in asked.questions])

    def evaluate(self, name: str, variant: Variant, facts: Mapping[str, str | int | float]) -> Evaluated:
        """Of one variant of what `name` is. Images that were drawn before are not drawn again."""
        began = time.monotonic()
        if self._base is None:
            drawn = self.drawings.of(self.artist, None, self.on_progress)
            self._base = drawn, self._look("looking at the base's images", drawn)
        base, base_looks = self._base
        tuned = self.drawings.of(self.artist, variant, self.on_progress)
        looks = self._look("looking at tuned images", tuned)
        references, training = self._references()
        questions, names = len(self.asked.questions), _names(self.asked.training)
        compared = Compared(
            questions=self.asked.questions,
            seeds=self.asked.seeds,
            base=base_looks.by_question(questions),
            tuned=looks.by_question(questions),
            texts=self._texts,
            references=references,
            training=training,
            training_names=names,
            references_are_training=self.asked.references_are_training,
        )
        if self._threshold is None:
            own = references.small[: 0 if self.asked.references_are_training else None]
            self._threshold = copy_threshold(training.small, own)
        threshold = self._threshold
        copied, near = memorisation(compared, threshold)
        found = [*measured(compared, self.asked.relative_losses), *([copied] if copied else [])]
        told = dict(facts) | self._facts(threshold) | {"seconds": round(time.monotonic() - began, 1)}
        evaluation = Evaluation(
            name=name,
            variant=variant,
            facts=told,
            questions=tuple(self.asked.questions),
            seeds=tuple(self.asked.seeds),
            measures=tuple(found),
            verdicts=verdicts_of(found),
            nearest=tuple(near[:MOST_NEAR]),
            notes=(*self.asked.notes, *_lacking(found, compared), *self._setbacks(found)),
        )
        return Evaluated(evaluation, base, tuned, dict(zip(names, self.asked.training, strict=True)))

    def _setbacks(self, found: Sequence[Measured]) -> list[str]:
        return [*setbacks_in_words(self.asked.questions, found, self.asked.relative_losses)]

    def _facts(self, threshold: float) -> dict[str, str | int | float]:
        drawn = {key: value for key, value in self.artist.drawn_with.items() if key != "base"}
        return drawn | {
            "base_fingerprint": str(self.artist.drawn_with.get("base", "")),
            "encoder": self.encoder.name,
            "encoder_sha256": self.encoder.digest,
            "references": len(self.asked.references),
            "training_images": len(self.asked.training),
            "copy_threshold": round(threshold, 4),
        }

    def _references(self) -> tuple[Observed, Observed]:
        if self._compared_with is None:
            asked = self.asked
            references = self._look("looking at reference images", asked.references)
            same = list(asked.training) == list(asked.references)
            training = references if same else self._glance(asked.training)
            self._compared_with = references, training
        return self._compared_with

    def _glance(self, images: Sequence[Path]) -> Observed:
        """What copies are found by, of images that may be very many: no encoder sees them."""
        what, smaller = "looking at training images", list[Tensor]()
        for done, path in enumerate(images):
            self.on_progress(what, done, len(images))
            smaller.append(small(self._opened(path)))
        return replace(_nothing(), small=torch.stack(smaller)) if smaller else _nothing()

    def _look(self, what: str, images: Sequence[KeptImage] | Sequence[Path]) -> Observed:
        """At a few images at a time, of which only what is measured stays in memory."""
        features, aligned, aspects, smaller = [], [], list[list[float]](), list[Tensor]()
        for first in range(0, len(images), AT_ONCE):
            self.on_progress(what, first, len(images))
            some = [self._opened(one) for one in images[first : first + AT_ONCE]]
            features.append(self.encoder.features(some))
            if (rows := self.encoder.aligned(some)) is not None:
                aligned.append(rows)
            aspects += [aspects_of(one) for one in some]
            smaller += [small(one) for one in some]
        if not images:
            return _nothing()
        self.on_progress(what, len(images), len(images))
        of_texts = torch.cat(aligned) if aligned else None
        shown = torch.tensor(aspects, dtype=torch.float32)
        return Observed(torch.cat(features), of_texts, shown, torch.stack(smaller))

    def _opened(self, one: KeptImage | Path) -> Image.Image:
        return load_image(one, background=self.asked.background) if isinstance(one, Path) else one.image()


def copy_threshold(training: Tensor, references: Tensor) -> float:
    """`threshold_of`, which compares all training images with all, by at most `MOST_KIN` of them.

    From all over the folder, and with those that the references come nearest to.
    """
    number = len(training)
    chosen = (
        {place * number // MOST_KIN for place in range(MOST_KIN)} if number > MOST_KIN else {*range(number)}
    )
    if number > MOST_KIN and len(references):
        chosen |= {*nearest(references, training)[1].tolist()}
    return threshold_of(training[sorted(chosen)], references)


def _nothing() -> Observed:
    return Observed(torch.zeros(0, 1), None, torch.zeros(0, len(ASPECTS)), torch.zeros(0, 3, SIDE, SIDE))


def _check(asked: Inquiry) -> None:
    if not asked.questions:
        raise StudioError("there is nothing to ask: no trigger, no captions and no prompts are known.")
    check_seeds(asked.seeds)


def check_seeds(seeds: Sequence[int]) -> None:
    """Raises StudioError if there are too few or too many, or one twice."""
    if not FEWEST_SEEDS <= len(set(seeds)) == len(seeds) <= MOST_SEEDS:
        raise StudioError(
            f"an evaluation has {len(seeds)} seeds; it must be {FEWEST_SEEDS} to {MOST_SEEDS} "
            "different ones, 3 are common."
        )


def _names(paths: Sequence[Path]) -> list[str]:
    """Without folders; of two of a name the second says so."""
    found = list[str]()
    for path in paths:
        number = sum(one == path.name or one.startswith(f"{path.name} (") for one in found)
        found.append(f"{path.name} ({number + 1})" if number else path.name)
    return found


def _lacking(found: Sequence[object], compared: Compared) -> list[str]:
    """Why something was not measured."""
    there, notes = {getattr(one, "name", "") for one in found}, list[str]()
    groups = {group for group, numbers in in_groups(compared.questions).items() if not numbers}
    if groups:
        named = ", ".join(sorted(group.replace("_", " ") for group in groups))
        notes.append(f"nothing was asked of these groups of prompts: {named}")
    if "fidelity" not in there:
        few = len(compared.references.features) < 2 or len(compared.questions) < 4
        why = (
            "there are fewer than two reference images, or prompts of a kind"
            if few
            else "the encoder tells the reference images and the base's images hardly apart"
        )
        notes.append(f"fidelity and leakage were not measured: {why}")
    if "prompt_following" not in there:
        why = (
            "the encoder reads no texts"
            if compared.texts is None
            else "the base's images do not fit their texts"
        )
        notes.append(f"prompt following was not measured: {why}")
    return notes
