"""Facts of a training that never was, for files that say them."""

from __future__ import annotations

from lora_studio.families.base import FileTraits
from lora_studio.metadata.write import TrainingFacts

TRAITS = FileTraits("sd_v1", False, "stable-diffusion-v1/lora", "epsilon")
FACTS = TrainingFacts(
    **{"name": "wood", "title": "Wood", "base": "", "base_fingerprint": "ab", "trigger": "zwx", "rank": 4},
    **{"alpha": 2.0, "steps": 9, "seed": 1, "num_images": 3, "resolution": 64, "learning_rate": 1e-4},
    **{"text_encoder_learning_rate": None, "optimizer": "adamw", "schedule": "cosine", "snr_gamma": 5.0},
    **{"debiased": False, "noise_offset": 0.0},
)
