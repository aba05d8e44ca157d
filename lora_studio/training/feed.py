"""Batches from what the caches hold: everything lies on the device, so a step waits for nothing."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from lora_studio.data.batches import Batch, MicroBatch, Plan
from lora_studio.data.cache import Latent
from lora_studio.data.manifest import Record
from lora_studio.data.views import draw_view, each_view
from lora_studio.families.base import Conditioning
from lora_studio.rng import generator, python_random


@dataclass(frozen=True)
class FeedOptions:
    """How captions are dropped or shown without their trigger, every draw's seed, where batches live."""

    caption_dropout: float
    preservation: float
    seed: int
    device: torch.device


class Feed:
    """The batches of any step, as a pure function of the step.

    `records` are the plan's: one for each area of a picture (`data.views.entries`). `latents`, and `masks` if
    there are any, belong to `each_view` of them; which of a record's views is shown is drawn anew each time.
    `plain` holds every record's caption without the trigger words, None where there are none to leave out.
    `texts` maps every caption, plain caption and "" to its cached conditioning; None when a text encoder is
    being trained. `masks` holds every view's loss weights [H, W] with a mean of 1, or None for all alike.
    """

    def __init__(
        self,
        records: Sequence[Record],
        plain: Sequence[str | None],
        latents: Sequence[Latent],
        texts: dict[str, Conditioning] | None,
        plan: Plan,
        options: FeedOptions,
        *,
        masks: Sequence[Tensor | None] = (),
    ) -> None:
        self.records, self.plain = list(records), list(plain)
        self.plan, self.options = plan, options
        self.latents = [Latent(one.mean.to(options.device), one.std.to(options.device)) for one in latents]
        self.texts = texts and {caption: _to(value, options.device) for caption, value in texts.items()}
        views = each_view(self.records)
        self._first_view = list(accumulate((1 + len(record.more_views) for record in records), initial=0))
        self.geometry = torch.tensor([geometry(view) for view in views], device=options.device)
        self.weights = _weights(views, masks, options.device)

    def of_step(self, step: int) -> Iterator[Batch]:
        """The micro-batches of optimizer step `step`, which counts from 1."""
        for number, micro in enumerate(self.plan.of_step(step)):
            yield self._assemble(step, number, micro)

    def largest(self) -> Batch:
        """The first epoch's micro-batch with the most latents, for a trial; no step shows this batch."""
        first_epoch = self.plan.epoch(0)

        def size(micro: MicroBatch) -> int:
            return sum(self.latents[self._first_view[i]].mean.numel() for i in micro.indices)

        most = max(first_epoch, key=size)
        return self._assemble(0, 0, most)

    def _assemble(self, step: int, number: int, micro: MicroBatch) -> Batch:
        seed, indices = self.options.seed, list(micro.indices)
        draw = generator(seed, step, number, "latents")
        shown = [self._caption(i, python_random(seed, step, number, row)) for row, i in enumerate(indices)]
        captions = [caption for caption, _ in shown]
        preserved = [row for row, (_, kept) in enumerate(shown) if kept]
        views = [
            self._view(i, python_random(seed, step, number, row, "view")) for row, i in enumerate(indices)
        ]
        return Batch(
            latents=torch.stack([self.latents[view].sample(draw) for view in views]),
            captions=captions,
            conditioning=self._conditioning(captions),
            geometry=self.geometry[views],
            weight=torch.stack(torch.broadcast_tensors(*(self.weights[view] for view in views)))[:, None],
            preserved=torch.tensor(preserved, dtype=torch.int64, device=self.options.device),
        )

    def _view(self, index: int, draw: random.Random) -> int:
        """Which of all views is shown of a record."""
        return self._first_view[index] + draw_view(self.records[index], draw)

    def _caption(self, index: int, draw: random.Random) -> tuple[str, bool]:
        """The caption shown, and whether it is the one without the trigger."""
        dropped = draw.random() < self.options.caption_dropout
        preserved = draw.random() < self.options.preservation
        if dropped:
            return "", False
        plain = self.plain[index] if preserved else None
        return (self.records[index].caption, False) if plain is None else (plain, True)

    def _conditioning(self, captions: list[str]) -> Conditioning | None:
        if self.texts is None:
            return None
        rows = [self.texts[caption] for caption in captions]
        return {name: torch.cat([row[name] for row in rows]) for name in rows[0]}


def _weights(records: Sequence[Record], masks: Sequence[Tensor | None], device: torch.device) -> list[Tensor]:
    """Every view's weight times its mask [H, W]; [1, 1] without one."""
    ones = torch.ones(1, 1)
    factors = [ones if mask is None else mask for mask in masks] or [ones] * len(records)
    return [(factor * record.weight).to(device) for record, factor in zip(records, factors, strict=True)]


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


def _to(conditioning: Conditioning, device: torch.device) -> dict[str, Tensor]:
    return {name: tensor.to(device) for name, tensor in conditioning.items()}
