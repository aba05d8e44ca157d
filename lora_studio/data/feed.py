"""Batches from what the caches hold: on the device, or read ahead by a thread; a step waits for nothing."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from lora_studio.data.batches import Batch, BatchPlan, MicroBatch, draw_view, each_view
from lora_studio.data.cache.store import Latents, sample_latents
from lora_studio.data.captions.shown import ShownCaptions
from lora_studio.data.conditioning import ConditioningCache
from lora_studio.data.manifest import Bucket, Record
from lora_studio.data.masks import LossMask
from lora_studio.data.regularization_images import RegularizationRows
from lora_studio.processes import to_device
from lora_studio.rng import generator, python_random


@dataclass
class Feed:
    """The batches of any step, as a pure function of the step."""

    records: Sequence[Record]  # the plan's (`batches.entries`), then the regularization images
    captions: ShownCaptions  # which caption an image is shown with
    latents: Latents  # of `each_view` of the records; latents behind those are not shown
    texts: ConditioningCache | None  # conditioning of the captions; None while a text encoder is trained
    plan: BatchPlan
    seed: int
    device: torch.device  # where batches live
    masks: Sequence[LossMask | None] = ()  # of every view, None where all of it is learned; empty: no masks
    masked_preservation: float = 0.0  # what errors against the base's prediction count outside of masks
    regularization_rows: RegularizationRows | None = None  # the rows that are added to a batch
    weighs_images_alike: bool = False  # a smaller batch counts less, and not as a full one

    def __post_init__(self) -> None:
        self.latents = self.latents.to(self.device)
        prefetcher = Prefetcher(self.micro_batch, self.plan.gradient_accumulation)
        self._get = prefetcher.get if self.latents.on_disk else self.micro_batch
        self._shapes: dict[Bucket | None, tuple[int, ...]] = {}
        self._first_view = list(accumulate((1 + len(one.more_views) for one in self.records), initial=0))
        views = each_view(self.records)
        self.geometry = torch.tensor([geometry(view) for view in views])
        masked = list(zip(views, self.masks or [None] * len(views), strict=True))
        inside = [(torch.ones(1, 1) if mask is None else mask.inside) * view.weight for view, mask in masked]
        self.weights = [weight.to(self.device) for weight in inside]  # each [H, W], [1, 1] without a mask
        self.outside = [self._weight_outside(view, mask) for view, mask in masked]

    def of_step(self, step: int) -> Iterator[Batch]:
        """The micro-batches of optimizer step `step`, which counts from 1."""
        for number in range(self.plan.gradient_accumulation):
            yield self._get(step, number)

    def largest(self) -> Batch:
        """The first epoch's micro-batch with the most latents, for a trial."""
        first_epoch = self.plan.epoch(0)
        sizes = [sum(self.latents.size(self._first_view[i]) for i in micro) for micro in first_epoch]
        place = sizes.index(max(sizes))
        step, number = divmod(place, self.plan.gradient_accumulation)
        return self._assemble(step + 1, number, first_epoch[place])

    def shapes_of(self, step: int) -> Iterator[tuple[int, ...]]:
        """[B, C, H, W] of the latents in each micro-batch of a step."""
        for number, micro in enumerate(self.plan.of_step(step)):
            bucket = self.records[micro[0]].bucket
            if bucket not in self._shapes:  # of latents on the disk only one in a bucket is read
                self._shapes[bucket] = tuple(self.latents[self._first_view[micro[0]]].mean.shape)
            yield (len(micro) + len(self._beside(step, number, micro)), *self._shapes[bucket])

    def _beside(self, step: int, number: int, micro: MicroBatch) -> list[int]:
        rows, bucket = self.regularization_rows, self.records[micro[0]].bucket
        return rows.beside(step, number, bucket=bucket, count=len(micro)) if rows else []

    def micro_batch(self, step: int, number: int) -> Batch:
        """One of a step's, counted from 0; nothing is read ahead."""
        return self._assemble(step, number, self.plan.of_step(step)[number])

    def _assemble(self, step: int, number: int, micro: MicroBatch) -> Batch:
        draw = generator(self.seed, step, number, "latents")
        shown = self.captions.of_micro_batch(step, number, micro)
        beside = self._beside(step, number, micro)
        captions = [one.text for one in shown] + [self.records[i].caption for i in beside]
        views = []  # which of all views is shown of each record
        for row, index in enumerate([*micro, *beside]):
            view = draw_view(self.records[index], python_random(self.seed, step, number, row, "view"))
            views.append(self._first_view[index] + view)
        return Batch(
            latents=sample_latents([self.latents[view] for view in views], draw),
            captions=captions,
            conditioning=None if self.texts is None else self.texts.batch(captions),
            geometry=to_device(self.geometry[views], self.device),
            weight=self._in_a_batch([self.weights[view] for view in views], len(micro)),
            preserved=tuple(row for row, one in enumerate(shown) if one.preserved),
            outside=self._outside(views, len(micro)),
            masked=tuple(row for row, view in enumerate(views) if self.outside[view] is not None),
        )

    def _outside(self, views: list[int], images: int) -> Tensor | None:
        """[B, 1, H, W]; None if in the whole batch nothing counts outside of a mask."""
        found, nothing = [self.outside[view] for view in views], torch.zeros(1, 1, device=self.device)
        if all(one is None for one in found):
            return None
        return self._in_a_batch([nothing if one is None else one for one in found], images)

    def _in_a_batch(self, weights: list[Tensor], images: int) -> Tensor:
        """[B, 1, H, W] or [B, 1, 1, 1]; the mean is the first rows', which are images, plus that of the rest.

        arXiv 2208.12242, eq. 2, with a regularization image's own weight for lambda. Both are the share of a
        full batch that the images are, if they are all weighed alike.
        """
        weight = torch.stack(torch.broadcast_tensors(*weights))[:, None]
        if beside := len(weights) - images:
            shares = [len(weights) / images] * images + [len(weights) / beside] * beside
            weight = weight * to_device(torch.tensor(shares), weight.device).view(-1, 1, 1, 1)
        return weight * (images / self.plan.batch_size) if self.weighs_images_alike else weight

    def _weight_outside(self, view: Record, mask: LossMask | None) -> Tensor | None:
        """The weight of errors against the base's prediction [H, W]; None where it is 0 throughout.

        A latent outside of the mask counts `masked_preservation` times what it would if there were no mask.
        """
        if not self.masked_preservation or mask is None or not mask.outside.any():
            return None
        return (mask.outside * self.masked_preservation * view.weight).to(self.device)


def geometry(record: Record) -> list[float]:
    """Original height, width; crop top, left; target height, width: SDXL's order (arXiv 2307.01952, 2.2).

    The crop's corner lies in the resized image, which is mirrored first if the view is.
    """
    assert record.bucket is not None and record.crop is not None
    left, top, _, _ = record.crop
    sizes = (record.height, record.width, top, left, record.bucket.height, record.bucket.width)
    return list(map(float, sizes))


Place = tuple[int, int]  # optimizer step, number of the micro-batch in it
READ_AHEAD = 2  # micro-batches


class Prefetcher:
    """The results of `make(step, number)`, a pure function; a thread computes the next ones meanwhile.

    `per_step`: the micro-batches of a step. An exception of `make` is raised for the one that it belongs to.
    """

    def __init__(self, make: Callable[[int, int], Batch], per_step: int) -> None:
        self._make, self._per_step = make, per_step
        self._begun: OrderedDict[Place, Future[Batch]] = OrderedDict()
        self._pool: ThreadPoolExecutor | None = None

    def get(self, step: int, number: int) -> Batch:
        """One micro-batch; the next ones are begun."""
        future = self._begun.pop((step, number), None)
        flat = step * self._per_step + number
        following = [divmod(flat + more, self._per_step) for more in range(1, READ_AHEAD + 1)]
        for place in [place for place in self._begun if place not in following]:
            self._begun.pop(place).cancel()
        if self._pool is None:
            self._pool = ThreadPoolExecutor(1, thread_name_prefix="read-ahead")
        for place in following:
            if place not in self._begun:
                self._begun[place] = self._pool.submit(self._make, *place)
        return self._make(step, number) if future is None else future.result()
