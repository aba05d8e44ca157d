"""Regularization images: what the frozen base draws for captions without their trigger, kept as PNG.

Beside one's own images they keep the class what it was: prior preservation, arXiv 2208.12242, sec. 3.2.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from io import BytesIO
from itertools import cycle, islice, product
from pathlib import Path

from PIL import Image

from lora_studio.data.batches import cut_by_bucket
from lora_studio.data.buckets import losses, placed_among
from lora_studio.data.cache.store import mark_as_used
from lora_studio.data.captions.shown import ShownCaptions
from lora_studio.data.manifest import Bucket, Record
from lora_studio.errors import DatasetError
from lora_studio.files import write_atomically
from lora_studio.recipe.data import RegularizationImagesConfig
from lora_studio.rng import python_random

_ADVICE = 'set data.regularization_images.prompt to what the class is called, such as "a photo of a dog"'


@dataclass(frozen=True)
class ImageRequest:
    """An image to draw. Its size is the bucket of images that it can stand beside."""

    prompt: str
    bucket: Bucket
    number: int  # counts those of the same prompt and size


def image_requests(captions: ShownCaptions, *, count: int, prompt: str = "") -> list[ImageRequest]:
    """`count` images in the sizes of the records, from `prompt` or their captions without the trigger.

    Captions that do not hold it are passed over if there is no prompt. What varies is drawn for each image.
    Raises DatasetError if no caption holds it, or if without it nothing is left of one, or nothing is named.
    """
    if prompt:
        records = [replace(record, caption=prompt, lines=()) for record in captions.records]
        plain = captions.config.model_copy(update={"caption_prefix": "", "caption_suffix": ""})
        captions = ShownCaptions(records, plain, seed=captions.seed)
        indices = list(range(len(records)))
    else:
        indices = _with_names(captions)
    prompts = list(islice(_prompts(captions, indices, rounds=count, with_trigger=not prompt), count))
    if not prompts:
        what = "no caption holds data.trigger, so regularization images have no prompt"
        raise DatasetError(f"{what}; {_ADVICE}.")
    numbers: Counter[tuple[str, Bucket]] = Counter()
    requests = []
    for words, bucket in islice(cycle(prompts), count):
        requests.append(ImageRequest(words, bucket, numbers[words, bucket]))
        numbers[words, bucket] += 1
    return requests


def _prompts(
    captions: ShownCaptions, indices: Sequence[int], *, rounds: int, with_trigger: bool
) -> Iterator[tuple[str, Bucket]]:
    """Prompts and sizes, in each round those of these records; of a caption with a trigger, without it."""
    for number, index in product(range(rounds), indices):
        text, bucket = captions.variant(index, index, number), captions.records[index].bucket
        # Of several lines, or of the words in {a|b}, some may not hold the trigger.
        words = captions.without_trigger(index, text) if with_trigger else text
        if words and bucket:
            yield words, bucket


def _with_names(captions: ShownCaptions) -> list[int]:
    """The records whose captions hold their trigger, and name something without it."""
    held = captions.with_trigger()
    named = {index for index, text in held if captions.without_trigger(index, text)}
    if empty := [captions.records[index].name for index, _ in held if index not in named]:
        fault = f"nothing is left of the caption of {empty[0]}"
    elif held and len(captions.nameless()) == len(held):
        fault = f'the caption "{held[0][1]}" names nothing that regularization images could show'
    else:
        return list(dict.fromkeys(index for index, _ in held))
    advice = f'set data.class_words to what the trigger is one of, such as "dog", or {_ADVICE}'
    raise DatasetError(f"without its trigger {fault}; {advice}.")


DRAWN = "class prompt"  # who captioned an image that was drawn from its caption
_FORMAT = 1  # raise it when images are drawn differently
BATCH_PIXELS, MAX_BATCH = 2**20, 4  # four images of 512x512 at a time, one of 1024x1024
Draw = Callable[[Sequence[ImageRequest]], list[Image.Image]]
OnProgress = Callable[[int, int], None]  # images drawn, images to draw


class RegularizationImages:
    """Drawn images of one base: `fingerprint` names all of it that an image depends on.

    A .json beside each says what was asked for, and its hash: what does not match that is drawn again.
    """

    def __init__(self, folder: Path, fingerprint: str, config: RegularizationImagesConfig) -> None:
        self._folder, self._fingerprint, self._weight = folder, fingerprint, config.weight
        self._options = {"steps": config.steps, "guidance": config.guidance, "seed": config.seed}
        self.drawn = 0

    def key(self, request: ImageRequest) -> str:
        parts = ["class image", _FORMAT, asdict(request), self._options, self._fingerprint]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    def load_or_draw(
        self, requests: Sequence[ImageRequest], draw: Draw, *, on_progress: OnProgress | None = None
    ) -> list[Record]:
        """A record with the role prior for each request, in their order; only what is not there is drawn.

        `draw` gets requests of one size, always as many of each size: the last ones are filled up with
        copies, since an image's last bits depend on how many are drawn together. After a stop it goes on.
        """
        digests = {request: self._digest(request) for request in requests}
        missing = [request for request, digest in digests.items() if not digest]
        batches = cut_by_bucket(missing, lambda one: one.bucket, pixels=BATCH_PIXELS, most=MAX_BATCH)
        for batch, size in batches:
            filled = batch + batch[-1:] * (size - len(batch))
            for request, image in zip(batch, draw(filled), strict=False):
                digests[request] = self._save(request, image)
                self.drawn += 1
                if on_progress:
                    on_progress(self.drawn, len(missing))
        return [self._record(request, digests[request]) for request in requests]

    def _paths(self, request: ImageRequest) -> tuple[Path, Path]:
        path = self._folder / f"{self.key(request)}.png"
        return path, path.with_suffix(".json")

    def _digest(self, request: ImageRequest) -> str:
        """The hash of the image, or "" if it is not there as it was written."""
        image, about = self._paths(request)
        try:
            digest = hashlib.sha256(image.read_bytes()).hexdigest()
            if digest != json.loads(about.read_text("utf-8"))["sha256"]:
                return ""
        except (OSError, ValueError, KeyError, TypeError):
            return ""
        mark_as_used(image)
        mark_as_used(about)
        return digest

    def _save(self, request: ImageRequest, image: Image.Image) -> str:
        file = BytesIO()
        image.save(file, "PNG")
        digest = hashlib.sha256(file.getvalue()).hexdigest()
        path, about = self._paths(request)
        facts = {"prompt": request.prompt, "width": image.width, "height": image.height}
        facts |= {"number": request.number, **self._options, "base": self._fingerprint, "sha256": digest}
        try:
            write_atomically(path, file.getvalue())
            write_atomically(about, (json.dumps(facts, indent=2, ensure_ascii=False) + "\n").encode("utf-8"))
        except OSError as error:
            message = f"the cache folder {self._folder} cannot be written to ({error.strerror or error})"
            raise DatasetError(f"{message}; free space there or choose another folder.") from None
        return digest

    def _record(self, request: ImageRequest, digest: str) -> Record:
        path, _ = self._paths(request)
        width, height = request.bucket.width, request.bucket.height
        return Record(
            path=str(path.absolute()),
            name=f"class_images/{path.name[:12]}.png",
            sha256=digest,
            width=width,
            height=height,
            caption=request.prompt,
            captioned_by=DRAWN,
            role="prior",
            weight=self._weight,
            bucket=request.bucket,
            resize=(width, height),
            crop=(0, 0, width, height),
        )


def place_beside(regularization_images: Sequence[Record], images: Sequence[Record]) -> list[Record]:
    """The regularization images in the buckets of the images, so that every batch can hold some.

    Each goes into the bucket that it loses least in. A bucket whose share is larger, or with more images,
    also gets others, those that lose least in it: a few that come again would be learned by heart.
    """
    counts = Counter(record.bucket for record in images if record.bucket)
    beside = [placed_among(record, list(counts)) for record in regularization_images]
    own = list(beside)
    for bucket, count in counts.items():
        share = math.ceil(len(own) * count / counts.total())
        wanted = min(len(own), max(share, count)) - sum(one.bucket == bucket for one in own)
        others = [placed_among(one, [bucket]) for one in own if one.bucket != bucket]
        beside += sorted(others, key=losses)[: max(0, wanted)]
    return beside


class RegularizationRows:
    """Which regularization images a micro-batch holds besides its own: a function of seed, step and number.

    `pools`: for each bucket the indices to draw from.
    """

    def __init__(self, pools: Mapping[Bucket, Sequence[int]], *, per_image: float, seed: int) -> None:
        self._pools = {bucket: list(pool) for bucket, pool in pools.items()}
        self.per_image, self._seed = per_image, seed

    def beside(self, step: int, number: int, *, bucket: Bucket | None, count: int) -> list[int]:
        """Those beside `count` images of a bucket, at least one; none twice before all are there."""
        pool = self._pools.get(bucket) if bucket else None
        if not pool:
            return []
        rows = max(1, math.floor(self.per_image * count + 0.5))
        draw = python_random(self._seed, step, number, "class images")
        chosen: list[int] = []
        while len(chosen) < rows:
            chosen += draw.sample(pool, min(rows - len(chosen), len(pool)))
        return chosen


def regularization_rows(
    records: Sequence[Record], *, first: int, per_image: float, seed: int
) -> RegularizationRows:
    """Draws from `records[first:]`, the regularization images; one with repeats is drawn more often."""
    pools: dict[Bucket, list[int]] = {}
    for index in range(first, len(records)):
        record = records[index]
        assert record.bucket is not None, record.name
        pools.setdefault(record.bucket, []).extend([index] * record.repeats)
    return RegularizationRows(pools, per_image=per_image, seed=seed)
