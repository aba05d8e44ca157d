"""Whether a base knows what to do with a run's images: a wrong sign, scale or template shows at once."""

from __future__ import annotations

import torch

from lora_studio.rng import generator
from lora_studio.text import Rows
from lora_studio.training.prepare import Session

SANE_SIGMAS = (0.2, 0.5, 0.8)
NOTHING = 0.95  # of the variance: a trained base has 0.2 to 0.7


@torch.no_grad()
def untouched_error(session: Session) -> float | None:
    """The base's mean squared error over the variance of what it should predict, at three sigmas.

    Of up to two of the run's images. None for an objective that is not flow matching.
    """
    loop, family = session.loop, session.family
    if not loop.objective.is_flow:
        return None
    batch, errors, variances = loop.feed.micro_batch(1, 0).rows(slice(0, 2)), 0.0, 0.0
    noise = torch.randn(batch.latents.shape, generator=generator("sanity"))
    dtype = session.machine.autocast
    autocast = torch.autocast(family.device.type, dtype, enabled=dtype is not None)
    with session.adapters.disabled(), autocast:
        texts = batch.conditioning or family.encode_text(batch.captions)
        for sigma in SANE_SIGMAS:
            noisy = loop.objective.noise_at(batch.latents, noise, torch.full((len(batch),), sigma))
            prediction = family.denoise(noisy.latents, noisy.timestep, texts, batch.geometry)
            errors += (prediction.float() - noisy.target).square().mean().item()
            variances += noisy.target.var().item()
    return errors / variances


def error_rows(error: float | None) -> Rows:
    """(title, text): the figure, with a warning where a constant would be as good; nothing without one."""
    if error is None:
        return []
    rows = [("base", f"validation loss of the untouched base: {error:.2f} of the target's variance")]
    if error >= NOTHING:
        what = (
            "which is no better than no prediction: its parts may not belong together, or it is no base yet"
        )
        rows.append(("warning", f"{what}; look at its previews (samples.prompts)"))
    return rows
