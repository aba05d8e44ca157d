"""Which keys of a file's metadata may be set by hand, and in which form; which ones stay if all others go."""

from __future__ import annotations

import json
from collections.abc import Mapping

from lora_studio.export.provenance import PREFIX
from lora_studio.registry import did_you_mean

NEEDED = frozenset(
    {
        *("ss_v2", "ss_base_model_version", "ss_network_module", "ss_network_dim", "ss_network_alpha"),
        *("ss_network_args", "modelspec.sai_model_spec", "modelspec.architecture"),
        *("sshs_model_hash", "sshs_legacy_hash"),  # of the tensors alone
        *("format", "lora_adapter_metadata"),  # without them transformers and diffusers misread some files
    }
)
"""What UIs need to take a file for what it is, as FORMATS has it, section 3."""

COMPUTED = ("sshs_model_hash", "sshs_legacy_hash", "modelspec.hash_sha256")
OBJECTS = ("ss_tag_frequency", "ss_bucket_info", "ss_dataset_dirs", "ss_reg_dataset_dirs", "ss_network_args")
SPEC = [
    *("sai_model_spec", "architecture", "implementation", "title", "resolution", "prediction_type", "date"),
    *("author", "description", "license", "tags", "usage_hint", "trigger_phrase", "thumbnail"),
    *("timestep_range", "encoder_layer", "merged_from", "hash_sha256", "is_negative_embedding"),
    *("preprocessor", "data_format", "block_size", "lang"),
]
"""The keys behind `modelspec.`, Stability's ModelSpec 1.0.1."""


def key_faults(changes: Mapping[str, str]) -> list[str]:
    """What is wrong with what a user wants to set: sentences without their full stops."""
    faults = []
    for key, value in changes.items():
        group, _, name = key.partition(".")
        if key in COMPUTED or key.startswith(PREFIX):
            faults.append(f"{key} tells what the file was made from or holds, and cannot be set")
        elif group == "modelspec" and name not in SPEC:
            faults.append(f"unknown key {key}{did_you_mean(name, SPEC)}")
        elif not key.isprintable() or not key.strip() or len(key) > 200:
            faults.append(f"{key[:50]!a} is no name of a key")
        elif key in OBJECTS and value and not _is_object(value):
            faults.append(f"{key} must be a JSON object, or the cards of A1111 and Forge break")
        elif key == "ss_output_name" and set(value) & set(":,>"):
            faults.append(f"ss_output_name is {value!r}, but it is a part of A1111's <lora:...>: no : , or >")
    return faults


def _is_object(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except ValueError:
        return False
