"""SimpleTuner's config.json with its data backends and LyCORIS' settings, or the same as a command line."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from lora_studio.recipe.migrate.draft import Draft, Settings, each, lacks, rules
from lora_studio.recipe.migrate.folders import Places
from lora_studio.recipe.migrate.meanings import (
    TheirSchedule,
    put_dtype,
    put_files,
    put_name,
    put_quantization,
    put_schedule,
    scale_note,
)
from lora_studio.recipe.migrate.optimizers import literal, put_optimizer
from lora_studio.recipe.migrate.reading import read_settings
from lora_studio.recipe.migrate.simple_tuner.backends import put_backends

TITLE = "SimpleTuner"
DEFAULTS: dict[str, Any] = {
    "lora_rank": 16,
    "train_batch_size": 4,
    "learning_rate": 4e-7,
    "lr_scheduler": "constant_with_warmup",
    "optimizer": "adamw_bf16",
    "resolution": 1024,
}
_UNETS = ("sdxl", "sd1x", "sd2x", "legacy", "kolors", "deepfloyd")
_ALGOS = {"lora": "lora", "locon": "locon", "loha": "loha", "lokr": "lokr", "diag-oft": "oft", "full": "full"}


def take(draft: Draft, places: Places, options: Mapping[str, Any], data: Any, *, source: str) -> None:
    """All keys of config.json and of its data backends. Raises RecipeError for wrong values."""
    plain = {key.lstrip("-"): value for key, value in options.items()}
    dashes = {key.lstrip("-"): key for key in options if key.startswith("-")}
    given = Settings(draft, plain, defaults=DEFAULTS, source=source)
    family = given.text("model_family").lower()
    draft.is_flow = bool(family) and family not in _UNETS
    _base(given, places)
    if given.has("model_family") and "model_family" not in given.told:
        given.needless("model_family", "read from the base's files")
    _adapter(given, places)
    _optimizer(given)
    _objective(given)
    _samples(given)
    views = put_backends(given, places, data)
    _length(given, views)
    given.finish(rules("simple_tuner"))
    for number, fate in enumerate(draft.fates):
        if fate.key in dashes:
            draft.fates[number] = type(fate)(
                dashes[fate.key], fate.value, fate.fate, fate.here, fate.why, fate.given
            )
    if note := scale_note(draft):
        draft.notes.append(note)


def _base(given: Settings, places: Places) -> None:
    files = {
        "pretrained_model_name_or_path": "base.model",
        "pretrained_vae_model_name_or_path": "base.vae",
        "vae_path": "base.vae",
    }
    put_files(given, places, files)
    if "base.model" not in given.draft.values and given.has("model_family"):
        family = given.text("model_family").lower()
        usual = {
            "sdxl": "stabilityai/stable-diffusion-xl-base-1.0",
            "flux": "black-forest-labs/FLUX.1-dev",
            "sd3": "stabilityai/stable-diffusion-3.5-large",
            "sd1x": "stable-diffusion-v1-5/stable-diffusion-v1-5",
            "chroma": "lodestones/Chroma1-Base",
            "z-image": "Tongyi-MAI/Z-Image",
            "z-image-turbo": "Tongyi-MAI/Z-Image-Turbo",
        }.get(family, "")
        if usual:
            given.changed(
                "model_family", "base.model", usual, "its usual base; model_flavour may name another"
            )
    if given.has("mixed_precision"):
        put_dtype(given, "mixed_precision", "base.dtype")
    if given.has("base_model_precision"):
        put_quantization(given, "base_model_precision", given.text("base_model_precision"))
    if given.has("hub_model_id"):
        put_name(given, "hub_model_id")


def _adapter(given: Settings, places: Places) -> None:
    values = given.draft.values
    if given.text("model_type") == "full":
        given.exactly("model_type", "adapter.kind", "full")
    config = given.get("lycoris_config")
    path = places.find(config) if isinstance(config, str) else None
    inner = read_settings(path) if path is not None and path.is_file() else config
    if given.text("lora_type").lower() == "lycoris" and isinstance(inner, dict):
        _lycoris(given, inner)
    else:
        rank = given.whole("lora_rank") or 16
        given.exactly("lora_rank", "adapter.rank", rank)
        values["adapter.rank"] = rank
        alpha = given.number("lora_alpha") or float(rank)
        if given.has("lora_alpha"):
            given.exactly("lora_alpha", "adapter.alpha", alpha)
        values["adapter.alpha"] = alpha
        if given.yes("use_dora"):
            given.exactly("use_dora", "adapter.kind", "dora")
        if not given.has("lora_dropout"):
            given.draft.notes.append("SimpleTuner leaves out a tenth of a LoRA's inputs; here none")
    for key in ("lora_type", "lora_rank", "lora_alpha", "use_dora"):
        if key in given.values and key not in given.told:
            if key == "lora_type" and given.text(key).lower() == "lycoris" and not isinstance(inner, dict):
                given.unsupported(key, "lycoris_config is not here; lora is taken")
            else:
                given.along(key, "adapter.kind")


def _lycoris(given: Settings, config: Mapping[str, Any]) -> None:
    """LyCORIS' own settings: algo, linear_dim, linear_alpha and what of them is not here."""
    inner = Settings(given.draft, config, prefix="lycoris_config.", source=given.source)
    algo = inner.text("algo") or "lokr"
    values = given.draft.values
    if kind := _ALGOS.get(algo):
        inner.exactly("algo", "adapter.kind", kind)
    else:
        inner.unsupported("algo", "lora is taken; adapter.kind knows others")
    rank = inner.whole("linear_dim") or 16
    if rank > 4096:
        inner.changed("linear_dim", "adapter.rank", 4096, f"{rank} stands for a whole matrix there")
    elif inner.has("linear_dim"):
        inner.exactly("linear_dim", "adapter.rank", rank)
    values["adapter.rank"] = min(rank, 4096)
    alpha = inner.number("linear_alpha") or float(rank)
    if inner.has("linear_alpha"):
        inner.exactly("linear_alpha", "adapter.alpha", min(alpha, 65_504.0))
    values["adapter.alpha"] = min(alpha, 65_504.0)
    inner.finish(
        {
            "factor": lacks("LoKr chooses its factor itself", -1),
            "multiplier": lacks("export.strength is a recommendation", 1, 1.0),
            "full_matrix": lacks("LoKr's second factor has adapter.rank"),
            **each("apply_preset", lacks("[[adapter.layers]] chooses layers by pattern")),
            **each("init_lokr_norm bypass_mode use_scalar dropout", lacks("there is no such option")),
        }
    )


def _optimizer(given: Settings) -> None:
    values = given.draft.values
    options: dict[str, Any] = {}
    for one in given.text("optimizer_config").split(","):
        key, equals, value = one.partition("=")
        if equals:
            options[key.strip()] = literal(value.strip())
    first = given.number("optimizer_beta1") or given.number("adam_beta1")
    second = given.number("optimizer_beta2") or given.number("adam_beta2")
    if first is not None or second is not None:
        options["betas"] = [first or 0.9, second or 0.999]
    if (decay := given.number("adam_weight_decay")) is not None:
        options["weight_decay"] = decay
    if (epsilon := given.number("adam_epsilon")) is not None:
        options["eps"] = epsilon
    name = put_optimizer(given, "optimizer", options, options_key="optimizer_config")
    for key in ("optimizer_beta1", "optimizer_beta2", "adam_beta1", "adam_beta2", "adam_epsilon"):
        if key in given.values:
            given.along(key, "training.optimizer_options")
    if "adam_weight_decay" in given.values:
        given.exactly("adam_weight_decay", "training.weight_decay", values["training.weight_decay"])
    given.exactly("learning_rate", "training.learning_rate", given.number("learning_rate"))
    if given.yes("lr_scale"):
        given.unsupported("lr_scale", "multiply training.learning_rate by batch and accumulation yourself")
    for key in ("lr_scale", "lr_scale_sqrt"):
        if key in given.values and key not in given.told:
            given.needless(key, "off")
    rate, end = given.number("learning_rate") or 1.0, given.number("lr_end")
    warmup, power = given.number("lr_warmup_steps") or 0.0, given.number("lr_power") or 0.8
    schedule = TheirSchedule(
        given.text("lr_scheduler"),
        warmup,
        given.number("lr_num_cycles") or 1.0,
        power,
        None if end is None else min(1.0, end / rate),
    )
    put_schedule(given, "lr_scheduler", schedule, optimizer=name)
    for key in ("lr_warmup_steps", "lr_end", "lr_num_cycles", "lr_power"):
        if key in given.values:
            given.along(key, "training.lr_schedule")
    _clipping(given)
    if given.yes("use_ema"):
        given.exactly("use_ema", "training.ema", given.number("ema_decay") or 0.995)
    elif "use_ema" in given.values:
        given.needless("use_ema", "off")


def _clipping(given: Settings) -> None:
    """Values of gradients are clipped there, one by one, unless they are told to look at the norm."""
    norm = given.number("max_grad_norm") or 0.0
    if given.has("max_grad_norm") and given.text("grad_clip_method") == "norm":
        given.exactly("max_grad_norm", "training.max_grad_norm", norm or 1e6)
    elif given.has("max_grad_norm"):
        why = "of the norm, which is at least as large as any of the values that are clipped there"
        given.changed("max_grad_norm", "training.max_grad_norm", norm or 1e6, why)
    if "grad_clip_method" in given.values:
        given.along("grad_clip_method", "training.max_grad_norm")


def _objective(given: Settings) -> None:
    values = given.draft.values
    gamma = given.number("snr_gamma") or 0.0
    values["objective.snr_gamma"] = gamma
    if given.has("snr_gamma"):
        given.exactly("snr_gamma", "objective.snr_gamma", gamma)
    strength = given.number("noise_offset") or 0.1
    if given.yes("offset_noise"):
        given.exactly("offset_noise", "objective.noise_offset", strength)
    if "noise_offset" in given.values:
        if given.yes("offset_noise"):
            given.along("noise_offset", "objective.noise_offset")
        else:
            given.needless("noise_offset", "off without offset_noise")
    kind = given.text("loss_type") or "l2"
    if kind in ("huber", "smooth_l1"):
        why = "Huber's own, linear above loss_delta, the same at all timesteps"
        given.changed("loss_type", "objective.loss", kind, why)
        values["objective.loss_delta"] = given.number("huber_c") or 0.1
    elif given.has("loss_type"):
        given.exactly("loss_type", "objective.loss", "l2")
    if "huber_c" in given.values:
        given.along("huber_c", "objective.loss_delta")
    if not given.draft.is_flow:
        for key in ("flow_schedule_shift", "flow_schedule_auto_shift", "flow_use_uniform_schedule"):
            if key in given.values:
                given.needless(key, "of flow matching alone")
        return
    uniform, auto = given.yes("flow_use_uniform_schedule"), given.yes("flow_schedule_auto_shift")
    shift = 3.0 if (said := given.number("flow_schedule_shift")) is None else said
    values["objective.density"] = "uniform" if uniform else "logit_normal"
    values["objective.shift"] = "auto" if auto else shift or 1.0
    for key, option in (
        ("flow_schedule_shift", "objective.shift"),
        ("flow_schedule_auto_shift", "objective.shift"),
        ("flow_use_uniform_schedule", "objective.density"),
    ):
        if key in given.values:
            given.exactly(key, option, values[option])


def _samples(given: Settings) -> None:
    if given.has("validation_prompt"):
        given.exactly("validation_prompt", "samples.prompts", [given.text("validation_prompt")])
    if given.has("validation_guidance"):
        said = given.number("validation_guidance") or 1.0
        given.exactly("validation_guidance", "samples.guidance", max(1.0, said))
    if given.has("report_to"):
        services = [
            one
            for one in ("tensorboard", "wandb")
            if one in given.text("report_to") or given.text("report_to") == "all"
        ]
        if services:
            given.exactly("report_to", "tracking.to", services)
        else:
            given.off_or("report_to", "tracking.to knows tensorboard, wandb and trackio")


def _length(given: Settings, views: int) -> None:
    """Steps where they are given and not 0, else epochs."""
    values = given.draft.values
    batch, accumulation = (
        given.whole("train_batch_size") or 1,
        given.whole("gradient_accumulation_steps") or 1,
    )
    given.exactly("train_batch_size", "training.batch_size", batch)
    values["training.batch_size"] = batch
    steps, epochs = given.whole("max_train_steps") or 0, given.whole("num_train_epochs") or 0
    if steps:
        given.exactly("max_train_steps", "training.steps", steps)
    else:
        given.exactly("num_train_epochs", "training.epochs", float(epochs or 1))
        values["training.epochs"] = float(epochs or 1)
        if views:
            an_epoch = math.ceil(math.ceil(views / batch) / accumulation)
            about = f"{epochs or 1} epochs are about {an_epoch * (epochs or 1)} steps"
            given.draft.notes.append(f"{about} with the images that are here")
    for key in ("max_train_steps", "num_train_epochs"):
        if key in given.values and key not in given.told:
            given.needless(key, "0: the other one says how long")
