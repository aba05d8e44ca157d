"""The evaluator with an artist whose images are known: what it drew is found in what it says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
import torch
from PIL import Image

from lora_studio.evaluate import evaluation
from lora_studio.evaluate.copies import COPY, small, threshold_of
from lora_studio.evaluate.encoders import load_encoder
from lora_studio.evaluate.evaluation import Evaluated, Evaluator, Inquiry, copy_threshold
from lora_studio.evaluate.questions import Taught, pocket_contexts, questions_for
from lora_studio.evaluate.result import Size, Variant
from lora_studio.pocket.scenes import draw, held_out_scenes

SIZES: tuple[Size, ...] = ((48, 80), (80, 48), (64, 64), (40, 96))
SCENES = held_out_scenes(60, seed=9)
CAPTIONS = tuple(f"{one.caption()}, zwx woodcut" for one in SCENES[: len(SIZES)])


class Memory:
    """Draws other scenes; of the first captions that were trained on their images, at the sizes of these."""

    drawn_with: Mapping[str, str | int | float] = {"base": "scenes", "side": 64}

    def __init__(self, copied: int) -> None:
        self.copied, self._others = CAPTIONS[:copied], iter(SCENES[len(SIZES) :] * 9)

    def learned(self, variant: Variant) -> str:
        return "by heart"

    def draw(
        self, asked: Sequence[tuple[str, int]], variant: Variant | None, size: Size | None = None
    ) -> list[Image.Image]:
        wide, high = size or (64, 64)
        return [
            trained_image(CAPTIONS.index(prompt)).resize((wide, high))
            if variant and prompt in self.copied and size == SIZES[CAPTIONS.index(prompt)]
            else draw(next(self._others), wide, high, style="woodcut" if variant else "plain")
            for prompt, _ in asked
        ]


def trained_image(number: int) -> Image.Image:
    """Twice as large as it was trained on."""
    wide, high = SIZES[number]
    return draw(SCENES[number], 2 * wide, 2 * high, style="woodcut")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Path], list[Path]]:
    """Training images of several aspect ratios, and references."""
    folder = tmp_path_factory.mktemp("known")
    shown = [trained_image(number) for number in range(len(SIZES))]
    shown += [draw(one, 64, 64, style="woodcut") for one in held_out_scenes(6, seed=12)]
    paths = [folder / f"{number}.png" for number in range(len(shown))]
    for path, image in zip(paths, shown, strict=True):
        image.save(path)
    return paths[: len(SIZES)], paths[len(SIZES) :]


def evaluated(copied: int, images: tuple[list[Path], list[Path]], folder: Path) -> Evaluated:
    sizes = {caption: (size,) for caption, size in zip(CAPTIONS, SIZES, strict=True)}
    questions = questions_for(Taught("zwx woodcut", "", CAPTIONS, sizes), pocket_contexts(), count=len(SIZES))
    asked = Inquiry(questions, references=images[1], training=images[0], seeds=(1, 2))
    return Evaluator(Memory(copied), load_encoder("pocket"), asked, folder=folder).evaluate(
        "a", Variant(), {}
    )


def test_copies_of_training_images_of_other_aspect_ratios_are_found_and_no_others(images, tmp_path) -> None:
    found = evaluated(3, images, tmp_path).evaluation
    assert found.measure("memorisation").interval.value == 3 / 4
    assert "memorised" in [one.word for one in found.verdicts if one.decided]
    copied = {(one.question, one.training_image) for one in found.nearest if one.copied}
    assert copied == {(number, f"{number}.png") for number in range(3)}


def test_of_many_training_images_some_and_those_like_references_say_what_a_copy_is(monkeypatch) -> None:
    monkeypatch.setattr(evaluation, "MOST_KIN", 3)
    images = [draw(one, 48, 48, style="woodcut") for one in held_out_scenes(7, seed=5)]
    training, own = torch.stack([small(one) for one in images]), torch.zeros(0, 3, 48, 48)
    assert copy_threshold(training[:2], own) == threshold_of(training[:2], own)
    assert copy_threshold(training, own) == threshold_of(training[[0, 2, 4]], own)
    near = torch.stack(
        [small(Image.blend(images[5], images[6], 0.2))]
    )  # of the sixth, which is not of the three
    assert copy_threshold(training, near) == threshold_of(training, near) > COPY
