"""OneTrainer's JSON: presets and configurations, also of its first versions, with concepts and samples."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from lora_studio.recipe.migrate.draft import Draft, Settings, each, idle, is_off, rules, tables_in, yes_in
from lora_studio.recipe.migrate.folders import Places, last_name, missing, views_in
from lora_studio.recipe.migrate.meanings import (
    TheirSchedule,
    put_dtype,
    put_name,
    put_optimizer,
    put_quantization,
    put_schedule,
    scale_note,
    sides_in,
)
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
_PARTS = (
    "unet",
    "transformer",
    "prior",
    "text_encoder",
    "text_encoder_2",
    "text_encoder_3",
    "text_encoder_4",
)
_ENCODER_DEFAULTS = {"train": True, "stop_training_after": 30, "stop_training_after_unit": "EPOCH"}
_FREE = "what lies where is chosen by itself; base.quantize and gradient_checkpointing need less memory"


def is_concepts(content: Sequence[Any]) -> bool:
    """Whether a list is one of concepts."""
    return bool(content) and all(isinstance(one, dict) and "path" in one for one in content)


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
    _rates(given, name)
    _parts(given)
    _objective(given)
    views = _concepts(given, places, data)
    _length(given, views)
    _samples(given, places)
    given.finish(rules("one_trainer"))
    if note := scale_note(draft):
        draft.notes.append(note)


def _base(given: Settings, places: Places) -> None:
    for key, option in (("base_model_name", "base.model"), ("lora_model_name", "adapter.init_from")):
        if given.text(key):
            name, why = places.file(given.text(key))
            if why:
                given.changed(key, option, name, f"{why}; give the file or a hub id")
            else:
                given.exactly(key, option, name)
        elif key in given.values:
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


def _scale(given: Settings) -> tuple[float, str]:
    """What learning_rate_scaler multiplies all rates with, and what is said of it."""
    batch, accumulation = given.whole("batch_size") or 1, given.whole("gradient_accumulation_steps") or 1
    scaler = given.text("learning_rate_scaler").upper()
    size = {"BATCH": batch, "GRADIENT_ACCUMULATION": accumulation, "BOTH": batch * accumulation}.get(
        scaler, 1
    )
    return math.sqrt(size), f"times the root of {size}: learning_rate_scaler {scaler}"


def _own_rate(inner: Settings, key: str, given: Settings) -> None:
    """The rate of the part that is trained; it comes before the one for all."""
    (factor, why), rate = _scale(given), inner.number(key) or 0.0
    if factor == 1:
        inner.exactly(key, "training.learning_rate", rate)
    else:
        inner.changed(key, "training.learning_rate", rate * factor, why)
    given.draft.fates = [one for one in given.draft.fates if one.key != "learning_rate"]
    if given.has("learning_rate"):
        given.first("learning_rate", f"{inner.prefix}{key}")


def _rates(given: Settings, optimizer: str) -> None:
    values = given.draft.values
    rate, (factor, why) = given.number("learning_rate") or 3e-6, _scale(given)
    accumulation = given.whole("gradient_accumulation_steps") or 1
    if factor == 1:
        given.exactly("learning_rate", "training.learning_rate", rate)
    else:
        given.changed("learning_rate", "training.learning_rate", rate * factor, why)
    if given.has("learning_rate_scaler"):
        given.along("learning_rate_scaler", "training.learning_rate")
    values["training.learning_rate"] = rate * factor
    warmup = given.number("learning_rate_warmup_steps") or 0.0
    if warmup > 1:
        warmup = float(int(warmup / accumulation))
    cycles, floor = given.number("learning_rate_cycles") or 1.0, given.number("learning_rate_min_factor")
    name = given.text("learning_rate_scheduler").lower()
    schedule = TheirSchedule(
        "constant_with_warmup" if name == "constant" else name, warmup, cycles, floor=floor
    )
    put_schedule(given, "learning_rate_scheduler", schedule, optimizer=optimizer)
    if given.has("learning_rate_warmup_steps"):
        given.exactly("learning_rate_warmup_steps", "training.warmup_steps", values["training.warmup_steps"])
    if given.has("ema") and given.text("ema") != "OFF":
        interval = given.whole("ema_update_step_interval") or 5
        decay = given.number("ema_decay") or 0.999
        why = f"a step's share of the decay that there is for {interval} steps"
        given.changed("ema", "training.ema", round(decay ** (1 / interval), 8), why)
    elif given.has("ema"):
        given.needless("ema", "off")


def _parts(given: Settings) -> None:
    """What is trained of the base, and in which precision each part lies."""
    values = given.draft.values
    checkpointing = given.text("gradient_checkpointing")
    on = checkpointing not in ("OFF", "False", "false")
    encoders = False
    for part in _PARTS:
        table = given.get(part)
        if not isinstance(table, dict):
            if not _is_trained_unasked(given, part):
                continue
            table = {}
        usual = _ENCODER_DEFAULTS if part.startswith("text_encoder") else {}
        inner = Settings(given.draft, table, defaults=usual, prefix=f"{part}.", source=given.source)
        trains = inner.yes("train") if inner.has("train") or usual else True
        if part.startswith("text_encoder"):
            encoders |= trains and _encoder(inner, part, given)
        elif inner.has("learning_rate"):
            _own_rate(inner, "learning_rate", given)
        if inner.has("weight_dtype") and part in ("unet", "transformer"):
            put_quantization(inner, "weight_dtype", inner.text("weight_dtype"))
        if inner.has("gradient_checkpointing"):
            on = inner.yes("gradient_checkpointing") if part in ("unet", "transformer") else on
            inner.along("gradient_checkpointing", "machine.gradient_checkpointing")
        for key in ("train", "include"):
            if inner.has(key) and key not in inner.told:
                inner.along(key, "adapter")
        inner.finish(
            {
                **each(
                    "weight_dtype dropout_probability stop_training_after stop_training_after_unit __version "
                    "train_embedding attention_mask guidance_scale model_name activation_offloading "
                    "offload_fraction learning_rate",
                    idle(_FREE),
                )
            }
        )
        given.told.add(part)
        if part in given.values:
            given.in_parts(part)
    for part in ("vae",):
        if part in given.values:
            given.needless(part, "float32; base.vae names another")
    values["machine.gradient_checkpointing"] = on
    if "gradient_checkpointing" in given.values:
        given.exactly("gradient_checkpointing", "machine.gradient_checkpointing", on)
    _old_parts(given)


def _encoder(inner: Settings, part: str, given: Settings) -> bool:
    """A trained text encoder; whether it is one that can be trained here."""
    values = given.draft.values
    if given.draft.is_flow:
        inner.unsupported("train", "the text encoders of such a base stay frozen")
        return False
    inner.exactly("train", "adapter.text_encoder", True)
    own = inner.number("learning_rate")
    rate = own * _scale(given)[0] if own else values["training.learning_rate"]
    if inner.has("learning_rate"):
        inner.exactly("learning_rate", "training.text_encoder_learning_rate", rate)
    values.setdefault("training.text_encoder_learning_rate", rate)
    never = "stop_training_after" in inner.values and not inner.has("stop_training_after")
    if not never and inner.text("stop_training_after_unit") == "EPOCH":
        _stop_at(inner, "stop_training_after", part, given)
    return True


def _stop_at(inner: Settings, key: str, part: str, given: Settings) -> None:
    """From then on the text encoder stays as it is."""
    share = (inner.whole(key) or 0) / (given.whole("epochs") or 100)
    if 0 < share < 1:
        rule = {"pattern": f"{part}.*", "stop_at": round(share, 6)}
        rules = [*given.draft.values.get("adapter.layers", []), rule]
        inner.changed(key, "adapter.layers", rules, "a share of the steps")
    elif key in inner.values:
        inner.needless(key, "not before the end")


def _is_trained_unasked(given: Settings, part: str) -> bool:
    """Text encoders that the settings do not name are; those of flow matching stay frozen here."""
    named = f"train_{part}" in given.values or f"train_{part}_epochs" in given.values
    there = part == "text_encoder" or (part == "text_encoder_2" and "XL" in given.text("model_type"))
    return there and not named and not given.draft.is_flow


def _old_parts(given: Settings) -> None:
    """The first versions had train_unet, unet_learning_rate and the like at the top."""
    values = given.draft.values
    if given.has("unet_learning_rate"):
        _own_rate(given, "unet_learning_rate", given)
    for part in ("unet", "prior", "transformer"):
        if given.has(f"train_{part}"):
            given.along(f"train_{part}", "adapter")
    for part in ("text_encoder", "text_encoder_2"):
        if given.has(f"train_{part}") and given.yes(f"train_{part}"):
            given.exactly(f"train_{part}", "adapter.text_encoder", True)
            rate = given.number(f"{part}_learning_rate") or values["training.learning_rate"]
            values["training.text_encoder_learning_rate"] = rate
            _stop_at(given, f"train_{part}_epochs", part, given)
        elif given.has(f"train_{part}"):
            given.needless(f"train_{part}", "off")
        if f"train_{part}_epochs" in given.values and f"train_{part}_epochs" not in given.told:
            given.needless(f"train_{part}_epochs", "the text encoder stays frozen")
        if given.has(f"{part}_learning_rate"):
            given.along(f"{part}_learning_rate", "training.text_encoder_learning_rate")
        if given.has(f"{part}_weight_dtype"):
            given.needless(f"{part}_weight_dtype", _FREE)
    for key in ("unet_weight_dtype", "vae_weight_dtype"):
        if given.has(key):
            given.needless(key, _FREE)


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


def _concepts(given: Settings, places: Places, data: Any) -> int:
    """The folders; how many views an epoch has, 0 if that is not known."""
    listed = given.get("concepts") or data
    if not listed and given.has("concept_file_name"):
        path = places.find(given.text("concept_file_name"))
        listed = read_settings(path) if path is not None and path.is_file() else None
    for key in ("concepts", "concept_file_name"):
        if key in given.values:
            given.in_parts(key) if listed else given.moved(key, "not here: --images")
    concepts = tables_in(listed, "concepts")
    used = [one for one in concepts if yes_in(one.get("enabled", True), "enabled")]
    sides = sides_in(given.get("resolution"), "resolution")
    given.exactly("resolution", "data.resolution", sides[0])
    if len(sides) > 1:
        given.changed("resolution", "data.extra_resolutions", sides[1:], "each image at each of them")
    values = given.draft.values
    values |= {"data.caption_dropout": 0.0, "data.max_upscale": 16.0}
    if not used:
        if places.images is None:
            raise missing([given.text("concept_file_name") or "concepts"])
        values["data.images"] = places.written(places.images)
        return views_in(places.images)
    return _put_concepts(given, places, used)


def _put_concepts(given: Settings, places: Places, used: Sequence[dict[str, Any]]) -> int:
    sources, lost, views = [], [], 0
    learned = [one for one in used if not yes_in(one.get("validation_concept", False), "validation_concept")]
    for number, one in enumerate(used):
        inner = Settings(given.draft, one, prefix=f"concepts[{number}].", source=given.source)
        folder = places.folder(str(one.get("path", "")), alone=len(learned) == 1 and one in learned)
        if folder is None:
            lost.append(str(one.get("path", "")))
            continue
        source, repeats = _concept(inner, places, folder)
        sources.append(source)
        views += (
            math.ceil(repeats * views_in(folder, recursive=source.get("recursive", False)))
            if one in learned
            else 0
        )
    if lost:
        raise missing(lost)
    values = given.draft.values
    if len(sources) == 1 and not {"role", "weight"} & sources[0].keys():
        values |= {f"data.{key}": value for key, value in sources[0].items()}
    else:
        values["data.sources"] = sources
    if values.get("data.keep_tags") and not (
        values.get("data.shuffle_tags") or values.get("data.tag_dropout")
    ):
        values.pop("data.keep_tags")
    return views


def _concept(inner: Settings, places: Places, folder: Any) -> tuple[dict[str, Any], float]:
    """A table of data.sources, and how often an epoch shows its images."""
    source: dict[str, Any] = {"images": places.written(folder)}
    inner.along("path", f"images = {source['images']}")
    kind = inner.text("type").upper()
    if inner.yes("validation_concept") or kind == "VALIDATION":
        source["role"] = "validation"
    elif kind == "PRIOR_PREDICTION":
        source["role"] = "prior"
    for key in ("validation_concept", "type"):
        if key in inner.values:
            inner.along(key, f"role = {source.get('role', 'instance')}")
    if inner.yes("include_subdirectories"):
        source["recursive"] = True
    if "include_subdirectories" in inner.values:
        inner.along("include_subdirectories", f"recursive = {str('recursive' in source).lower()}")
    key = "balancing" if "balancing" in inner.values else "repeats"
    repeats = inner.number(key) or 1.0
    strategy = inner.text("balancing_strategy") or "REPEATS"
    if strategy == "SAMPLES":
        inner.moved(key, "all images are shown; a number of samples an epoch is not there")
        repeats = 1.0
    elif repeats != round(repeats) or repeats < 1:
        inner.moved(key, f"repeats = {max(1, round(repeats))}, a whole number")
    elif key in inner.values:
        inner.along(key, f"repeats = {round(repeats)}")
    if "balancing_strategy" in inner.values:
        inner.along("balancing_strategy", key)
    if (whole := max(1, round(repeats))) != 1:
        source["repeats"] = whole
    if (weight := inner.number("loss_weight")) not in (None, 1.0):
        source["weight"] = weight
    if "loss_weight" in inner.values:
        inner.along("loss_weight", "weight")
    _concept_image(inner)
    if prompt := _concept_text(inner, places):
        source["instance_prompt"] = prompt
    inner.finish(rules("one_trainer", "concept"))
    return source, repeats


def _concept_image(inner: Settings) -> None:
    table = inner.get("image")
    given = Settings(
        inner.draft,
        table if isinstance(table, dict) else {},
        prefix=f"{inner.prefix}image.",
        source=inner.source,
    )
    if given.values.get("enable_random_flip", True):
        inner.draft.values["data.flip"] = 0.5
    if "enable_random_flip" in given.values:
        if given.yes("enable_random_flip"):
            given.exactly("enable_random_flip", "data.flip", 0.5)
        else:
            given.needless("enable_random_flip", "off")
    if is_off(given.get("enable_resolution_override")) and "resolution_override" in given.values:
        given.needless("resolution_override", "off")
    given.finish(rules("one_trainer", "image"))
    if "image" in inner.values:
        inner.in_parts("image")


def _concept_text(inner: Settings, places: Places) -> str:
    """What captions are made of; the prompt of images without one."""
    table = inner.get("text")
    given = Settings(
        inner.draft,
        table if isinstance(table, dict) else {},
        prefix=f"{inner.prefix}text.",
        source=inner.source,
    )
    prompt, kind = "", given.text("prompt_source") or "sample"
    if kind == "concept" and (path := places.find(given.text("prompt_path"))) is not None and path.is_file():
        lines = [line.strip() for line in path.read_text("utf-8", "replace").splitlines() if line.strip()]
        prompt = lines[0] if lines else ""
        given.moved(
            "prompt_source", f"instance_prompt = {prompt}, of images without a caption; the first line"
        )
    elif kind == "concept":
        given.unsupported(
            "prompt_source", "that file is not here; data.instance_prompt is one caption for all"
        )
    elif kind == "filename":
        given.unsupported("prompt_source", "lora-studio caption FOLDER --with filename writes such captions")
    elif given.has("prompt_source"):
        given.along("prompt_source", "the .txt beside each image")
    if "prompt_path" in given.values:
        given.along("prompt_path", "prompt_source")
    values = inner.draft.values
    if given.yes("enable_tag_shuffling"):
        given.exactly("enable_tag_shuffling", "data.shuffle_tags", True)
        values["data.keep_tags"] = 1 if (kept := given.whole("keep_tags_count")) is None else kept
    elif "enable_tag_shuffling" in given.values:
        given.needless("enable_tag_shuffling", "off")
    if "keep_tags_count" in given.values:
        given.along("keep_tags_count", "data.keep_tags")
    if given.yes("tag_dropout_enable") and (share := given.number("tag_dropout_probability")):
        given.exactly("tag_dropout_probability", "data.tag_dropout", min(0.99, share))
        given.along("tag_dropout_enable", "data.tag_dropout")
    for key in ("tag_dropout_enable", "tag_dropout_probability"):
        if key in given.values and key not in given.told:
            given.needless(key, "off")
    given.finish(rules("one_trainer", "text"))
    if "text" in inner.values:
        inner.in_parts("text")
    return prompt


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
