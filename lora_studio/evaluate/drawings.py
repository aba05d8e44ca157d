"""What base and tuned model drew, each image kept by all that it depends on, so that none is drawn twice."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from lora_studio.data.cache.store import mark_as_used
from lora_studio.evaluate.previews import as_png
from lora_studio.evaluate.result import Artist, Question, Size, Variant
from lora_studio.files import cache_folder, say_unwritable, write_atomically

KIND = "drawn"  # its folder in the cache
OnProgress = Callable[[str, int, int], object]
"""Hears of which work how much of how much is done."""


@dataclass(frozen=True)
class KeptImage:
    """Where the image of a question and a seed lies."""

    question: int
    seed: int
    path: Path

    def image(self) -> Image.Image:
        with Image.open(self.path, formats=["PNG"]) as image:
            return image.convert("RGB")


class Drawings:
    """The images of all questions with all seeds, of the base or of a variant.

    The seeds of a question are drawn together, so that an image is the same whatever else is asked. Each is
    written when it is drawn: after a kill, only what is missing is drawn.
    """

    def __init__(
        self, questions: Sequence[Question], seeds: Sequence[int], folder: Path | None = None
    ) -> None:
        self.questions, self.seeds = tuple(questions), tuple(seeds)
        self.folder = folder or cache_folder() / KIND

    def of(self, artist: Artist, variant: Variant | None, on_progress: OnProgress) -> list[KeptImage]:
        """By question and then by seed. Raises StudioError if they cannot be kept."""
        title = "base's images" if variant is None else "tuned images"
        asked = dict.fromkeys((one.prompt, one.size) for one in self.questions)
        places = {one: self._paths(artist, variant, *one) for one in asked}
        missing = [one for one, paths in places.items() if not all(map(is_whole, paths))]
        for done, (prompt, size) in enumerate(missing):
            on_progress(title, done * len(self.seeds), len(missing) * len(self.seeds))
            drawn = artist.draw([(prompt, seed) for seed in self.seeds], variant, size)
            for path, image in zip(places[prompt, size], drawn, strict=True):
                with say_unwritable(path):
                    write_atomically(path, as_png(image.convert("RGB")))
        if missing:
            on_progress(title, len(missing) * len(self.seeds), len(missing) * len(self.seeds))
        return [
            KeptImage(number, seed, path)
            for number, question in enumerate(self.questions)
            for seed, path in zip(self.seeds, places[question.prompt, question.size], strict=True)
        ]

    def _paths(self, artist: Artist, variant: Variant | None, prompt: str, size: Size | None) -> list[Path]:
        learned = "" if variant is None else artist.learned(variant) or _unlike_any_other()
        told = dict(artist.drawn_with) | {"prompt": prompt, "learned": learned, "seeds": list(self.seeds)}
        if size is not None:
            told["size"] = list(size)
        if learned and variant is not None:
            told["strength"] = variant.strength
        names = [json.dumps(told | {"seed": seed}, sort_keys=True) for seed in self.seeds]
        return [self.folder / f"{hashlib.sha256(one.encode()).hexdigest()}.png" for one in names]


def is_whole(path: Path) -> bool:
    """Whether there is a PNG there whose checksums hold; it counts as used today."""
    try:
        with Image.open(path, formats=["PNG"]) as image:
            image.verify()
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return False
    mark_as_used(path)
    return True


def in_groups_of(drawings: Sequence[KeptImage], size: int) -> Iterator[Sequence[KeptImage]]:
    for first in range(0, len(drawings), size):
        yield drawings[first : first + size]


def _unlike_any_other() -> str:
    return f"not kept {time.time_ns()}"
