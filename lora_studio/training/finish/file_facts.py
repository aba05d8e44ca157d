"""What the written files say of the base, the images and how they were trained, under kohya's names."""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Sequence

import torch

from lora_studio.data.batches import BatchPlan
from lora_studio.data.manifest import Manifest, Record
from lora_studio.families.loading.hub import is_hub_id
from lora_studio.files import digest, expanded
from lora_studio.metadata.provenance import provenance_keys
from lora_studio.metadata.write import TrainingFacts, caption_table, trigger_table
from lora_studio.objectives.noise import MOST_LEVELS
from lora_studio.pocket import EMBEDDED
from lora_studio.recipe import Recipe
from lora_studio.recipe.adapter import AdapterConfig
from lora_studio.recipe.training import ExportConfig
from lora_studio.training.prepare import TrainedRun
from lora_studio.training.prepare.base_model import objective_of
from lora_studio.training.prepare.resume import base_lora

_PRECISIONS = {torch.float32: "no", torch.bfloat16: "bf16", torch.float16: "fp16"}  # as accelerate has them
_LEGACY_START, _LEGACY_BYTES = 0x100000, 0x10000


def training_facts(trained: TrainedRun) -> TrainingFacts:
    """What the written files say of how they were made."""
    recipe, manifest, steps = trained.recipe, trained.manifest, trained.recipe.training.steps
    learned = {layer.part for layer in trained.adapters.layers}
    denoiser, training, sources = trained.family.denoiser, recipe.training, manifest.used
    sides = [max(one.bucket.width, one.bucket.height) for one in sources if one.bucket]
    latent_side = max(sides, default=recipe.data.resolution) // trained.family.pixels_per_latent
    loras, inputs = recipe.base.loras, trained.inputs
    by_snr = objective_of(recipe, trained.family).weighs_by_snr
    return TrainingFacts(
        name=recipe.name,
        title=recipe.export.title or recipe.name,
        base=public_name(recipe.base.model),
        base_fingerprint=trained.base_fingerprint,
        trigger=", ".join(dict.fromkeys(one.trigger for one in manifest.used if one.trigger)),
        rank=recipe.adapter.rank,
        alpha=recipe.adapter.alpha,
        steps=steps,
        seed=training.seed,
        num_images=len(manifest.used),
        resolution=recipe.data.resolution,
        learning_rate=training.learning_rate if denoiser in learned else None,
        text_encoder_learning_rate=training.text_encoder_learning_rate if learned - {denoiser} else None,
        optimizer=training.optimizer,
        schedule=training.lr_schedule,
        snr_gamma=recipe.objective.snr_gamma if by_snr else 0.0,
        debiased=by_snr and recipe.objective.weighting == "debiased",
        noise_offset=recipe.objective.noise_offset,
        needs=tuple((inputs[base_lora(number)], one.strength) for number, one in enumerate(loras)),
        options=base_keys(recipe.base.model)
        | training_keys(trained.batches, trained.machine.dtype, steps=steps)
        | image_keys(manifest)
        | used_options(recipe, manifest, latent_side=latent_side),
        spec=described(recipe.export),
        triggers=trigger_table(manifest.used),
        tags=caption_table(manifest.used) if recipe.export.tag_frequency else {},
        provenance=provenance_keys(manifest, recipe, base=trained.base_fingerprint),
        strength=recipe.export.strength,
    )


def public_name(model: str) -> str:
    """A base's name that says the same everywhere: one in the package or a hub id; empty for a path."""
    return model if model in EMBEDDED or is_hub_id(model) else ""


def base_keys(model: str) -> dict[str, str]:
    """Name and hashes of a base: a file's own name without its folders, and of a folder nothing."""
    path = expanded(model)
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


def training_keys(batches: BatchPlan, dtype: torch.dtype, *, steps: int) -> dict[str, str]:
    """How long and in which precision; "None" is kohya's word for the layer that the base itself reads."""
    per_epoch = batches.micro_batches_per_epoch / batches.gradient_accumulation
    return {
        "ss_num_epochs": str(math.ceil(steps / per_epoch)),
        "ss_num_batches_per_epoch": str(batches.micro_batches_per_epoch),
        "ss_total_batch_size": str(batches.batch_size * batches.gradient_accumulation),
        "ss_mixed_precision": _PRECISIONS[dtype],
        "ss_clip_skip": "None",
    }


def image_keys(manifest: Manifest) -> dict[str, str]:
    """Buckets and numbers of images, in the forms that A1111 and Forge read; no names."""
    buckets = Counter(one.bucket for one in manifest.used if one.bucket)
    table = {
        str(number): {"resolution": [bucket.width, bucket.height], "count": count}
        for number, (bucket, count) in enumerate(sorted(buckets.items(), key=lambda one: one[0].name))
    }
    keys = {"ss_bucket_info": json.dumps({"buckets": table}), "ss_dataset_dirs": _by_repeats(manifest.used)}
    priors = manifest.of_role("prior")
    return keys | ({"ss_reg_dataset_dirs": _by_repeats(priors)} if priors else {})


def _by_repeats(records: Sequence[Record]) -> str:
    """In place of folders, whose names are private: images that are shown equally often."""
    counts = sorted(Counter(one.repeats for one in records).items())
    folders = {f"{times}_images": {"n_repeats": times, "img_count": count} for times, count in counts}
    return json.dumps(folders)


def described(config: ExportConfig) -> dict[str, str]:
    """What the user says of the file, if anything."""
    values = {"author": config.author, "description": config.description, "license": config.license}
    values["tags"] = ", ".join(config.tags)
    return {f"modelspec.{name}": value for name, value in values.items() if value}


def used_options(recipe: Recipe, manifest: Manifest, *, latent_side: int) -> dict[str, str]:
    """Key -> value of all options that are used; no path, name or caption. `latent_side`: the longer one."""
    objective, training = recipe.objective, recipe.training
    accumulation = training.gradient_accumulation
    is_huber, regularization_images = objective.loss != "l2", manifest.of_role("prior")
    weights = {record.weight for record in regularization_images}
    levels = min(MOST_LEVELS, max(1, latent_side.bit_length() - 1))  # halved down to a single number
    values: dict[str, str | int | float] = {
        "ss_loss_type": objective.loss if is_huber else "",
        "ss_huber_schedule": "constant" if is_huber else "",
        "ss_huber_c": objective.loss_delta if is_huber else 0,
        "ss_multires_noise_iterations": levels if objective.multires_noise else 0,
        "ss_multires_noise_discount": objective.multires_noise,
        "ss_ip_noise_gamma": objective.input_perturbation,
        "ss_num_reg_images": len(regularization_images),
        "ss_prior_loss_weight": weights.pop() if len(weights) == 1 else 0,
        "ss_scale_weight_norms": recipe.adapter.max_norm,
        "ss_caption_dropout_rate": recipe.data.caption_dropout,
        "ss_caption_tag_dropout_rate": recipe.data.tag_dropout,
        "ss_lr_warmup_steps": training.warmup,
        "ss_gradient_accumulation_steps": accumulation if accumulation > 1 else 0,
        "ss_max_grad_norm": training.max_grad_norm,
    }
    texts = {key: value if isinstance(value, str) else f"{value:g}" for key, value in values.items() if value}
    if arguments := _network_arguments(recipe.adapter):
        texts["ss_network_args"] = json.dumps(arguments)
    # numbers and switches only: a text may be a path
    options = [f"{key}={one}" for key, one in training.optimizer_options.items() if not isinstance(one, str)]
    if options:
        texts["ss_optimizer"] = f"{training.optimizer}({','.join(options)})"
    return texts


def _network_arguments(adapter: AdapterConfig) -> dict[str, str]:
    values = {
        "conv_dim": adapter.conv_rank,
        "conv_alpha": adapter.conv_alpha,
        "rank_dropout": adapter.rank_dropout,
        "module_dropout": adapter.module_dropout,
        "loraplus_lr_ratio": adapter.lora_plus_ratio if adapter.lora_plus_ratio != 1 else None,
    }
    return {name: f"{value:g}" for name, value in values.items() if value}
