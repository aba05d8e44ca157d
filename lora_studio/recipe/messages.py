"""What is wrong with a recipe, in sentences; and the words that other trainers have for its options."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, get_args

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from lora_studio.recipe.renamed import old_names_in
from lora_studio.registry import did_you_mean

_THEIRS = {
    "adapter.rank": "network_dim network_rank lora_rank",
    "adapter.alpha": "network_alpha lora_alpha",
    "adapter.kind": "network_module",
    "adapter.init_from": "network_weights",
    "adapter.max_norm": "scale_weight_norms",
    "base.model": "pretrained_model_name_or_path base_model_name",
    "base.prediction_type": "v_parameterization",
    "base.dtype": "mixed_precision",
    "export.dtype": "save_precision",
    "name": "output_name",
    "data.images": "train_data_dir instance_data_dir image_dir",
    "data.regularization_images.images": "reg_data_dir class_data_dir",
    "data.regularization_images.count": "num_class_images",
    "data.regularization_images.weight": "prior_loss_weight",
    "data.repeats": "num_repeats",
    "data.keep_tags": "keep_tokens",
    "data.shuffle_tags": "shuffle_caption",
    "data.caption_dropout": "caption_dropout_rate",
    "data.tag_dropout": "caption_tag_dropout_rate",
    "data.flip": "flip_aug",
    "data.max_token_chunks": "max_token_length",
    "objective.snr_gamma": "min_snr_gamma",
    "objective.multires_noise": "multires_noise_discount",
    "objective.input_perturbation": "ip_noise_gamma",
    "objective.loss": "loss_type",
    "objective.loss_delta": "huber_c",
    "training.steps": "max_train_steps",
    "training.epochs": "max_train_epochs num_train_epochs epoch",
    "training.batch_size": "train_batch_size",
    "training.gradient_accumulation": "gradient_accumulation_steps",
    "training.learning_rate": "lr unet_lr",
    "training.text_encoder_learning_rate": "text_encoder_lr",
    "training.lr_schedule": "lr_scheduler",
    "training.warmup_steps": "lr_warmup_steps",
    "training.optimizer": "optimizer_type",
    "training.optimizer_options": "optimizer_args",
    "training.checkpoint_every": "save_every_n_steps",
    "machine.attention": "xformers",
    "samples.prompts": "sample_prompts validation_prompt",
    "samples.every": "sample_every_n_steps",
}
"""Our options, and what kohya's sd-scripts, OneTrainer and the diffusers scripts call them."""
ELSEWHERE = {word: option for option, words in _THEIRS.items() for word in words.split()}


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
        about = _fields_at(location[:-1], recipe)[str(location[-1])].description or ""
        what, _, allowed = about.partition(": ")
        return f"{dotted} is {value!r}; it must be {allowed} ({what})."
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
