"""The frozen base's own predictions: targets of preserved images, and of others outside of their masks."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from lora_studio.adapters.adapter_set import AdapterSet
from lora_studio.data.batches import Batch
from lora_studio.families.base import ModelFamily
from lora_studio.objectives.diffusion import NoisyBatch


class Targets(NamedTuple):
    """What the denoiser should predict, each [B, C, H, W]."""

    learned: Tensor  # the objective's targets; in the preserved rows the base's predictions
    outside: Tensor  # the base's predictions in the masked rows, too: what counts outside of their masks


@torch.no_grad()
def with_base_predictions(
    noisy: NoisyBatch, batch: Batch, family: ModelFamily, adapters: AdapterSet
) -> Targets:
    """The targets of a batch; one pass of the frozen base serves preserved and masked rows alike."""
    preserved = batch.preserved.tolist()
    wanted = sorted({*preserved, *batch.masked})
    if not wanted:
        return Targets(noisy.target, noisy.target)
    rows = _indices(wanted, family.device)
    with adapters.disabled():
        if batch.conditioning is None:
            captions = [batch.captions[row] for row in wanted]
            conditioning = family.encode_text(captions, like=batch.like or batch.captions)
        else:
            conditioning = {name: tensor[rows] for name, tensor in batch.conditioning.items()}
        prediction = family.denoise(
            noisy.latents[rows], noisy.timestep[rows], conditioning, batch.geometry[rows]
        ).to(noisy.target.dtype)
    outside = noisy.target.index_copy(0, rows, prediction)
    if preserved == wanted:
        return Targets(outside, outside)
    of_preserved = prediction.index_select(
        0, _indices([wanted.index(row) for row in preserved], family.device)
    )
    learned = noisy.target.index_copy(0, _indices(preserved, family.device), of_preserved)
    return Targets(learned, outside)


def _indices(rows: list[int], device: torch.device) -> Tensor:
    return torch.tensor(rows, dtype=torch.int64).to(device, non_blocking=True)
