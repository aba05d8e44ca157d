"""Which images are seen at which step: arithmetic on a plan, so there is no sampler state to save.

A plan has one entry for each area of an image, and one latent for each view of it. An epoch shows every entry
exactly as often as its repeats say; which of its crops, and whether mirrored, is drawn anew each time.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import chain
from typing import TYPE_CHECKING, TypeVar

from lora_studio.data.manifest import Bucket, Record, View
from lora_studio.rng import python_random

if TYPE_CHECKING:
    from torch import Tensor


T = TypeVar("T")


@dataclass
class Batch:
    """What the loop gets for one forward pass; H and W are in latents."""

    latents: Tensor  # [B, C, H, W], scaled as the denoiser was trained
    captions: list[str]
    conditioning: dict[str, Tensor] | None  # None: the text encoder is trained and reads the captions
    geometry: Tensor  # [B, 6] in pixels: original height, width; crop top, left; target height, width (SDXL)
    weight: Tensor  # [B, 1, 1, 1], or [B, 1, H, W] if one of the images has a loss mask
    preserved: tuple[int, ...] = ()  # the rows whose target is the frozen base's prediction
    like: Sequence[str] = ()  # captions that decide, beside its own, how many windows each of them takes
    outside: Tensor | None = None  # [B, 1, H, W]: weight of errors against the base's prediction
    masked: tuple[int, ...] = ()  # the rows in which that is not 0 throughout

    def __len__(self) -> int:
        return len(self.captions)

    def rows(self, wanted: slice) -> Batch:
        """Some rows that follow each other, as a batch of their own; it shares the tensors' memory."""
        start, stop, _ = wanted.indices(len(self))
        if stop - start == len(self):
            return self
        conditioning = self.conditioning

        def within(found: tuple[int, ...]) -> tuple[int, ...]:
            return tuple(row - start for row in found if start <= row < stop)

        return Batch(
            latents=self.latents[wanted],
            captions=self.captions[wanted],
            conditioning=None if conditioning is None else {k: v[wanted] for k, v in conditioning.items()},
            geometry=self.geometry[wanted],
            weight=self.weight[wanted],
            preserved=within(self.preserved),
            like=self.like or self.captions,
            outside=None if self.outside is None else self.outside[wanted],
            masked=within(self.masked),
        )


MicroBatch = tuple[int, ...]  # images of one bucket, as indices into the used records; at most the batch size


class BatchPlan:
    """The micro-batches of every epoch of the used records (`Manifest.used`), by seed and step alone.

    A bucket's remainder makes a smaller batch; nothing is dropped or repeated to fill one up.
    """

    def __init__(
        self, records: Sequence[Record], *, batch_size: int, gradient_accumulation: int, seed: int
    ) -> None:
        assert records and batch_size >= 1 and gradient_accumulation >= 1, "the recipe's checks"
        groups: dict[Bucket | None, list[int]] = {}
        for index, record in enumerate(records):
            groups.setdefault(record.bucket, []).extend([index] * record.repeats)
        self._groups = list(groups.values())
        self.num_records, self.batch_size = len(records), batch_size
        self.num_images = len({record.name for record in records})  # some are shown at several areas
        self.gradient_accumulation, self.seed = gradient_accumulation, seed
        self.micro_batches_per_epoch = sum(-(-len(group) // batch_size) for group in self._groups)
        # Neighbouring steps ask for the same one or two epochs; kept with the plan, so it is freed with it.
        self.epoch = lru_cache(maxsize=4)(self._epoch)

    def of_step(self, step: int) -> list[MicroBatch]:
        """The `gradient_accumulation` micro-batches of a step; steps count from 1 and run across epochs."""
        assert step >= 1, step
        numbers = range((step - 1) * self.gradient_accumulation, step * self.gradient_accumulation)
        places = [divmod(number, self.micro_batches_per_epoch) for number in numbers]
        return [self.epoch(epoch)[position] for epoch, position in places]

    def steps_of(self, epochs: float) -> int:
        """The optimizer steps in which so many epochs are shown to their ends; at least one."""
        micro_batches = round(epochs * self.micro_batches_per_epoch, 6)  # 0.1 x 30 is 3.0000000000000004
        return max(1, math.ceil(micro_batches / self.gradient_accumulation))

    def views_per_image(self, steps: int) -> list[int]:
        """How often each used record has been seen after `steps` optimizer steps."""
        epochs, rest = divmod(steps * self.gradient_accumulation, self.micro_batches_per_epoch)
        views = [0] * self.num_records
        for count, groups in ((epochs, self._groups), (1, self.epoch(epochs)[:rest])):
            for index in chain.from_iterable(groups):
                views[index] += count
        return views

    def average_views(self, steps: int) -> float:
        return sum(self.views_per_image(steps)) / self.num_images

    def image_weights(self) -> list[float]:
        """How much a view of each used record counts on average, of what it would in a full batch.

        A bucket of n views makes ceil(n / batch size) micro-batches, each of which counts as a full one.
        """
        weights = [0.0] * self.num_records
        for group in self._groups:
            micro_batches = -(-len(group) // self.batch_size)
            for index in group:
                weights[index] = micro_batches * self.batch_size / len(group)
        return weights

    def _epoch(self, epoch: int) -> tuple[MicroBatch, ...]:
        """An epoch's micro-batches (epochs count from 0): each bucket shuffled and cut up, then all mixed."""
        rng = python_random(self.seed, epoch, "order")
        batches: list[MicroBatch] = []
        for group in self._groups:
            order, size = rng.sample(group, len(group)), self.batch_size
            batches += [tuple(order[start : start + size]) for start in range(0, len(order), size)]
        rng.shuffle(batches)
        return tuple(batches)


def entries(records: Iterable[Record]) -> list[Record]:
    """Each image once for each area at which it is shown; the views of that area stay with it."""
    found = []
    for record in records:
        by_area: dict[Bucket, list[View]] = {}
        for view in views_of(record):
            by_area.setdefault(view.bucket, []).append(view)
        found += [as_shown(record, views[0], more=tuple(views[1:])) for views in by_area.values()]
    return found


def each_view(records: Iterable[Record]) -> list[Record]:
    """A record for every view of every record, in their order: what a latent is made of."""
    return [as_shown(record, view) for record in records for view in views_of(record)]


def views_of(record: Record) -> list[View]:
    """All ways to show a placed image: as it is, then mirrored, for one area after the other."""
    assert record.bucket and record.resize and record.crop, record.name
    first = View(record.resolution, record.bucket, record.resize, record.crop, record.flip)
    return [first, *record.more_views]


def as_shown(record: Record, view: View, *, more: tuple[View, ...] = ()) -> Record:
    return replace(record, **vars(view), more_views=more)


def draw_view(entry: Record, draw: random.Random) -> int:
    """Which of an entry's views is shown: mirrored in `flip_share` of the draws, all crops alike."""
    mirrored = draw.random() < entry.flip_share
    fitting = [number for number, view in enumerate(views_of(entry)) if view.flip == mirrored]
    return draw.choice(fitting)


def cut_by_bucket(
    items: Iterable[T], bucket_of: Callable[[T], Bucket | None], *, pixels: int, most: int | None = None
) -> list[tuple[list[T], int]]:
    """Batches of one bucket each, and the size of a full one: so many images as have `pixels`, at least one.

    No more than `most`. Buckets in the order of their first items.
    """
    groups: dict[Bucket | None, list[T]] = {}
    for item in items:
        groups.setdefault(bucket_of(item), []).append(item)
    cut = []
    for bucket, group in groups.items():
        assert bucket is not None
        size = max(1, pixels // bucket.area)
        size = min(size, most) if most else size
        cut += [(group[start : start + size], size) for start in range(0, len(group), size)]
    return cut
