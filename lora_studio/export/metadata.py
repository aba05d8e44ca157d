"""What a finished file says about itself: what UIs read, and nothing about the user's machine.

No clock, path, user or folder name goes in: the same recipe gives the same bytes, and a file can be given
away.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field

from lora_studio import __version__
from lora_studio.families.base import FileTraits

MAX_BYTES = 64 * 1024


@dataclass(frozen=True)
class TrainingFacts:
    """What is worth telling about how a file was made."""

    name: str
    title: str
    base: str  # the base's public name, or "" for a local folder
    base_fingerprint: str
    trigger: str
    rank: int
    alpha: float
    steps: int
    seed: int
    num_images: int
    resolution: int
    learning_rate: float
    text_encoder_learning_rate: float | None
    optimizer: str
    schedule: str
    snr_gamma: float
    debiased: bool
    noise_offset: float
    needs: tuple[tuple[str, float], ...] = ()  # sha256 and strength of LoRAs that are merged into the base
    options: Mapping[str, str] = field(default_factory=dict)  # further ss_* keys, of what was used


def build_metadata(facts: TrainingFacts, traits: FileTraits, tensor_block: bytes) -> dict[str, str]:
    """Header metadata; `tensor_block` is the file without its header, for the hashes that UIs know it by."""
    optional = {
        "ss_min_snr_gamma": f"{facts.snr_gamma:g}" if facts.snr_gamma and not facts.debiased else "",
        "ss_debiased_estimation": "True" if facts.debiased else "",
        "ss_noise_offset": f"{facts.noise_offset:g}" if facts.noise_offset else "",
        "ss_text_encoder_lr": f"{facts.text_encoder_learning_rate:g}"
        if facts.text_encoder_learning_rate
        else "",
        "ss_sd_model_name": facts.base,
        "ss_training_comment": _needs_in_words(facts),
        "lora_studio.base_loras": json.dumps(facts.needs) if facts.needs else "",
        "modelspec.trigger_phrase": facts.trigger,
        "lora_studio.base": facts.base,
        # tags, not sentences: the way A1111 and Forge learn the trigger
        "ss_tag_frequency": json.dumps({"trigger": {facts.trigger: facts.num_images}})
        if facts.trigger
        else "",
    }
    metadata = _kohya(facts, traits) | _modelspec(facts, traits) | {k: v for k, v in optional.items() if v}
    metadata |= dict(facts.options)
    metadata |= {
        "lora_studio.version": __version__,
        "lora_studio.base_fingerprint": facts.base_fingerprint,
    } | hashes(tensor_block)
    size = sum(len(key) + len(value.encode()) for key, value in metadata.items())
    assert size < MAX_BYTES, f"metadata of {size} bytes"
    return metadata


def hashes(tensor_block: bytes) -> dict[str, str]:
    """By which UIs know a file, whatever its metadata says."""
    return {
        "sshs_model_hash": hashlib.sha256(tensor_block).hexdigest(),
        "sshs_legacy_hash": hashlib.sha256(tensor_block[0x100000:0x110000]).hexdigest()[:8],
    }


def _needs_in_words(facts: TrainingFacts) -> str:
    """What has to be loaded beside this file: by hashes, which UIs know files by; names are private."""
    named = [f"sha256 {digest[:10]} at {strength:g}" for digest, strength in facts.needs]
    return f"made on top of other LoRAs, and needs them: {', '.join(named)}" if named else ""


def _kohya(facts: TrainingFacts, traits: FileTraits) -> dict[str, str]:
    return {
        "ss_v2": str(traits.is_v2),
        "ss_base_model_version": traits.base_model_version,
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(facts.rank),
        "ss_network_alpha": f"{facts.alpha:g}",
        "ss_network_args": "{}",
        "ss_output_name": facts.name,
        "ss_resolution": f"({facts.resolution}, {facts.resolution})",
        "ss_num_train_images": str(facts.num_images),
        "ss_steps": str(facts.steps),
        "ss_seed": str(facts.seed),
        "ss_unet_lr": f"{facts.learning_rate:g}",
        "ss_optimizer": facts.optimizer,
        "ss_lr_scheduler": facts.schedule,
    }


def _modelspec(facts: TrainingFacts, traits: FileTraits) -> dict[str, str]:
    return {
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": traits.architecture,
        "modelspec.implementation": "https://github.com/Stability-AI/generative-models",
        "modelspec.title": facts.title,
        "modelspec.resolution": f"{facts.resolution}x{facts.resolution}",
        "modelspec.prediction_type": traits.prediction_type,
    }
