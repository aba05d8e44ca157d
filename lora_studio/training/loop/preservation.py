"""The frozen base's own answers, which preserved images teach, and others outside of their masks."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from lora_studio.adapters.adapter_set import AdapterSet
from lora_studio.data.batches import Batch
from lora_studio.families.base import ModelFamily
from lora_studio.objectives.diffusion import NoisyBatch


class Targets(NamedTuple):
    """What the denoiser should answer, each [B, C, H, W]."""

    learned: Tensor  # the objective's targets; in the preserved rows the base's own answers
    outside: Tensor  # the base's own answers in the masked rows, too: what counts outside of their masks


@torch.no_grad()
def with_base_answers(noised: NoisyBatch, batch: Batch, family: ModelFamily, adapters: AdapterSet) -> Targets:
    """The targets of a batch; one pass of the frozen base serves preserved and masked rows alike."""
    preserved = batch.preserved.tolist()
    asked = sorted({*preserved, *batch.masked})
    if not asked:
        return Targets(noised.target, noised.target)
    rows = _indices(asked, family.device)
    with adapters.disabled():
        if batch.conditioning is None:
            captions = [batch.captions[row] for row in asked]
            conditioning = family.encode_text(captions, like=batch.like or batch.captions)
        else:
            conditioning = {name: tensor[rows] for name, tensor in batch.conditioning.items()}
        answer = family.denoise(
            noised.latents[rows], noised.timestep[rows], conditioning, batch.geometry[rows]
        ).to(noised.target.dtype)
    outside = noised.target.index_copy(0, rows, answer)
    if preserved == asked:
        return Targets(outside, outside)
    of_preserved = _indices([asked.index(row) for row in preserved], family.device)
    learned = noised.target.index_copy(
        0, _indices(preserved, family.device), answer.index_select(0, of_preserved)
    )
    return Targets(learned, outside)


def _indices(rows: list[int], device: torch.device) -> Tensor:
    return torch.tensor(rows, dtype=torch.int64).to(device, non_blocking=True)
