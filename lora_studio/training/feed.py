"""Batches from what the caches hold: on the device, or read ahead by a thread; a step waits for nothing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lora_studio.data.batches import Batch, MicroBatch, Plan
from lora_studio.data.captions.shown import ShownCaptions
from lora_studio.data.class_rows import ClassRows
from lora_studio.data.latents import Latents
from lora_studio.data.manifest import Record
from lora_studio.rng import generator
from lora_studio.training.ahead import Ahead
from lora_studio.training.captions import Texts


@dataclass(frozen=True)
class FeedOptions:
    """Every draw's seed, and where batches live."""

    seed: int
    device: torch.device


class Feed:
    """The batches of any step, as a pure function of the step.

    `captions` says which caption a picture is shown with, `texts` has its conditioning; None when a text
    encoder is being trained. `masks` holds every record's loss weights [H, W] with a mean of 1, or None for
    all alike. Records behind those that the plan knows are class pictures, of which `class_rows` adds some to
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
        masks: Sequence[Tensor | None] = (),
        class_rows: ClassRows | None = None,
    ) -> None:
        self.class_rows = class_rows or ClassRows({}, per_picture=1, seed=options.seed)
        self.records, self.captions, self.texts = list(records), captions, texts
        self.plan, self.options = plan, options
        self.latents = latents.to(options.device)
        self._ahead = Ahead(self._micro_batch, plan.accumulation) if latents.on_disk else None
        self.geometry = torch.tensor([geometry(record) for record in self.records], device=options.device)
        self.weights = _weights(self.records, masks, options.device)

    def of_step(self, step: int) -> Iterator[Batch]:
        """The micro-batches of optimizer step `step`, which counts from 1."""
        get = self._ahead.get if self._ahead else self._micro_batch
        for number in range(self.plan.accumulation):
            yield get(step, number)

    def largest(self) -> Batch:
        """The first epoch's micro-batch with the most latents, for a trial."""
        first_epoch = self.plan.epoch(0)
        sizes = [sum(map(self.latents.size, micro.indices)) for micro in first_epoch]
        place = sizes.index(max(sizes))
        step, number = divmod(place, self.plan.accumulation)
        return self._assemble(step + 1, number, first_epoch[place])

    def _micro_batch(self, step: int, number: int) -> Batch:
        return self._assemble(step, number, self.plan.of_step(step)[number])

    def _assemble(self, step: int, number: int, micro: MicroBatch) -> Batch:
        indices = list(micro.indices)
        draw = generator(self.options.seed, step, number, "latents")
        shown = self.captions.of_micro_batch(step, number, micro)
        preserved = [row for row, one in enumerate(shown) if one.preserved]
        bucket = self.records[indices[0]].bucket
        beside = self.class_rows.beside(step, number, bucket=bucket, count=len(indices))
        captions = [one.text for one in shown] + [self.records[i].caption for i in beside]
        rows = indices + beside
        return Batch(
            latents=torch.stack([self.latents[i].sample(draw) for i in rows]),
            captions=captions,
            conditioning=None if self.texts is None else self.texts.batch(captions),
            geometry=self.geometry[rows],
            weight=self._weight(indices, beside),
            preserved=torch.tensor(preserved, dtype=torch.int64, device=self.options.device),
        )

    def _weight(self, indices: list[int], beside: list[int]) -> Tensor:
        """[B, 1, H, W] or [B, 1, 1, 1]; the batch's mean is the pictures' mean plus the class pictures' mean.

        As arXiv 2208.12242, eq. 2 has it, with a class picture's own weight for lambda.
        """
        rows = indices + beside
        weight = torch.stack(torch.broadcast_tensors(*(self.weights[i] for i in rows)))[:, None]
        if beside:
            shares = [len(rows) / len(part) for part in (indices, beside) for _ in part]
            weight = weight * torch.tensor(shares, device=weight.device).view(-1, 1, 1, 1)
        return weight


def _weights(records: Sequence[Record], masks: Sequence[Tensor | None], device: torch.device) -> list[Tensor]:
    """Every record's weight times its mask [H, W]; [1, 1] without one."""
    ones = torch.ones(1, 1)
    factors = [ones if mask is None else mask for mask in masks] or [ones] * len(records)
    return [(factor * record.weight).to(device) for record, factor in zip(records, factors, strict=True)]


def geometry(record: Record) -> list[float]:
    """Original height, width; crop top, left; target height, width: SDXL's order (arXiv 2307.01952, 2.2)."""
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
