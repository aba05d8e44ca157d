"""OneTrainer's JSON: presets and configurations, also of its first versions, with concepts and samples."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from lora_studio.recipe.migrate.draft import Draft, Settings, rules
from lora_studio.recipe.migrate.folders import Places, last_name
from lora_studio.recipe.migrate.meanings import put_dtype, put_files, put_name, scale_note
from lora_studio.recipe.migrate.one_trainer.concepts import put_concepts
from lora_studio.recipe.migrate.one_trainer.parts import put_parts, put_rates
from lora_studio.recipe.migrate.optimizers import put_optimizer
from lora_studio.recipe.migrate.reading import read_settings

TITLE = "OneTrainer"
DEFAULTS: dict[str, Any] = {
    "base_model_name": "stable-diffusion-v1-5/stable-diffusion-v1-5",
    "learning_rate": 3e-6,
    "learning_rate_warmup_steps": 200,
    "learning_rate_scheduler": "CONSTANT",
    "epochs": 100,
    "batch_size": 1,
    "lora_rank": 16,
    "lora_alpha": 1.0,
    "resolution": "512",
    "clip_grad_norm": 1.0,
}
_FLOWS = ("FLUX", "STABLE_DIFFUSION_3", "SD3", "CHROMA", "Z_IMAGE", "QWEN", "SANA", "HI_DREAM", "HUNYUAN")
_KINDS = {"LORA": "lora", "LOHA": "loha", "LOKR": "lokr", "OFT": "oft", "OFT_2": "oft"}


def take(draft: Draft, places: Places, options: Mapping[str, Any], data: Any, *, source: str) -> None:
    """All keys of a configuration and of its concepts. Raises RecipeError for wrong values."""
    given = Settings(draft, options, defaults=DEFAULTS, source=source)
    kind = given.text("model_type")
    draft.is_flow = any(kind.startswith(one) for one in _FLOWS)
    if given.has("model_type"):
        given.needless("model_type", "read from the base's file")
    _base(given, places)
    _adapter(given, is_unet=not draft.is_flow)
    name = _optimizer(given)
    put_rates(given, name)
    put_parts(given)
    _objective(given)
    views = put_concepts(given, places, data)
    _length(given, views)
    _samples(given, places)
    given.finish(rules("one_trainer"))
    if note := scale_note(draft):
        draft.notes.append(note)


def _base(given: Settings, places: Places) -> None:
    for key, option in (("base_model_name", "base.model"), ("lora_model_name", "adapter.init_from")):
        put_files(given, places, {key: option})
        if key in given.values and not given.text(key):
            given.needless(key, "left blank")
    for key, option in (("train_dtype", "base.dtype"), ("output_dtype", "export.dtype")):
        if given.has(key):
            put_dtype(given, key, option)
    if given.yes("force_v_prediction"):
        given.exactly("force_v_prediction", "base.prediction_type", "v_prediction")
    elif given.has("force_v_prediction"):
        given.needless("force_v_prediction", "off")
    if given.has("output_model_destination"):
        stem = last_name(given.text("output_model_destination")).rpartition(".")[0] or "lora"
        given.values["output_model_destination"], said = stem, given.values["output_model_destination"]
        put_name(given, "output_model_destination")
        given.values["output_model_destination"] = said
    if given.yes("tensorboard"):
        given.exactly("tensorboard", "tracking.to", ["tensorboard"])
    elif given.has("tensorboard"):
        given.needless("tensorboard", "off")


def _adapter(given: Settings, *, is_unet: bool) -> None:
    values, method = given.draft.values, given.text("training_method") or "LORA"
    kind = _KINDS.get(given.text("peft_type") or "LORA", "lora")
    if method == "FINE_TUNE":
        given.exactly("training_method", "adapter.kind", "full")
        kind = "full"
    elif method == "LORA" and given.has("training_method"):
        given.along("training_method", "adapter.kind")
    elif given.has("training_method"):
        given.unsupported(
            "training_method", "a LoRA is taken; [[tokens]] are new words that text encoders learn"
        )
    if given.yes("lora_decompose") and kind == "lora":
        kind = "dora"
        given.exactly("lora_decompose", "adapter.kind", "dora")
    elif given.has("lora_decompose"):
        given.needless("lora_decompose", "off")
    if given.has("peft_type"):
        given.exactly("peft_type", "adapter.kind", kind)
    values["adapter.kind"] = kind
    if kind == "oft":
        values["adapter.rank"] = given.whole("oft_block_size") or 32
        given.told |= {"lora_rank", "lora_alpha"} - given.values.keys()
    preset = given.text("layer_filter_preset") or "full"
    everything = preset == "full" and not given.text("layer_filter")
    if is_unet and everything and kind in ("lora", "dora", "loha", "lokr"):
        why = "also the convolutions of the residual blocks; what tells the timestep stays as the base has it"
        values["adapter.conv"] = True
        if "layer_filter_preset" in given.values:
            given.changed("layer_filter_preset", "adapter.conv", True, why)
        else:
            given.draft.notes.append(f"all layers are trained there; here {why}")
    elif "layer_filter_preset" in given.values:
        given.off_or(
            "layer_filter_preset", "attention and feed-forward are trained", "attn-mlp", "full", "blocks"
        )


def _optimizer(given: Settings) -> str:
    """A table, or a name alone as in its first versions."""
    said = given.get("optimizer")
    table = dict(said) if isinstance(said, dict) else {"optimizer": said or "ADAMW"}
    if not isinstance(said, dict) and given.has("weight_decay"):
        table["weight_decay"] = given.get("weight_decay")
        given.along("weight_decay", "training.weight_decay")
    inner = Settings(
        given.draft, table, prefix="optimizer." if isinstance(said, dict) else "", source=given.source
    )
    options: dict[str, Any] = {
        key: table[key]
        for key in (
            "weight_decay",
            "eps",
            "d_coef",
            "d0",
            "growth_rate",
            "use_bias_correction",
            "safeguard_warmup",
            "relative_step",
            "scale_parameter",
            "warmup_init",
            "clip_threshold",
            "decay_rate",
            "momentum",
            "nesterov",
        )
        if table.get(key) is not None
    }
    betas = [table.get("beta1"), table.get("beta2")]
    if None not in betas:
        options["betas"] = betas
    name = put_optimizer(inner, "optimizer", {"weight_decay": 0.01} | options)
    if name == "adafactor" and options.get("relative_step"):
        inner.unsupported(
            "relative_step", "Adafactor finds no rate of its own here: set training.learning_rate"
        )
    for key in table:
        if key not in inner.told:
            inner.along(key, "training.optimizer_options") if key in options or key in (
                "beta1",
                "beta2",
            ) else (inner.needless(key, "as the optimizer has it"))
    if isinstance(said, dict):
        given.told.add("optimizer")
        given.in_parts("optimizer")
    elif given.has("optimizer"):
        given.told.add("optimizer")
    return name


def _objective(given: Settings) -> None:
    values = given.draft.values
    weighting = given.text("loss_weight_fn") or "CONSTANT"
    gamma = given.number("loss_weight_strength") or 5.0
    if weighting == "DEBIASED_ESTIMATION":
        given.exactly("loss_weight_fn", "objective.weighting", "debiased")
    else:
        values["objective.snr_gamma"] = gamma if weighting == "MIN_SNR_GAMMA" else 0.0
        if weighting in ("MIN_SNR_GAMMA", "CONSTANT") and given.has("loss_weight_fn"):
            given.exactly("loss_weight_fn", "objective.snr_gamma", values["objective.snr_gamma"])
        elif given.has("loss_weight_fn"):
            given.unsupported("loss_weight_fn", "objective.weighting knows min_snr and debiased")
    if given.has("loss_weight_strength"):
        given.along("loss_weight_strength", "objective.snr_gamma")
    low, high = given.number("min_noising_strength") or 0.0, given.number("max_noising_strength")
    high = 1.0 if high is None else high
    if (low, high) != (0.0, 1.0):
        values["objective.timestep_range"] = [low, high]
    for key in ("min_noising_strength", "max_noising_strength"):
        if given.has(key):
            given.exactly(key, "objective.timestep_range", [low, high])
    if values.get("objective.timestep_range") == [0.0, 1.0]:
        values.pop("objective.timestep_range")
    if strength := given.number("huber_strength"):
        given.changed(
            "huber_strength", "objective.loss", "huber", f"alone, not {strength:g} of it beside others"
        )
        values["objective.loss_delta"] = given.number("huber_delta") or 1.0
    elif given.has("huber_strength"):
        given.needless("huber_strength", "off")
    if given.has("huber_delta"):
        given.along("huber_delta", "objective.loss_delta")
    if given.has("mse_strength"):
        given.off_or("mse_strength", "a factor of the loss changes nothing for AdamW", 1, 1.0)
    _timesteps(given)


def _timesteps(given: Settings) -> None:
    values, kind = given.draft.values, given.text("timestep_distribution") or "UNIFORM"
    keys = (
        "timestep_distribution",
        "noising_weight",
        "noising_bias",
        "timestep_shift",
        "dynamic_timestep_shifting",
    )
    if given.draft.is_flow:
        values["objective.density"] = "logit_normal" if kind == "LOGIT_NORMAL" else "uniform"
        shift: float | str = given.number("timestep_shift") or 1.0
        if kind == "LOGIT_NORMAL" and (bias := given.number("noising_bias")):
            shift = float(shift) * math.exp(bias)
        values["objective.shift"] = "auto" if given.yes("dynamic_timestep_shifting") else shift
        if given.has("timestep_distribution"):
            if kind in ("LOGIT_NORMAL", "UNIFORM"):
                given.exactly("timestep_distribution", "objective.density", values["objective.density"])
            else:
                given.unsupported("timestep_distribution", "objective.density knows logit_normal and uniform")
        for key in ("timestep_shift", "dynamic_timestep_shifting"):
            if given.has(key):
                given.exactly(key, "objective.shift", values["objective.shift"])
    elif kind != "UNIFORM":
        given.unsupported(
            "timestep_distribution", "all timesteps alike; objective.timestep_bias prefers some"
        )
    for key in keys:
        if given.has(key) and key not in given.told:
            given.off_or(key, "objective.timestep_bias prefers some timesteps", "UNIFORM", 1.0, 1)


def _length(given: Settings, views: int) -> None:
    """Epochs, and what counts epochs, seconds or steps beside them."""
    values = given.draft.values
    epochs = float(given.whole("epochs") or 100)
    given.exactly("epochs", "training.epochs", epochs)
    batch, accumulation = (
        values.get("training.batch_size") or given.whole("batch_size") or 1,
        given.whole("gradient_accumulation_steps") or 1,
    )
    an_epoch = math.ceil(math.ceil(views / batch) / accumulation) if views else 0
    if an_epoch:
        about = f"{epochs:g} epochs are about {round(an_epoch * epochs)} steps"
        given.draft.notes.append(f"{about} with the images that are here")
    for keys, option in (
        (("save_every", "save_every_unit"), "training.checkpoint_every"),
        (("save_after", "save_after_unit"), "training.checkpoint_every"),
        (("backup_after", ""), ""),
        (("sample_after", "sample_after_unit"), "samples.every"),
    ):
        key, unit = keys
        if key not in given.values:
            continue
        said, count = given.text(unit) if unit else "NEVER", given.number(key) or 0
        if not option or said == "NEVER" or not count:
            given.needless(key, "off")
        elif said == "STEP":
            given.exactly(key, option, int(count))
        elif said == "EPOCH" and an_epoch:
            why = f"an epoch of the images that are here is {an_epoch} steps"
            given.changed(key, option, max(1, round(count * an_epoch)), why)
        else:
            given.unsupported(key, f"{option} counts steps")
        if unit in given.values:
            given.along(unit, key)


def _samples(given: Settings, places: Places) -> None:
    listed = given.get("samples")
    if not listed and given.has("sample_definition_file_name"):
        path = places.find(given.text("sample_definition_file_name"))
        listed = read_settings(path) if path is not None and path.is_file() else None
    prompts = [str(one.get("prompt", "")).strip() for one in listed or [] if isinstance(one, dict)]
    if found := [" ".join(one.split()) for one in prompts if one]:
        given.draft.values["samples.prompts"] = found
    for key in ("samples", "sample_definition_file_name"):
        if key in given.values:
            if found:
                given.exactly(key, "samples.prompts", found)
            else:
                given.moved(key, "not here, or empty: samples.prompts")
