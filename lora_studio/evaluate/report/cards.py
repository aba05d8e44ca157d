"""Prompts with their images, base and tuned side by side, and drawn images beside training images."""

from __future__ import annotations

from lora_studio.evaluate.report.thumbnails import Thumbnails
from lora_studio.evaluate.report.words import figure, finite, measure_words
from lora_studio.evaluate.result import Evaluation, Near
from lora_studio.pages import parts_of, text_of

_MOST_SEEDS = 4  # of a prompt are shown
_OF_A_PROMPT = ("fidelity", "prompt_following", "leakage", "plain_following", "drift")  # by its own images


class Cards:
    """Makes them one by one, as long as there is room for images."""

    def __init__(self, evaluation: Evaluation, thumbnails: Thumbnails) -> None:
        self._evaluation, self.thumbnails = evaluation, thumbnails
        self._anchored = set[int]()

    def question(self, number: int, *, few: bool = False) -> str:
        """A prompt with its images and figures; of `few` those of two seeds, and no anchor."""
        asked = self._evaluation.questions[number]
        seeds = self._evaluation.seeds[: 2 if few else _MOST_SEEDS]
        prompt = text_of(asked.prompt or "(an empty prompt)")
        pairs = "".join(self._pair(number, seed) for seed in seeds)
        anchor = f"best-or-worst-{number}-{len(self._anchored)}" if few else f"question-{number}"
        self._anchored.add(number)
        return _fill("question", anchor=anchor, prompt=prompt, pairs=pairs, figures=self._figures(number))

    def _pair(self, number: int, seed: int) -> str:
        images = "".join(
            _image(self.thumbnails.drawn(number, seed, tuned=tuned), f"{label}, seed {seed}", label)
            for tuned, label in ((False, "base"), (True, "tuned"))
        )
        return _fill("pair", images=images, words=f"seed {seed}")

    def _figures(self, number: int) -> str:
        """What a single prompt shows of each measure that has it."""
        found = []
        for name in _OF_A_PROMPT:
            measured, words = self._evaluation.measure(name), measure_words(name)
            if measured is not None and number in (each := finite(measured.per_question)):
                value = each[number]
                told = {"exact": repr(value), "value": figure(value, words)}
                found.append(_fill("figure", title=text_of(words.title.lower()), **told))
        return " ".join(found)

    def near(self, near: Near) -> str:
        """A drawn image and the training image nearest to it."""
        drawn = self.thumbnails.drawn(near.question, near.seed, tuned=True)
        name, trained = text_of(near.training_image), self.thumbnails.training(near.training_image)
        images = _image(drawn, f"tuned, seed {near.seed}", "drawn")
        images += _image(trained, f"training image {name}", "trained on")
        pill = '<span class="pill error">copied</span>' if near.copied else ""
        prompt = text_of(self._evaluation.questions[near.question].prompt)
        value = f'<data value="{near.similarity!r}">{near.similarity:.3f}</data>'
        words = f"{value} like <bdi>{name}</bdi>; seed {near.seed} of <bdi>{prompt}</bdi>"
        return _fill("near", images=images, pill=pill, words=words)


def _fill(part: str, **values: object) -> str:
    return parts_of(__package__).fill(part, **values)


def _image(uri: str, alt: str, label: str) -> str:
    """`alt` may hold escaped text."""
    return _fill("image" if uri else "noimage", alt=alt, label=label, **({"uri": uri} if uri else {}))
