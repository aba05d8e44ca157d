"""Regularization images: what the frozen base draws for captions without their trigger, kept as PNG.

Beside one's own images they keep the class what it was: prior preservation, arXiv 2208.12242, sec. 3.2.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from io import BytesIO
from itertools import cycle, islice
from pathlib import Path

from PIL import Image

from lora_studio.data.buckets.sizes import fit
from lora_studio.data.cache.store import mark_as_used
from lora_studio.data.captions.shown import ShownCaptions
from lora_studio.data.manifest import Bucket, Record
from lora_studio.errors import DatasetError
from lora_studio.files import write_atomically

_ADVICE = 'set data.regularization_images.prompt to what the class is called, such as "a photo of a dog"'


@dataclass(frozen=True)
class ImageRequest:
    """An image to draw. Its size is the bucket of images that it can stand beside."""

    prompt: str
    bucket: Bucket
    number: int  # counts those of the same prompt and size


def wishes_for(captions: ShownCaptions, *, count: int, prompt: str = "") -> list[ImageRequest]:
    """`count` images in the sizes of the records, from `prompt` or their captions without the trigger.

    Captions that do not hold it are passed over if there is no prompt. What varies is drawn for each image.
    Raises DatasetError if no caption holds it, or if without it nothing is left of one, or nothing is named.
    """
    if prompt:
        records = [replace(record, caption=prompt, lines=()) for record in captions.records]
        captions = ShownCaptions(records, replace(captions.options, prefix="", suffix=""))
        asked_of = list(range(len(records)))
    else:
        asked_of = _with_names(captions)
    asked = list(islice(_prompts(captions, asked_of, rounds=count, with_trigger=not prompt), count))
    if not asked:
        raise DatasetError(
            f"no caption holds data.trigger, so regularization images have no prompt; {_ADVICE}."
        )
    numbers: Counter[tuple[str, Bucket]] = Counter()
    wishes = []
    for words, bucket in islice(cycle(asked), count):
        wishes.append(ImageRequest(words, bucket, numbers[words, bucket]))
        numbers[words, bucket] += 1
    return wishes


def _prompts(
    captions: ShownCaptions, asked_of: Sequence[int], *, rounds: int, with_trigger: bool
) -> Iterator[tuple[str, Bucket]]:
    """Words and sizes, in each round those of these records; of a caption with a trigger, without it."""
    for number in range(rounds):
        for index in asked_of:
            text = captions.variant(index, index, number)
            words, bucket = text, captions.records[index].bucket
            if with_trigger:  # of several lines, or of the words in {a|b}, some may not hold it
                words = captions.without_trigger(index, text) or ""
            if words and bucket:
                yield words, bucket


def _with_names(captions: ShownCaptions) -> list[int]:
    """The records whose captions hold their trigger, and name something without it."""
    held = captions.with_trigger()
    named = {index for index, text in held if captions.without_trigger(index, text)}
    if empty := [captions.records[index].name for index, _ in held if index not in named]:
        raise DatasetError(
            f"without its trigger nothing is left of the caption of {empty[0]}; set data.class_words to what "
            f'the trigger is one of, such as "dog", or {_ADVICE}.'
        )
    if held and len(captions.nameless()) == len(held):
        raise DatasetError(
            f'without its trigger the caption "{held[0][1]}" names nothing that regularization images could '
            f'show; set data.class_words to what the trigger is one of, such as "dog", or {_ADVICE}.'
        )
    return list(dict.fromkeys(index for index, _ in held))


DRAWN = "class prompt"  # who captioned an image that was drawn from its caption
_FORMAT = 1  # raise it when images are drawn differently
_BATCH_PIXELS, _MAX_BATCH = 2**20, 4  # four images of 512x512 at a time, one of 1024x1024


@dataclass(frozen=True)
class DrawOptions:
    """How the base draws."""

    steps: int
    guidance: float
    seed: int


Draw = Callable[[Sequence[ImageRequest]], list[Image.Image]]
OnProgress = Callable[[int, int], None]  # images drawn, images to draw


class RegularizationImages:
    """Drawn images of one base: `fingerprint` names all of it that an image depends on.

    A .json beside each says what was asked for, and the image's hash: an image without it, or of another
    hash, is drawn again.
    """

    def __init__(self, folder: Path, fingerprint: str, options: DrawOptions) -> None:
        self._folder, self._fingerprint, self._options = folder, fingerprint, options
        self.drawn = 0

    def key(self, wish: ImageRequest) -> str:
        """The name of the files: a hash of all that the image depends on."""
        parts = ["class image", _FORMAT, asdict(wish), asdict(self._options), self._fingerprint]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    def load_or_draw(
        self,
        wishes: Sequence[ImageRequest],
        draw: Draw,
        *,
        weight: float = 1.0,
        on_progress: OnProgress | None = None,
    ) -> list[Record]:
        """A record with the role prior for each wish, in their order; only what is not there is drawn.

        `draw` gets wishes of one size, always as many of each size: the last ones are filled up with copies,
        since an image's last bits depend on how many are drawn together. After a stop it goes on.
        """
        digests = {wish: self._digest(wish) for wish in wishes}
        missing = [wish for wish, digest in digests.items() if not digest]
        for batch in _batches(missing):
            filled = batch + batch[-1:] * (_batch_size(batch[0]) - len(batch))
            for wish, image in zip(batch, draw(filled), strict=False):
                digests[wish] = self._save(wish, image)
                self.drawn += 1
                if on_progress:
                    on_progress(self.drawn, len(missing))
        return [self._record(wish, digests[wish], weight) for wish in wishes]

    def _paths(self, wish: ImageRequest) -> tuple[Path, Path]:
        path = self._folder / f"{self.key(wish)}.png"
        return path, path.with_suffix(".json")

    def _digest(self, wish: ImageRequest) -> str:
        """The hash of the image, or nothing if it is not there as it was written."""
        image, about = self._paths(wish)
        try:
            digest = json.loads(about.read_text("utf-8"))["sha256"]
            if digest != hashlib.sha256(image.read_bytes()).hexdigest():
                return ""
        except (OSError, ValueError, KeyError, TypeError):
            return ""
        for path in (image, about):
            mark_as_used(path)
        return str(digest)

    def _save(self, wish: ImageRequest, image: Image.Image) -> str:
        file = BytesIO()
        image.save(file, "PNG")
        digest = hashlib.sha256(file.getvalue()).hexdigest()
        path, about = self._paths(wish)
        facts = {"prompt": wish.prompt, "width": image.width, "height": image.height}
        facts |= {"number": wish.number, **asdict(self._options)}
        facts |= {"base": self._fingerprint, "sha256": digest}
        try:
            write_atomically(path, file.getvalue())
            write_atomically(about, (json.dumps(facts, indent=2, ensure_ascii=False) + "\n").encode("utf-8"))
        except OSError as error:
            message = f"the cache folder {self._folder} cannot be written to ({error.strerror or error})"
            raise DatasetError(f"{message}; free space there or choose another folder.") from None
        return digest

    def _record(self, wish: ImageRequest, digest: str, weight: float) -> Record:
        path, _ = self._paths(wish)
        width, height = wish.bucket.width, wish.bucket.height
        resize, crop = fit(width, height, wish.bucket)
        return Record(
            path=str(path.absolute()),
            name=f"class_images/{path.name[:12]}.png",
            sha256=digest,
            width=width,
            height=height,
            caption=wish.prompt,
            captioned_by=DRAWN,
            role="prior",
            weight=weight,
            bucket=wish.bucket,
            resize=resize,
            crop=crop,
        )


def _batches(wishes: Sequence[ImageRequest]) -> list[list[ImageRequest]]:
    by_bucket: dict[Bucket, list[ImageRequest]] = {}
    for wish in wishes:
        by_bucket.setdefault(wish.bucket, []).append(wish)
    batches = []
    for group in by_bucket.values():
        size = _batch_size(group[0])
        batches += [group[start : start + size] for start in range(0, len(group), size)]
    return batches


def _batch_size(wish: ImageRequest) -> int:
    return min(_MAX_BATCH, max(1, _BATCH_PIXELS // (wish.bucket.width * wish.bucket.height)))
