"""A folder of images at a glance: what its files' names and captions say; no image is opened."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lora_studio.data.captions import find_captions
from lora_studio.data.images import is_caption, is_image, is_mask, place
from lora_studio.data.scan.layouts import find
from lora_studio.text import plural

_MOST_CAPTIONS, _MOST_WORDS = 200, 60  # that are compared
_ENDS = frozenset(
    ("a", "an", "the", "of", "in", "on", "at", "with", "and", "is", "by", "for", "to", "photo", "image")
)


@dataclass(frozen=True)
class Glance:
    """How many images there are by their names' endings, and what is said of them."""

    images: int
    captions: tuple[str, ...]  # one for each image that has one
    masks: int  # of these images

    @property
    def text(self) -> str:
        """ "12 images, 10 of them with a caption, 3 with a mask"."""
        if not self.images:
            return "no image"
        captioned = len(self.captions)
        which = "all" if captioned == self.images else f"{captioned} of them" if captioned else "none"
        masked = f", {self.masks} with a mask" if self.masks else ""
        return f"{plural(self.images)}, {which} with a caption{masked}"

    @property
    def shared_words(self) -> str:
        """The longest run of words that stands in every caption, as "vkq robot"; empty if there is none."""
        return shared_words(self.captions)


def glance(folder: Path) -> Glance:
    """Raises DatasetError for a folder that is missing, empty or cannot be read, and for invalid lists."""
    found = [one for one in find(folder) if not one.excluded]
    images = [one for one in found if is_image(one.name) and not is_mask(one.name)]
    masks = {place(one.name) for one in found if is_mask(one.name) and not is_caption(one.name)}
    said = zip(images, find_captions(images), strict=True)
    captions = [file.text or record.caption for record, file in said]
    masked = sum(place(one.name) in masks for one in images)
    return Glance(len(images), tuple(caption for caption in captions if caption), masked)


def shared_words(captions: Sequence[str]) -> str:
    """As they stand in the shortest caption, without articles and the like at either end."""
    if len(captions) < 2:
        return ""
    words = [caption.replace(",", " ").split()[:_MOST_WORDS] for caption in captions[:_MOST_CAPTIONS]]
    shortest = min(words, key=len)
    others = [f" {' '.join(one).casefold()} " for one in words]
    for length in range(len(shortest), 0, -1):
        for start in range(len(shortest) - length + 1):
            run = shortest[start : start + length]
            if all(f" {' '.join(run).casefold()} " in other for other in others) and (kept := _trimmed(run)):
                return " ".join(kept)
    return ""


def _trimmed(words: list[str]) -> list[str]:
    while words and words[0].casefold() in _ENDS:
        words = words[1:]
    while words and words[-1].casefold() in _ENDS:
        words = words[:-1]
    return words
