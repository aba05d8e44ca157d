"""What the images of base and tuned model are measured by. Every figure is paired: same prompt, same seed.

All but the validation loss are free of the encoder's scale: 0 is the base, and 1 what the definition says, so
that thresholds hold for every encoder. Only figures of the same encoder can be compared, though.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lora_studio.evaluate.burn import burnt
from lora_studio.evaluate.copies import nearest
from lora_studio.evaluate.questions import in_groups
from lora_studio.evaluate.result import Group, Measured, Near, Question
from lora_studio.evaluate.statistics import counted_share_of, mean_of, ratio_of, share_of
from lora_studio.evaluate.way import Way

CALLED: tuple[Group, ...] = ("like_training", "new_contexts")
"""Groups whose prompts call what was learned."""
PLAIN: tuple[Group, ...] = ("class_alone", "unrelated")
SHARPNESS = 30.0  # of the softmax over texts; CLIP learns one of 100, by which hardly anything is in between


@dataclass(frozen=True)
class Observed:
    """What is known of images: features [..., D] and aligned [..., E] of length 1, aspects [..., 4]."""

    features: Tensor
    aligned: Tensor | None
    aspects: Tensor
    small: Tensor  # [..., 3, H, W] in 0..1

    def by_question(self, questions: int) -> Observed:
        """The rows as [questions, seeds]."""

        def folded(one: Tensor) -> Tensor:
            return one.unflatten(0, (questions, -1))

        aligned = None if self.aligned is None else folded(self.aligned)
        return Observed(folded(self.features), aligned, folded(self.aspects), folded(self.small))


@dataclass(frozen=True)
class Compared:
    """The base's and the tuned images by question and seed, and all that they are compared with."""

    questions: Sequence[Question]
    seeds: Sequence[int]
    base: Observed
    tuned: Observed
    texts: Tensor | None  # [Q, E]
    references: Observed  # [R]
    training: Observed  # [M]
    training_names: Sequence[str]
    references_are_training: bool

    def numbers(self, groups: Sequence[Group]) -> list[int]:
        """Of the questions of these groups."""
        by_group = in_groups(self.questions)
        return [number for group in groups for number in by_group[group]]


def fidelity(compared: Compared) -> Measured | None:
    """How far images with the trigger have moved from the base's to the references: 1 is all of the way.

    An image is measured by its similarity to the reference images less its similarity to the base's images of
    these prompts: raw cosines alone do not tell one style from another (arXiv 2605.09030). What scatters less
    among images of one kind counts for more (`way.Way`). So 0 is the base with the same prompts, whatever it
    makes of a word that it does not know, and 1 is what a reference image reaches that is left out.
    """
    return _gained("fidelity", compared, CALLED)


def leakage(compared: Compared) -> Measured | None:
    """The same of images without the trigger: fidelity where nothing called it (as DreamBooth's PRES)."""
    return _gained("leakage", compared, PLAIN)


def _gained(name: str, compared: Compared, groups: Sequence[Group]) -> Measured | None:
    numbers, references = compared.numbers(groups), compared.references.features
    if len(numbers) < 2 or len(references) < 2:
        return None
    base, tuned = compared.base.features[numbers], compared.tuned.features[numbers]
    way = Way.between(base, references)
    return _difference(name, numbers, way.gone(base), way.gone(tuned)) if way.is_clear(base) else None


def prompt_following(compared: Compared, groups: Sequence[Group] = CALLED) -> Measured | None:
    """How surely the encoder finds an image's prompt among those of all questions, less how surely in the
    base's image: 0 is as well as the base, -1 is never again what it always found.

    The softmax of an image's cosines to all texts, with the class words in the trigger's place (as CLIP is
    trained, arXiv 2103.00020; with the highest alone it is R-precision, arXiv 1711.10485). From each text's
    cosines its mean over all these images is taken before: a style moves images towards some texts and away
    from others, whatever is in them.
    """
    name = "prompt_following" if tuple(groups) == CALLED else "plain_following"
    numbers, texts = compared.numbers(groups), compared.texts
    if texts is None or compared.base.aligned is None or len(numbers) < 2:
        return None
    found = {arm: _prompt_shares(compared, looks, numbers, texts) for arm, looks in _arms(compared).items()}
    return _difference(name, numbers, found["base"], found["tuned"])


def _prompt_shares(compared: Compared, looks: Observed, numbers: Sequence[int], texts: Tensor) -> Tensor:
    """[Q, S], 0 to 1; texts that are the same as an image's own are none of the others."""
    assert looks.aligned is not None
    cosines = torch.einsum("qse,te->qst", looks.aligned[numbers], texts)
    cosines = (cosines - cosines.mean(dim=(0, 1))) * SHARPNESS
    words = [one.text for one in compared.questions]
    twice = torch.tensor(
        [[n != own and words[n] == words[own] for n in range(len(words))] for own in numbers]
    )
    shares = cosines.masked_fill(twice[:, None], float("-inf")).softmax(dim=2)
    return shares[torch.arange(len(numbers)), :, numbers]


def plain_following(compared: Compared) -> Measured | None:
    """The same of images without the trigger: whether what the base could draw is still there."""
    return prompt_following(compared, PLAIN)


def drift(compared: Compared, groups: Sequence[Group] = PLAIN) -> Measured | None:
    """How much images without the trigger changed: 1 is as much as another seed changes the base's.

    The mean distance of each image to the base's of the same seed, over the mean distance between the base's
    images of two seeds. A distance is the root mean square of the pixels' differences at 48 x 48: networks'
    features are made to hardly see what another seed changes.
    """
    numbers = compared.numbers(groups)
    if not numbers or len(compared.seeds) < 2:
        return None
    base, tuned = compared.base.small[numbers], compared.tuned.small[numbers]
    changed = (base - tuned).flatten(2).square().mean(dim=2).sqrt().mean(dim=1)
    return _ratio("drift" if tuple(groups) == PLAIN else "change", numbers, changed, _scatter(base))


def change(compared: Compared) -> Measured | None:
    """Drift's measure of the images with the trigger: 0 is that nothing was learned."""
    return drift(compared, CALLED)


def diversity(compared: Compared) -> Measured | None:
    """How different images of one prompt with the trigger are from seed to seed: 1 is as the base's are.

    The mean distance between two seeds, over the base's (DreamBooth's DIV, there by LPIPS), as for `drift`.
    """
    numbers = compared.numbers(CALLED)
    if not numbers or len(compared.seeds) < 2:
        return None
    base, tuned = compared.base.small[numbers], compared.tuned.small[numbers]
    return _ratio("diversity", numbers, _scatter(tuned), _scatter(base))


def burn(compared: Compared) -> Measured | None:
    """The share of all tuned images that have more clipped colours, contrast, saturation or sharpness than
    any of the base's and of the references, by a margin (`burn.burnt`).
    """
    usual = [compared.base.aspects.flatten(0, 1), compared.references.aspects]
    found = burnt(compared.tuned.aspects, usual).mean(dim=1)
    per_question = dict(enumerate(found.tolist()))
    return Measured("burn", share_of(per_question), per_question)


def memorisation(compared: Compared, threshold: float) -> tuple[Measured | None, list[Near]]:
    """The share of images of captions trained on that are copies of a training image, and the nearest pairs.

    Of other prompts with the trigger if there are none of those, of which most would be copied.
    A copy is one whose similarity (`copies.nearest`) reaches the threshold, which is above all that
    images that were not trained on reach (`copies.threshold_of`). Its interval is of the captions that were
    asked (`statistics.counted_share_of`): what is copied is, whatever comes of other captions.
    """
    numbers, seeds = compared.numbers(CALLED[:1]) or compared.numbers(CALLED), len(compared.seeds)
    if not numbers or not len(compared.training.small):
        return None, []
    found = nearest(compared.tuned.small[numbers].flatten(0, 1), compared.training.small)
    similarity, which = (one.unflatten(0, (len(numbers), seeds)) for one in found)
    copied = similarity >= threshold
    shares = copied.float().mean(dim=1).tolist()
    per_question = dict(zip(numbers, shares, strict=True))
    near = [
        Near(
            question=number,
            seed=seed,
            training_image=compared.training_names[int(which[row, place])],
            similarity=round(similarity[row, place].item(), 4),
            copied=bool(copied[row, place]),
        )
        for row, number in enumerate(numbers)
        for place, seed in enumerate(compared.seeds)
    ]
    near.sort(key=lambda one: -one.similarity)
    return Measured("memorisation", counted_share_of(per_question, seeds), per_question), near


def validation_loss(relative: Mapping[str, float]) -> Measured | None:
    """The loss on validation images, of the base's: 1 is the base's, more is worse (`evaluate.validation`).

    `relative`: by image. Its interval is over images, in the place of questions.
    """
    per_image = dict(enumerate(one for one in relative.values() if math.isfinite(one)))
    return Measured("validation_loss", mean_of(per_image), per_image) if per_image else None


def measured(compared: Compared, relative_losses: Mapping[str, float]) -> list[Measured]:
    """All but memorisation that could be measured."""
    plain = (fidelity, leakage, prompt_following, plain_following, drift, change, diversity, burn)
    found = [*(one(compared) for one in plain), validation_loss(relative_losses)]
    return [one for one in found if one is not None]


def _arms(compared: Compared) -> dict[str, Observed]:
    return {"base": compared.base, "tuned": compared.tuned}


def _difference(name: str, numbers: Sequence[int], base: Tensor, tuned: Tensor) -> Measured:
    """Of [Q, S]."""
    per_question = dict(zip(numbers, (tuned - base).mean(dim=1).tolist(), strict=True))
    means = (base.mean().item(), tuned.mean().item())
    return Measured(name, mean_of(per_question), per_question, *means)


def _ratio(name: str, numbers: Sequence[int], top: Tensor, bottom: Tensor) -> Measured:
    """Of [Q]; a question's own figure is its part over the mean of the others' wholes, which is not 0."""
    pairs = dict(zip(numbers, zip(top.tolist(), bottom.tolist(), strict=True), strict=True))
    mean = bottom.mean().item()
    per_question = {number: one / mean if mean else math.nan for number, (one, _) in pairs.items()}
    return Measured(name, ratio_of(pairs), per_question)


def _scatter(images: Tensor) -> Tensor:
    """[Q, S, 3, H, W] -> [Q], the mean distance over all pairs of seeds."""
    seeds, rows = images.shape[1], images.flatten(2)
    distances = (rows[:, :, None] - rows[:, None]).square().mean(dim=3).sqrt()
    return distances.sum(dim=(1, 2)) / (seeds * (seeds - 1))
