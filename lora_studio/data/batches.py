"""Which images are seen at which step: arithmetic on a plan, so there is no sampler state to save."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from lora_studio.data.manifest import Bucket, Record
from lora_studio.rng import python_random

if TYPE_CHECKING:
    from torch import Tensor


@dataclass
class Batch:
    """What the loop gets for one forward pass; H and W are in latents."""

    latents: Tensor  # [B, C, H, W], scaled as the denoiser was trained
    captions: list[str]
    conditioning: dict[str, Tensor] | None  # None: the text encoder is trained and reads the captions
    geometry: (
        Tensor  # [B, 6] in pixels: original height, width; crop top, left; target height, width (as SDXL)
    )
    weight: Tensor  # [B, 1, 1, 1], or [B, 1, H, W] if one of the images has a loss mask
    preserved: Tensor  # [P] int64 on the CPU, P <= B: the rows whose target is the frozen base's own answer
    like: Sequence[str] = ()  # captions that decide, beside its own, how many windows each of them takes
    outside: Tensor | None = None  # [B, 1, H, W]: what an error against the base's own answer counts
    masked: tuple[int, ...] = ()  # the rows in which that is not 0 throughout

    def __len__(self) -> int:
        return len(self.captions)

    def rows(self, wanted: slice) -> Batch:
        """Some rows that follow each other, as a batch of their own; it shares the tensors' memory."""
        import torch

        start, stop, _ = wanted.indices(len(self))
        if stop - start == len(self):
            return self
        conditioning = self.conditioning
        inside = [row - start for row in self.preserved.tolist() if start <= row < stop]
        return Batch(
            latents=self.latents[wanted],
            captions=self.captions[wanted],
            conditioning=None if conditioning is None else {k: v[wanted] for k, v in conditioning.items()},
            geometry=self.geometry[wanted],
            weight=self.weight[wanted],
            preserved=torch.tensor(inside, dtype=torch.int64),
            like=self.like or self.captions,
            outside=None if self.outside is None else self.outside[wanted],
            masked=tuple(row - start for row in self.masked if start <= row < stop),
        )


@dataclass(frozen=True)
class MicroBatch:
    """Images of one bucket, as indices into the used records; at least one, at most the batch size."""

    indices: tuple[int, ...]


class Plan:
    """The micro-batches of every epoch; all answers are functions of the arguments and the step."""

    def __init__(
        self, records: Sequence[Record], *, batch_size: int, gradient_accumulation: int, seed: int
    ) -> None:
        assert records and batch_size >= 1 and gradient_accumulation >= 1, (
            "the scan and the recipe see to that"
        )
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
        return [self._micro_batch(number) for number in numbers]

    def steps_of(self, epochs: float) -> int:
        """The optimizer steps in which so many epochs are shown to their ends; at least one."""
        micro_batches = round(
            epochs * self.micro_batches_per_epoch, 6
        )  # 0.1 x 30 is 3, not 3.0000000000000004
        return max(1, math.ceil(micro_batches / self.gradient_accumulation))

    def views_per_image(self, steps: int) -> list[int]:
        """How often each used record has been seen after `steps` optimizer steps."""
        epochs, rest = divmod(steps * self.gradient_accumulation, self.micro_batches_per_epoch)
        views = [0] * self.num_records
        for group in self._groups:
            for index in group:
                views[index] += epochs
        for micro_batch in self.epoch(epochs)[:rest]:
            for index in micro_batch.indices:
                views[index] += 1
        return views

    def _micro_batch(self, number: int) -> MicroBatch:
        epoch, position = divmod(number, self.micro_batches_per_epoch)
        return self.epoch(epoch)[position]

    def _epoch(self, epoch: int) -> tuple[MicroBatch, ...]:
        """An epoch's micro-batches (epochs count from 0): each bucket shuffled and cut up, then all mixed."""
        rng = python_random(self.seed, epoch, "order")
        batches = []
        for group in self._groups:
            order = rng.sample(group, len(group))
            for start in range(0, len(order), self.batch_size):
                batches.append(MicroBatch(tuple(order[start : start + self.batch_size])))
        rng.shuffle(batches)
        return tuple(batches)


def plan(records: Sequence[Record], *, batch_size: int, gradient_accumulation: int, seed: int) -> Plan:
    """The plan for the used records (`Manifest.used`): every epoch sees each of them exactly `repeats` times.

    A bucket's remainder makes a smaller batch; nothing is dropped or repeated to fill one up.
    """
    return Plan(records, batch_size=batch_size, gradient_accumulation=gradient_accumulation, seed=seed)


def average_views(plan: Plan, steps: int) -> float:
    """How often an image has been seen on average after `steps` optimizer steps."""
    return sum(plan.views_per_image(steps)) / plan.num_images
