"""What the written files say of the base, the pictures and how they were trained, under kohya's names."""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import torch

from lora_studio.base_names import POCKET
from lora_studio.data.batches import Plan
from lora_studio.data.manifest import Manifest, Record
from lora_studio.export.plain_file import digest
from lora_studio.families.hub import is_hub_id
from lora_studio.recipe import ExportConfig

_PRECISIONS = {torch.float32: "no", torch.bfloat16: "bf16", torch.float16: "fp16"}  # as accelerate has them
_LEGACY_START, _LEGACY_BYTES = 0x100000, 0x10000


def public_name(model: str) -> str:
    """A base's name that says the same everywhere: the pocket base or a hub id; empty for a path."""
    return model if model == POCKET or is_hub_id(model) else ""


def base_keys(model: str) -> dict[str, str]:
    """Name and hashes of a base: a file's own name without its folders, and of a folder nothing."""
    path = Path(model).expanduser()
    if public_name(model) or not path.is_file():
        return {"ss_sd_model_name": public_name(model)} if public_name(model) else {}
    with path.open("rb") as file:
        file.seek(_LEGACY_START)
        legacy = file.read(_LEGACY_BYTES)
    return {
        "ss_sd_model_name": path.name,
        "ss_sd_model_hash": hashlib.sha256(legacy).hexdigest()[:8],
        "ss_new_sd_model_hash": digest(path),
    }


def training_keys(batches: Plan, dtype: torch.dtype, *, steps: int) -> dict[str, str]:
    """How long and in which precision; "None" is kohya's word for the layer that the base itself reads."""
    per_epoch = batches.micro_batches_per_epoch / batches.accumulation
    return {
        "ss_num_epochs": str(math.ceil(steps / per_epoch)),
        "ss_num_batches_per_epoch": str(batches.micro_batches_per_epoch),
        "ss_total_batch_size": str(batches.batch_size * batches.accumulation),
        "ss_mixed_precision": _PRECISIONS[dtype],
        "ss_clip_skip": "None",
    }


def picture_keys(manifest: Manifest) -> dict[str, str]:
    """Buckets and numbers of pictures, in the forms that A1111 and Forge read; no names."""
    buckets = Counter(one.bucket for one in manifest.used if one.bucket)
    table = {
        str(number): {"resolution": [bucket.width, bucket.height], "count": count}
        for number, (bucket, count) in enumerate(sorted(buckets.items(), key=lambda one: one[0].name))
    }
    keys = {
        "ss_bucket_info": json.dumps({"buckets": table}),
        "ss_dataset_dirs": json.dumps(_by_repeats(manifest.used)),
    }
    priors = manifest.of_role("prior")
    return keys | ({"ss_reg_dataset_dirs": json.dumps(_by_repeats(priors))} if priors else {})


def _by_repeats(records: Sequence[Record]) -> dict[str, dict[str, int]]:
    """In place of folders, whose names are private: pictures that are shown equally often."""
    counts = sorted(Counter(one.repeats for one in records).items())
    return {f"{repeats}_images": {"n_repeats": repeats, "img_count": count} for repeats, count in counts}


def described(wishes: ExportConfig) -> dict[str, str]:
    """What the user says of the file, as far as he does."""
    values = {
        "author": wishes.author,
        "description": wishes.description,
        "license": wishes.license,
        "tags": ", ".join(wishes.tags),
    }
    return {f"modelspec.{name}": value for name, value in values.items() if value}
