"""The answers that preserved pictures are to teach: the frozen base's own."""

from __future__ import annotations

import torch
from torch import Tensor

from lora_studio.adapters.base import AdapterSet
from lora_studio.data.batches import Batch
from lora_studio.families.base import ModelFamily
from lora_studio.objective import Noised


@torch.no_grad()
def with_base_answers(noised: Noised, batch: Batch, family: ModelFamily, adapters: AdapterSet) -> Tensor:
    """The targets, where in the preserved rows stands what the frozen base itself answers."""
    if not len(batch.preserved):
        return noised.target
    rows = batch.preserved.to(family.device, non_blocking=True)
    with adapters.disabled():
        if batch.conditioning is None:
            captions = [batch.captions[row] for row in batch.preserved.tolist()]
            conditioning = family.encode_text(captions, like=batch.like or batch.captions)
        else:
            conditioning = {name: tensor[rows] for name, tensor in batch.conditioning.items()}
        answer = family.denoise(
            noised.latents[rows], noised.timestep[rows], conditioning, batch.geometry[rows]
        )
    return noised.target.index_copy(0, rows, answer.to(noised.target.dtype))
