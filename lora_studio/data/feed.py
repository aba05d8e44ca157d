"""Batches from what the caches hold: on the device, or read ahead by a thread; a step waits for nothing."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from lora_studio.data.batches import Batch, MicroBatch, Plan
from lora_studio.data.cache.latents import Latents
from lora_studio.data.captions.shown import ShownCaptions
from lora_studio.data.conditioning import ConditioningCache
from lora_studio.data.manifest import Bucket, Record
from lora_studio.data.masks import LossMask
from lora_studio.data.regularization_images.rows import ClassRows
from lora_studio.data.views import draw_view, each_view
from lora_studio.rng import generator, python_random


@dataclass(frozen=True)
class FeedOptions:
    """Every draw's seed, where batches live, and what the base's own answer counts outside of masks."""

    seed: int
    device: torch.device
    masked_preservation: float = 0.0


class Feed:
    """The batches of any step, as a pure function of the step.

    `records` are the plan's: one for each area of an image (`data.views.entries`). `latents`, and `masks` if
    there are any, belong to `each_view` of them; which of a record's views is shown is drawn anew each time.
    Latents behind those are not shown.
    `captions` says which caption an image is shown with, `texts` has its conditioning; None when a text
    encoder is being trained. `masks` holds every view's loss mask, or None where all of it is
    learned. Records behind those that the plan knows are regularization images, of which `class_rows` adds some to
    a batch.
    """

    def __init__(
        self,
        records: Sequence[Record],
        captions: ShownCaptions,
        latents: Latents,
        texts: ConditioningCache | None,
        plan: Plan,
        options: FeedOptions,
        *,
        masks: Sequence[LossMask | None] = (),
        class_rows: ClassRows | None = None,
    ) -> None:
        self.class_rows = class_rows or ClassRows({}, per_image=1, seed=options.seed)
        self.records, self.captions, self.texts = list(records), captions, texts
        self.plan, self.options = plan, options
        self.latents = latents.to(options.device)
        self._ahead = Prefetcher(self._micro_batch, plan.gradient_accumulation) if latents.on_disk else None
        views = each_view(self.records)
        self._shapes: dict[Bucket | None, tuple[int, ...]] = {}
        self._first_view = list(accumulate((1 + len(record.more_views) for record in records), initial=0))
        self.geometry = torch.tensor([geometry(view) for view in views], device=options.device)
        of_views = list(masks) or [None] * len(views)
        self.weights = _weights(views, of_views, options.device)
        self.outside = _outside(views, of_views, options)

    def of_step(self, step: int) -> Iterator[Batch]:
        """The micro-batches of optimizer step `step`, which counts from 1."""
        get = self._ahead.get if self._ahead else self._micro_batch
        for number in range(self.plan.gradient_accumulation):
            yield get(step, number)

    def largest(self) -> Batch:
        """The first epoch's micro-batch with the most latents, for a trial."""
        first_epoch = self.plan.epoch(0)
        sizes = [self._num_elements(micro) for micro in first_epoch]
        place = sizes.index(max(sizes))
        step, number = divmod(place, self.plan.gradient_accumulation)
        return self._assemble(step + 1, number, first_epoch[place])

    def shapes_of(self, step: int) -> Iterator[tuple[int, ...]]:
        """[B, C, H, W] of the latents in each micro-batch of a step."""
        for number, micro in enumerate(self.plan.of_step(step)):
            first, count = micro.indices[0], len(micro.indices)
            bucket = self.records[first].bucket
            if bucket not in self._shapes:  # of latents on the disk only one in a bucket is read
                self._shapes[bucket] = tuple(self.latents[self._first_view[first]].mean.shape)
            beside = self.class_rows.beside(step, number, bucket=bucket, count=count)
            yield (count + len(beside), *self._shapes[bucket])

    def _micro_batch(self, step: int, number: int) -> Batch:
        return self._assemble(step, number, self.plan.of_step(step)[number])

    def _num_elements(self, micro: MicroBatch) -> int:
        return sum(self.latents.size(self._first_view[index]) for index in micro.indices)

    def _assemble(self, step: int, number: int, micro: MicroBatch) -> Batch:
        draw = generator(self.options.seed, step, number, "latents")
        shown = self.captions.of_micro_batch(step, number, micro)
        preserved = [row for row, one in enumerate(shown) if one.preserved]
        indices = list(micro.indices)
        bucket = self.records[indices[0]].bucket
        beside = self.class_rows.beside(step, number, bucket=bucket, count=len(indices))
        captions = [one.text for one in shown] + [self.records[i].caption for i in beside]
        views = [self._view(index, (step, number, row)) for row, index in enumerate(indices + beside)]
        return Batch(
            latents=torch.stack([self.latents[view].sample(draw) for view in views]),
            captions=captions,
            conditioning=None if self.texts is None else self.texts.batch(captions),
            geometry=self.geometry[views],
            weight=_in_a_batch([self.weights[view] for view in views], len(indices)),
            preserved=torch.tensor(preserved, dtype=torch.int64),
            outside=self._outside(views, len(indices)),
            masked=tuple(row for row, view in enumerate(views) if self.outside[view] is not None),
        )

    def _view(self, index: int, place: tuple[int, int, int]) -> int:
        """Which of all views is shown of a record, at this step, micro-batch and row."""
        draw = python_random(self.options.seed, *place, "view")
        return self._first_view[index] + draw_view(self.records[index], draw)

    def _outside(self, views: list[int], images: int) -> Tensor | None:
        """[B, 1, H, W]; None if in the whole batch nothing counts outside of a mask."""
        found = [self.outside[view] for view in views]
        if all(one is None for one in found):
            return None
        nothing = torch.zeros(1, 1, device=self.options.device)
        return _in_a_batch([nothing if one is None else one for one in found], images)


def _in_a_batch(weights: list[Tensor], images: int) -> Tensor:
    """[B, 1, H, W] or [B, 1, 1, 1]; the batch's mean is the images' mean plus the regularization images' mean.

    The first `images` rows are the images'. As arXiv 2208.12242, eq. 2 has it, with a regularization image's own
    weight for lambda.
    """
    weight = torch.stack(torch.broadcast_tensors(*weights))[:, None]
    if beside := len(weights) - images:
        shares = [len(weights) / images] * images + [len(weights) / beside] * beside
        weight = weight * torch.tensor(shares, device=weight.device).view(-1, 1, 1, 1)
    return weight


def _weights(
    records: Sequence[Record], masks: Sequence[LossMask | None], device: torch.device
) -> list[Tensor]:
    """Every view's weight times its mask [H, W]; [1, 1] without one."""
    factors = [torch.ones(1, 1) if mask is None else mask.inside for mask in masks]
    return [(factor * record.weight).to(device) for record, factor in zip(records, factors, strict=True)]


def _outside(
    records: Sequence[Record], masks: Sequence[LossMask | None], options: FeedOptions
) -> list[Tensor | None]:
    """What an error against the base's own answer counts in every view [H, W]; None where it never does.

    A latent outside of the mask counts `masked_preservation` times what it would if there were no mask.
    """
    share = options.masked_preservation
    return [
        (mask.outside * share * record.weight).to(options.device)
        if share and mask is not None and mask.outside.any()
        else None
        for record, mask in zip(records, masks, strict=True)
    ]


def geometry(record: Record) -> list[float]:
    """Original height, width; crop top, left; target height, width: SDXL's order (arXiv 2307.01952, 2.2).

    The crop's corner lies in the resized image, which is mirrored first if the view is.
    """
    assert record.bucket is not None and record.crop is not None
    size = (
        record.height,
        record.width,
        record.crop[1],
        record.crop[0],
        record.bucket.height,
        record.bucket.width,
    )
    return [float(value) for value in size]


Place = tuple[int, int]  # optimizer step, number of the micro-batch in it
READ_AHEAD = 2  # micro-batches


class Prefetcher:
    """Answers `make(step, number)`, which must be a pure function, and begins with what comes next.

    `per_step`: the micro-batches of a step. An exception of `make` is raised for the one that it belongs to.
    """

    def __init__(self, make: Callable[[int, int], Batch], per_step: int) -> None:
        self._make, self._per_step = make, per_step
        self._begun: OrderedDict[Place, Future[Batch]] = OrderedDict()
        self._pool: ThreadPoolExecutor | None = None

    def get(self, step: int, number: int) -> Batch:
        """One micro-batch; the next ones are begun."""
        future = self._begun.pop((step, number), None)
        following = self._following(step, number)
        for place in [place for place in self._begun if place not in following]:
            self._begun.pop(place).cancel()
        if self._pool is None:
            self._pool = ThreadPoolExecutor(1, thread_name_prefix="read-ahead")
        for place in following:
            if place not in self._begun:
                self._begun[place] = self._pool.submit(self._make, *place)
        return self._make(step, number) if future is None else future.result()

    def _following(self, step: int, number: int) -> list[Place]:
        flat = step * self._per_step + number
        return [divmod(flat + more, self._per_step) for more in range(1, READ_AHEAD + 1)]
