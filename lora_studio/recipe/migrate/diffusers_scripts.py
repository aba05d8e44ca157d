"""Command lines of diffusers' LoRA examples: text_to_image and dreambooth, for SD, SDXL, SD3 and FLUX.1."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

from lora_studio.recipe.migrate.draft import Draft, Settings, rules
from lora_studio.recipe.migrate.folders import Places, missing
from lora_studio.recipe.migrate.meanings import (
    TheirSchedule,
    put_dtype,
    put_files,
    put_name,
    put_schedule,
    put_size,
)
from lora_studio.recipe.migrate.optimizers import put_optimizer
from lora_studio.recipe.migrate.reading import TrainingCommand

TITLE = "diffusers' example scripts"


@dataclass(frozen=True)
class _Script:
    """What one script does unless it is told otherwise."""

    epochs: int = 1
    batch: int = 4
    rate: float = 1e-4
    resolution: int = 512
    decay: float = 1e-2
    is_flow: bool = False
    dreambooth: bool = True
    encoder_rate: float | None = None  # None: the denoiser's
    alpha: float | None = None  # None: the rank


_TEXT_TO_IMAGE = _Script(epochs=100, batch=16, dreambooth=False)
_LATER = _Script(resolution=1024, decay=1e-4, encoder_rate=5e-6)
SCRIPTS = {
    "train_text_to_image_lora.py": _TEXT_TO_IMAGE,
    "train_text_to_image_lora_sdxl.py": _Script(epochs=100, batch=16, resolution=1024, dreambooth=False),
    "train_dreambooth_lora.py": _Script(rate=5e-4),
    "train_dreambooth_lora_sdxl.py": replace(_LATER, alpha=4.0),
    "train_dreambooth_lora_sdxl_advanced.py": _LATER,
    "train_dreambooth_lora_sd15_advanced.py": _Script(decay=1e-4, encoder_rate=5e-6),
    "train_dreambooth_lora_flux.py": _Script(decay=1e-4, is_flow=True, encoder_rate=5e-6, alpha=4.0),
    "train_dreambooth_lora_flux_advanced.py": _Script(decay=1e-4, is_flow=True, encoder_rate=5e-6),
    "train_dreambooth_lora_sd3.py": _Script(decay=1e-4, is_flow=True, encoder_rate=5e-6),
}


def take(draft: Draft, places: Places, command: TrainingCommand, *, source: str) -> None:
    """All arguments of a command. Raises RecipeError for values of the wrong kind and missing folders."""
    script = SCRIPTS[command.script]
    defaults = {
        "train_batch_size": script.batch,
        "learning_rate": script.rate,
        "resolution": script.resolution,
        "rank": 4,
        "optimizer": "AdamW",
        "lr_scheduler": "constant",
        "num_train_epochs": script.epochs,
    }
    started = Settings(draft, command.launcher, prefix="accelerate ", source=source)
    given = Settings(draft, command.arguments, defaults=defaults, source=source)
    draft.is_flow = script.is_flow
    if started.has("mixed_precision") and not given.has("mixed_precision"):
        put_dtype(started, "mixed_precision", "base.dtype")
    elif started.has("mixed_precision"):
        started.along("mixed_precision", "base.dtype")
    _base(given, places, script)
    _layers(given, script, is_flux="flux" in command.script)
    processes = started.whole("num_processes") or 1
    _data(given, places, script)
    _training(given, script, processes)
    _objective(given, script, is_flux="flux" in command.script)
    if given.has("validation_prompt"):
        given.exactly("validation_prompt", "samples.prompts", [given.text("validation_prompt")])
    if given.has("report_to"):
        services = [one for one in ("tensorboard", "wandb") if given.text("report_to") in (one, "all")]
        if services:
            given.exactly("report_to", "tracking.to", services)
        else:
            given.off_or("report_to", "tracking.to knows tensorboard, wandb and trackio")
    if given.has("output_dir"):
        put_name(given, "output_dir")
    given.finish(rules("diffusers_scripts"))
    started.finish(rules("diffusers_scripts"))


def _base(given: Settings, places: Places, script: _Script) -> None:
    vae = "pretrained_vae_model_name_or_path"
    put_files(given, places, {"pretrained_model_name_or_path": "base.model", vae: "base.vae"})
    if given.has("mixed_precision"):
        put_dtype(given, "mixed_precision", "base.dtype")
    if given.has("prediction_type"):
        given.exactly("prediction_type", "base.prediction_type", given.text("prediction_type"))


def _layers(given: Settings, script: _Script, *, is_flux: bool) -> None:
    """Rank, alpha, and only the layers that the scripts train."""
    values = given.draft.values
    rank = given.whole("rank") or 4
    given.exactly("rank", "adapter.rank", rank)
    alpha = script.alpha or float(rank)
    if given.has("lora_alpha"):
        given.exactly("lora_alpha", "adapter.alpha", given.number("lora_alpha"))
    elif alpha != rank:
        given.draft.notes.append(
            f"alpha is {alpha:g} unless --lora_alpha says another; before June 2025 the script had none, and "
            f"it was the rank: for a diffusers of then set adapter.alpha = {rank}"
        )
    values["adapter.alpha"] = given.number("lora_alpha") or alpha
    if given.yes("use_dora"):
        given.exactly("use_dora", "adapter.kind", "dora")
    encoder = given.yes("train_text_encoder")
    if given.has("train_text_encoder") and script.is_flow:
        given.unsupported("train_text_encoder", "the text encoders of such a base stay frozen")
    elif given.has("train_text_encoder"):
        given.exactly("train_text_encoder", "adapter.text_encoder", encoder)
    if given.has("lora_layers"):
        return
    left = ["*.ff.net.*", "*.proj_in", "*.proj_out"]
    if script.is_flow:
        left = ["*.proj_mlp", "single_transformer_blocks.*.proj_out"] if is_flux else ["*.ff*.net.*"]
    elif encoder:
        left += ["text_encoder*.fc1", "text_encoder*.fc2"]
    values["adapter.layers"] = [{"pattern": one, "train": False} for one in left]
    what = "attention and feed-forward of its double blocks" if is_flux else "the attention layers"
    given.draft.notes.append(f"the script trains {what} alone; [[adapter.layers]] leaves the others out")


def _data(given: Settings, places: Places, script: _Script) -> None:
    values = given.draft.values
    key = "instance_data_dir" if given.has("instance_data_dir") else "train_data_dir"
    said = given.text(key)
    folder = places.folder(said, alone=True)
    if folder is None:
        raise missing([said or given.text("dataset_name") or key])
    values["data.images"] = places.written(folder)
    if given.has(key) and places.find(said) == folder:
        given.exactly(key, "data.images", values["data.images"])
    elif given.has(key):
        given.changed(key, "data.images", values["data.images"], "not on this machine: --images")
    put_size(given, "resolution")
    values["data.caption_dropout"] = given.number("proportion_empty_prompts") or 0.0
    if given.has("proportion_empty_prompts"):
        given.exactly("proportion_empty_prompts", "data.caption_dropout", values["data.caption_dropout"])
    if given.yes("center_crop"):
        given.exactly("center_crop", "data.crop", "centre")
    else:
        values["data.crop"] = "random"
        given.draft.notes.append("without --center_crop the crop is random: of a square, here of a bucket")
    values["data.max_upscale"] = 16.0
    if given.has("random_flip"):
        given.exactly("random_flip", "data.flip", 0.5)
    _prior(given, places)


def _prior(given: Settings, places: Places) -> None:
    """Prior preservation: an image of the class beside each image, here as there."""
    keys = "class_data_dir class_prompt num_class_images prior_loss_weight with_prior_preservation"
    if not given.yes("with_prior_preservation"):
        for key in keys.split():
            if given.has(key):
                given.needless(key, "without --with_prior_preservation")
        return
    table = "data.regularization_images"
    given.along("with_prior_preservation", table)
    folder = places.find(given.text("class_data_dir")) if given.has("class_data_dir") else None
    if folder is not None and folder.is_dir() and any(folder.iterdir()):
        given.exactly("class_data_dir", f"{table}.images", places.written(folder))
        if given.has("num_class_images"):
            given.along("num_class_images", f"{table}.images, which are there")
    else:
        count = given.whole("num_class_images") or 100
        if given.has("num_class_images"):
            given.exactly("num_class_images", f"{table}.count", count)
        given.draft.values[f"{table}.count"] = count
        if given.has("class_data_dir"):
            given.moved("class_data_dir", f"not here or empty: the base draws {count} once, into the cache")
    if given.has("class_prompt"):
        given.exactly("class_prompt", f"{table}.prompt", given.text("class_prompt"))
    if given.has("prior_loss_weight"):
        given.exactly("prior_loss_weight", f"{table}.weight", given.number("prior_loss_weight"))


def _training(given: Settings, script: _Script, processes: int) -> None:
    values = given.draft.values
    batch = given.whole("train_batch_size") or 1
    accumulation = given.whole("gradient_accumulation_steps") or 1
    if processes > 1:
        why = f"of all {processes} processes together"
        given.changed("train_batch_size", "training.batch_size", batch * processes, why)
    else:
        given.exactly("train_batch_size", "training.batch_size", batch)
    if given.has("max_train_steps"):
        given.exactly("max_train_steps", "training.steps", given.whole("max_train_steps"))
        if given.has("num_train_epochs"):
            given.first("num_train_epochs", "max_train_steps")
        given.told.add("num_train_epochs")
    else:
        given.exactly("num_train_epochs", "training.epochs", float(given.whole("num_train_epochs") or 1))
    name = _optimizer(given, script)
    factor = accumulation * batch * processes if given.yes("scale_lr") else 1
    rate = (given.number("learning_rate") or script.rate) * factor
    if factor != 1:
        why = f"times {factor}: accumulation x batch x processes"
        given.changed("learning_rate", "training.learning_rate", rate, why)
    else:
        given.exactly("learning_rate", "training.learning_rate", rate)
    if given.has("scale_lr"):
        given.along("scale_lr", "training.learning_rate")
    values["training.learning_rate"] = rate
    if values.get("adapter.text_encoder"):
        encoder = given.number("text_encoder_lr") or (script.encoder_rate or rate)
        if name == "prodigy":
            encoder = rate
        values["training.text_encoder_learning_rate"] = encoder
        if given.has("text_encoder_lr"):
            given.exactly("text_encoder_lr", "training.text_encoder_learning_rate", encoder)
    elif given.has("text_encoder_lr"):
        given.needless("text_encoder_lr", "the text encoders stay frozen")
    warmup = given.whole("lr_warmup_steps")
    cycles, power = given.number("lr_num_cycles") or 1.0, given.number("lr_power") or 1.0
    schedule = TheirSchedule(given.text("lr_scheduler"), 500 if warmup is None else warmup, cycles, power)
    put_schedule(given, "lr_scheduler", schedule, optimizer=name)
    if values["training.warmup_steps"] >= values.get("training.steps", math.inf):
        given.draft.notes.append("the warm-up takes all steps, there as here: lower training.warmup_steps")
    if given.has("lr_warmup_steps"):
        given.along("lr_warmup_steps", f"training.warmup_steps = {values['training.warmup_steps']}")


def _optimizer(given: Settings, script: _Script) -> str:
    """AdamW, in 8 bits or not, or Prodigy, with the adam_ arguments."""
    first, second = given.number("adam_beta1"), given.number("adam_beta2")
    decay, epsilon = given.number("adam_weight_decay"), given.number("adam_epsilon")
    options: dict[str, Any] = {
        "weight_decay": script.decay if decay is None else decay,
        "betas": [0.9 if first is None else first, 0.999 if second is None else second],
        "eps": 1e-8 if epsilon is None else epsilon,
    }
    if given.text("optimizer").lower() == "prodigy":
        options.pop("eps")
        for key in ("use_bias_correction", "safeguard_warmup"):
            options[key] = given.yes(f"prodigy_{key}") if given.has(f"prodigy_{key}") else True
            if given.has(f"prodigy_{key}"):
                given.along(f"prodigy_{key}", "training.optimizer_options")
    elif given.yes("use_8bit_adam"):
        if given.has("optimizer"):
            given.along("optimizer", "use_8bit_adam")
        given.values.pop("optimizer", None)
        given.defaults["optimizer"] = "AdamW8bit"
    name = put_optimizer(given, "optimizer", options)
    if given.yes("use_8bit_adam") and name == "adamw8bit":
        given.exactly("use_8bit_adam", "training.optimizer", "adamw8bit")
    for key in ("adam_beta1", "adam_beta2", "adam_weight_decay", "adam_epsilon"):
        if given.has(key):
            option = "training.weight_decay" if key.endswith("decay") else "training.optimizer_options"
            given.along(key, option)
    for key in ("prodigy_use_bias_correction", "prodigy_safeguard_warmup"):
        if given.has(key) and name != "prodigy":
            given.needless(key, "of Prodigy alone")
    return name


def _objective(given: Settings, script: _Script, *, is_flux: bool) -> None:
    values = given.draft.values
    if not script.is_flow:
        gamma = given.number("snr_gamma") or 0.0
        values["objective.snr_gamma"] = gamma
        if given.has("snr_gamma"):
            given.exactly("snr_gamma", "objective.snr_gamma", gamma)
        return
    scheme = given.text("weighting_scheme") or ("none" if is_flux else "logit_normal")
    values["objective.density"] = "logit_normal" if scheme == "logit_normal" else "uniform"
    if is_flux:
        values["objective.shift"] = (
            math.exp(given.number("logit_mean") or 0.0) if scheme == "logit_normal" else 1.0
        )
    if given.has("weighting_scheme"):
        if scheme == "cosmap":
            given.exactly("weighting_scheme", "objective.sigma_weighting", "cosmap")
        elif scheme in ("none", "logit_normal"):
            given.exactly("weighting_scheme", "objective.density", values["objective.density"])
        else:
            given.unsupported("weighting_scheme", "objective.density and objective.sigma_weighting")
    if not is_flux and given.whole("precondition_outputs") != 0:
        given.draft.notes.append("the script weighs the loss by sigma², as it is that of the image")
    if given.has("precondition_outputs"):
        given.along("precondition_outputs", "the loss")
    if given.has("guidance_scale"):
        if given.number("guidance_scale") == 1:
            given.needless("guidance_scale", "1 here, too, while it trains")
        else:
            given.unsupported("guidance_scale", "a base that is told its guidance is trained at 1")
    elif is_flux:
        given.draft.notes.append("the script tells the base a guidance of 3.5 while it trains; here it is 1")
