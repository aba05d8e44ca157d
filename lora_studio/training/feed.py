"""Batches from what the caches hold: on the device, or read ahead by a thread; a step waits for nothing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from lora_studio.data.batches import Batch, MicroBatch, Plan
from lora_studio.data.captions.shown import ShownCaptions
from lora_studio.data.class_rows import ClassRows
from lora_studio.data.latents import Latents
from lora_studio.data.manifest import Bucket, Record
from lora_studio.data.masks import LossMask
from lora_studio.data.views import draw_view, each_view
from lora_studio.rng import generator, python_random
from lora_studio.training.ahead import Ahead
from lora_studio.training.captions import Texts


@dataclass(frozen=True)
class FeedOptions:
    """Every draw's seed, where batches live, and what the base's own answer counts outside of masks."""

    seed: int
    device: torch.device
    masked_preservation: float = 0.0


class Feed:
    """The batches of any step, as a pure function of the step.

    `records` are the plan's: one for each area of a picture (`data.views.entries`). `latents`, and `masks` if
    there are any, belong to `each_view` of them; which of a record's views is shown is drawn anew each time.
    Latents behind those are not shown.
    `captions` says which caption a picture is shown with, `texts` has its conditioning; None when a text
    encoder is being trained. `masks` holds every view's loss mask, or None where all of it is
    learned. Records behind those that the plan knows are class pictures, of which `class_rows` adds some to
    a batch.
    """

    def __init__(
        self,
        records: Sequence[Record],
        captions: ShownCaptions,
        latents: Latents,
        texts: Texts | None,
        plan: Plan,
        options: FeedOptions,
        *,
        masks: Sequence[LossMask | None] = (),
        class_rows: ClassRows | None = None,
    ) -> None:
        self.class_rows = class_rows or ClassRows({}, per_picture=1, seed=options.seed)
        self.records, self.captions, self.texts = list(records), captions, texts
        self.plan, self.options = plan, options
        self.latents = latents.to(options.device)
        self._ahead = Ahead(self._micro_batch, plan.accumulation) if latents.on_disk else None
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
        for number in range(self.plan.accumulation):
            yield get(step, number)

    def largest(self) -> Batch:
        """The first epoch's micro-batch with the most latents, for a trial."""
        first_epoch = self.plan.epoch(0)
        sizes = [self._num_elements(micro) for micro in first_epoch]
        place = sizes.index(max(sizes))
        step, number = divmod(place, self.plan.accumulation)
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

    def _outside(self, views: list[int], pictures: int) -> Tensor | None:
        """[B, 1, H, W]; None if in the whole batch nothing counts outside of a mask."""
        found = [self.outside[view] for view in views]
        if all(one is None for one in found):
            return None
        nothing = torch.zeros(1, 1, device=self.options.device)
        return _in_a_batch([nothing if one is None else one for one in found], pictures)


def _in_a_batch(weights: list[Tensor], pictures: int) -> Tensor:
    """[B, 1, H, W] or [B, 1, 1, 1]; the batch's mean is the pictures' mean plus the class pictures' mean.

    The first `pictures` rows are the pictures'. As arXiv 2208.12242, eq. 2 has it, with a class picture's own
    weight for lambda.
    """
    weight = torch.stack(torch.broadcast_tensors(*weights))[:, None]
    if beside := len(weights) - pictures:
        shares = [len(weights) / pictures] * pictures + [len(weights) / beside] * beside
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

    The crop's corner lies in the resized picture, which is mirrored first if the view is.
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
