"""What is wrong with a recipe, in sentences; and the words that other trainers have for its options."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, get_args

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from lora_studio.recipe.renamed import old_names_in
from lora_studio.registry import did_you_mean

ELSEWHERE = {
    "network_dim": "adapter.rank",
    "network_rank": "adapter.rank",
    "lora_rank": "adapter.rank",
    "network_alpha": "adapter.alpha",
    "lora_alpha": "adapter.alpha",
    "network_module": "adapter.kind",
    "network_weights": "adapter.init_from",
    "scale_weight_norms": "adapter.max_norm",
    "pretrained_model_name_or_path": "base.model",
    "base_model_name": "base.model",
    "v_parameterization": "base.prediction_type",
    "mixed_precision": "base.dtype",
    "save_precision": "export.dtype",
    "output_name": "name",
    "train_data_dir": "data.images",
    "instance_data_dir": "data.images",
    "image_dir": "data.images",
    "reg_data_dir": "data.regularization_images.images",
    "class_data_dir": "data.regularization_images.images",
    "num_class_images": "data.regularization_images.count",
    "prior_loss_weight": "data.regularization_images.weight",
    "num_repeats": "data.repeats",
    "keep_tokens": "data.keep_tags",
    "shuffle_caption": "data.shuffle_tags",
    "caption_dropout_rate": "data.caption_dropout",
    "caption_tag_dropout_rate": "data.tag_dropout",
    "flip_aug": "data.flip",
    "max_token_length": "data.max_token_chunks",
    "min_snr_gamma": "objective.snr_gamma",
    "multires_noise_discount": "objective.multires_noise",
    "ip_noise_gamma": "objective.input_perturbation",
    "loss_type": "objective.loss",
    "huber_c": "objective.loss_delta",
    "max_train_steps": "training.steps",
    "max_train_epochs": "training.epochs",
    "num_train_epochs": "training.epochs",
    "epoch": "training.epochs",
    "train_batch_size": "training.batch_size",
    "gradient_accumulation_steps": "training.gradient_accumulation",
    "lr": "training.learning_rate",
    "unet_lr": "training.learning_rate",
    "text_encoder_lr": "training.text_encoder_learning_rate",
    "lr_scheduler": "training.lr_schedule",
    "lr_warmup_steps": "training.warmup_steps",
    "optimizer_type": "training.optimizer",
    "optimizer_args": "training.optimizer_options",
    "save_every_n_steps": "training.checkpoint_every",
    "xformers": "machine.attention",
    "sample_prompts": "samples.prompts",
    "validation_prompt": "samples.prompts",
    "sample_every_n_steps": "samples.every",
}
"""Keys of kohya sd-scripts, OneTrainer and the diffusers scripts to ours."""


def sentences(errors: Sequence[ErrorDetails], recipe: type[BaseModel]) -> list[str]:
    """One for each of pydantic's errors: where, what, and what is allowed. A table's keys are listed once."""
    told: set[tuple[int | str, ...]] = set()
    return [_sentence(detail, recipe, told) for detail in errors]


def _sentence(detail: ErrorDetails, recipe: type[BaseModel], told: set[tuple[int | str, ...]]) -> str:
    if detail["type"] == "value_error":  # a check of ours, in our own words
        return str(detail["ctx"]["error"])
    location, value = detail["loc"], detail["input"]
    dotted = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location)[1:]
    if detail["type"] == "extra_forbidden":
        return f"unknown key {dotted}{_hint(location, recipe, told)}."
    if detail["type"] == "missing":
        return f"{dotted} is missing; it has no default."
    if detail["type"] == "tuple_type":
        return f"{dotted} is {value!r}: it must be a list; if it is a table, write [[{dotted}]]."
    if detail["type"] == "string_pattern_mismatch":
        about = _fields_at(location[:-1], recipe)[str(location[-1])].description
        return f"{dotted} is {value!r}, which cannot be ({about})."
    message = detail["msg"]
    return f"{dotted} is {value!r}: {message[:1].lower()}{message[1:]}."


def _hint(location: tuple[int | str, ...], recipe: type[BaseModel], told: set[tuple[int | str, ...]]) -> str:
    """What may have been meant, and once for each table what it knows."""
    key, table = str(location[-1]), location[:-1]
    known = list(_fields_at(table, recipe))
    here = ELSEWHERE.get(key)
    hint = f"; here it is {here}" if here else did_you_mean(key, known, renamed=old_names_in(table))
    listed = "" if table in told else f" (known here: {', '.join(known)})"
    told.add(table)
    return hint + listed


def _fields_at(location: tuple[int | str, ...], recipe: type[BaseModel]) -> dict[str, FieldInfo]:
    """The fields of the recipe itself (empty location) or of one of its tables."""
    model = recipe
    for part in location:
        if isinstance(part, int):  # which one of several tables of one kind
            continue
        annotation: Any = model.model_fields[part].annotation
        model = annotation if isinstance(annotation, type) else get_args(annotation)[0]
    return model.model_fields
