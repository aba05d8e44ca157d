"""What a run wrote, what the files say of it, and what stands beside them."""

from __future__ import annotations

import math
import platform
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from lora_studio.evaluate import validation_summary
from lora_studio.files import digest_of, size_of
from lora_studio.metadata.provenance import provenance_keys
from lora_studio.metadata.write import TrainingFacts, caption_table, trigger_table
from lora_studio.runs import VALIDATION
from lora_studio.training.context import TrainedRun
from lora_studio.training.finish.file_facts import (
    base_keys,
    described,
    image_keys,
    public_name,
    training_keys,
    used_options,
)
from lora_studio.training.prepare import Session
from lora_studio.training.prepare.resume import base_lora
from lora_studio.version import __version__


def training_facts(trained: TrainedRun) -> TrainingFacts:
    """What the written files say of how they were made."""
    recipe, manifest, steps = trained.recipe, trained.manifest, trained.recipe.training.steps
    learned = {layer.part for layer in trained.adapters.layers}
    denoiser = trained.family.denoiser
    return TrainingFacts(
        name=recipe.name,
        title=recipe.export.title or recipe.name,
        base=public_name(recipe.base.model),
        base_fingerprint=trained.base_fingerprint,
        trigger=", ".join(dict.fromkeys(one.trigger for one in manifest.used if one.trigger)),
        rank=recipe.adapter.rank,
        alpha=recipe.adapter.alpha,
        steps=steps,
        seed=recipe.training.seed,
        num_images=len(manifest.used),
        resolution=recipe.data.resolution,
        learning_rate=recipe.training.learning_rate if denoiser in learned else None,
        text_encoder_learning_rate=recipe.training.text_encoder_learning_rate
        if learned - {denoiser}
        else None,
        optimizer=recipe.training.optimizer,
        schedule=recipe.training.lr_schedule,
        snr_gamma=recipe.objective.snr_gamma,
        debiased=recipe.objective.weighting == "debiased",
        noise_offset=recipe.objective.noise_offset,
        needs=tuple(
            (trained.inputs[base_lora(number)], one.strength) for number, one in enumerate(recipe.base.loras)
        ),
        options=base_keys(recipe.base.model)
        | training_keys(trained.batches, trained.machine.dtype, steps=steps)
        | image_keys(manifest)
        | used_options(recipe, manifest, latent_side=_longest_latent_side(trained)),
        spec=described(recipe.export),
        triggers=trigger_table(manifest.used),
        tags=caption_table(manifest.used) if recipe.export.tag_frequency else {},
        provenance=provenance_keys(manifest, recipe, base=trained.base_fingerprint),
        strength=recipe.export.strength,
    )


def _longest_latent_side(trained: TrainedRun) -> int:
    sides = [max(one.bucket.width, one.bucket.height) for one in trained.manifest.used if one.bucket]
    return max(sides, default=trained.recipe.data.resolution) // trained.family.pixels_per_latent


def summarise(
    session: Session, path: Path, embeddings: Mapping[str, Path], seconds: dict[str, float]
) -> dict[str, Any]:
    """What happened, with the clock and the machine: these stay out of the files.

    `path`: the LoRA file, or if tokens alone were trained the first one's; `embeddings`: word -> its file.
    """
    rows = session.run.metrics()
    losses = [row["loss"] for row in rows if row["loss"] is not None] or [math.nan]
    tenth = max(1, len(losses) // 10)
    return {
        "file": path.name,
        "sha256": digest_of(path),
        "file_bytes": size_of(path),
        "embeddings": {
            word: {"file": one.name, "sha256": digest_of(one)} for word, one in embeddings.items()
        },
        "steps": len(rows),
        "passes": session.loop.state.counters.passes,  # more than one if memory ran out
        "steps_skipped": session.loop.state.counters.skipped,
        "validation": validation_summary(session.run.lines(VALIDATION)),
        "loss_first_tenth": sum(losses[:tenth]) / tenth,
        "loss_last_tenth": sum(losses[-tenth:]) / tenth,
        "images_used": len(session.manifest.used),
        "images_excluded": len(session.manifest.excluded),
        "views_per_image": round(session.batches.average_views(session.recipe.training.steps), 1),
        "trainable_parameters": session.adapters.num_parameters,
        "seconds": {name: round(value, 1) for name, value in seconds.items()},
        "finished_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": str(session.machine.device),
        "precision": str(session.machine.dtype).removeprefix("torch."),
        "quantized": session.recipe.base.quantize,
        "versions": {
            "lora_studio": __version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
        },
    }
