"""ai-toolkit's YAML or JSON: a job with one process that trains a LoRA."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lora_studio.errors import RecipeError
from lora_studio.recipe.migrate.draft import (
    ALL_THERE_IS,
    Draft,
    Settings,
    each,
    idle,
    is_off,
    rules,
    tables_in,
)
from lora_studio.recipe.migrate.folders import Places, missing, views_in
from lora_studio.recipe.migrate.meanings import (
    FREE_RATE,
    TheirSchedule,
    put_dtype,
    put_files,
    put_name,
    put_optimizer,
    put_quantization,
    put_schedule,
    scale_note,
    sides_in,
)

TITLE = "ai-toolkit"
_TRAINERS = ("sd_trainer", "diffusion_trainer", "ui_trainer", "sd_lora_trainer")
_FLOWS = ("flux", "sd3", "chroma", "zimage", "z_image", "flex", "qwen", "lumina", "hidream", "wan", "omnigen")


def is_job(content: Mapping[str, Any]) -> bool:
    """Whether it is a job of ai-toolkit."""
    config = content.get("config")
    return isinstance(config, dict) and isinstance(config.get("process"), list)


def take(draft: Draft, places: Places, options: Mapping[str, Any], *, source: str) -> None:
    """All keys of a job. Raises RecipeError for several processes, wrong values and missing folders."""
    if not is_job(options):
        raise RecipeError(f"{source} is no job of ai-toolkit: it has no config with a process.")
    job = Settings(draft, options, source=source)
    config = Settings(draft, options["config"], prefix="config.", source=source)
    processes = [one for one in config.values["process"] if isinstance(one, dict)]
    if len(processes) != 1:
        raise RecipeError(f"{source} has {len(processes)} processes; keep one of them.")
    (process,) = processes
    if "train" not in process or "model" not in process:
        raise RecipeError(f"{source} trains nothing: its process is {process.get('type')!r}.")
    put_name(config, "name") if config.has("name") else None
    config.in_parts("process")
    given = Settings(draft, process, prefix="process.", source=source)
    tables = {
        name: _table(given, name) for name in ("network", "save", "train", "model", "sample", "logging")
    }
    model = tables["model"]
    arch = model.text("arch").lower()
    draft.is_flow = model.yes("is_flux") or model.yes("is_v3") or any(one in arch for one in _FLOWS)
    _model(model, places)
    _network(tables["network"])
    _train(tables["train"])
    views = _datasets(given, places, process.get("datasets"))
    _sample(tables["sample"], given.text("trigger_word"))
    _logging(tables["logging"])
    _save(tables["save"])
    for name in ("network", "train", "model", "sample"):
        tables[name].finish(rules("ai_toolkit", name))
    given.finish(rules("ai_toolkit", "process"))
    config.finish({})
    job.in_parts("config")
    job.finish(each("job meta", idle("of ai-toolkit's job")))
    _in_optimizer_steps(tables["train"])
    batch = draft.values.get("training.batch_size", 1)
    if views:
        shown = draft.values.get("training.steps", 0) * batch / views
        draft.notes.append(f"each of the images that are here is shown about {shown:.0f} times")
    if note := scale_note(draft):
        draft.notes.append(note)


def _in_optimizer_steps(train: Settings) -> None:
    """What counts their steps, where these are micro-batches."""
    if (each_step := train.whole("gradient_accumulation_steps") or 1) > 1:
        for option in ("training.checkpoint_every", "samples.every"):
            if option in train.draft.values:
                train.draft.values[option] = max(1, round(train.draft.values[option] / each_step))
        train.draft.notes.append(
            f"counts of steps are divided by {each_step}, micro-batches of an optimizer step"
        )


def _table(given: Settings, name: str) -> Settings:
    found = given.get(name)
    if name in given.values:
        given.in_parts(name)
    return Settings(
        given.draft, found if isinstance(found, dict) else {}, prefix=f"{name}.", source=given.source
    )


def _model(model: Settings, places: Places) -> None:
    files = {
        "name_or_path": "base.model",
        "vae_path": "base.vae",
        "assistant_lora_path": "base.training_adapter",
    }
    put_files(model, places, files)
    if model.text("lora_path"):
        model.exactly("lora_path", "base.loras", [{"file": places.file(model.text("lora_path"))[0]}])
    if model.yes("is_v_pred"):
        model.exactly("is_v_pred", "base.prediction_type", "v_prediction")
    elif "is_v_pred" in model.values:
        model.needless("is_v_pred", "off")
    if model.has("dtype"):
        put_dtype(model, "dtype", "base.dtype")
    if model.has("quantize") or model.has("qtype"):
        put_quantization(model, "quantize", model.text("qtype") or "qfloat8", off=not model.yes("quantize"))
        if "qtype" in model.values:
            model.along("qtype", "base.quantize")


def _network(network: Settings) -> None:
    """Rank and alpha of linear layers, and of convolutions where there is one."""
    values, kind = network.draft.values, network.text("type").lower() or "lora"
    if kind in ("lora", "locon", "lokr", "dora"):
        network.exactly("type", "adapter.kind", "lora" if kind == "locon" else kind)
    else:
        network.unsupported("type", "lora is taken; adapter.kind knows others")
    key = "rank" if network.has("rank") else "linear"
    rank = network.whole(key) or 4
    full = network.yes("lokr_full_rank")
    if rank > 4096 or full:
        network.moved(key, "a whole matrix there; adapter.rank is at most 4096")
        rank = min(rank, 4096)
    elif network.has(key):
        network.exactly(key, "adapter.rank", rank)
    if key == "rank" and network.has("linear"):
        network.first("linear", "rank")
    alpha_key = "linear_alpha" if network.has("linear_alpha") else "alpha"
    alpha = network.number(alpha_key) or 1.0
    if alpha > 65_504:
        alpha = float(rank)
    if network.has(alpha_key):
        network.exactly(alpha_key, "adapter.alpha", alpha)
    if alpha_key == "linear_alpha" and network.has("alpha"):
        network.first("alpha", "linear_alpha")
    values |= {"adapter.rank": rank, "adapter.alpha": alpha}
    conv = network.whole("conv") or 0
    if conv and not network.draft.is_flow:
        network.exactly("conv", "adapter.conv_rank", min(conv, 4096))
        values["adapter.conv"] = True
        values["adapter.conv_alpha"] = network.number("conv_alpha") or float(conv)
    for key in ("conv", "conv_alpha"):
        if key in network.values and key not in network.told:
            network.along(key, "adapter.conv") if conv and not network.draft.is_flow else network.needless(
                key, "such a base has no convolutions" if network.draft.is_flow else "off"
            )


def _save(save: Settings) -> None:
    if save.has("dtype"):
        put_dtype(save, "dtype", "export.dtype")
    elif save.has("save_dtype"):
        put_dtype(save, "save_dtype", "export.dtype")
    save.finish(rules("ai_toolkit", "save"))


def _logging(logging: Settings) -> None:
    if logging.yes("use_wandb"):
        logging.exactly("use_wandb", "tracking.to", ["wandb"])
        for key, option in (("project_name", "tracking.project"), ("run_name", "tracking.run_name")):
            if logging.has(key):
                logging.exactly(key, option, logging.text(key))
    logging.finish(
        each("use_wandb log_every verbose use_ui_logger project_name run_name", idle(ALL_THERE_IS))
    )


def _train(train: Settings) -> None:
    values = train.draft.values
    _length(train)
    params = train.get("optimizer_params")
    said = train.text("optimizer").lower()
    options = {"weight_decay": 0.01} if said.startswith("adamw") else {}
    options |= {"eps": 1e-6} if said.startswith("adam") else {}  # ai-toolkit's own
    options |= params if isinstance(params, dict) else {}
    if "betas" in options and isinstance(options["betas"], str):
        options.pop("betas")
    name = put_optimizer(train, "optimizer", options, options_key="optimizer_params")
    key = "unet_lr" if train.has("unet_lr") else "lr"
    rate = train.number(key) or 1e-6
    if name in FREE_RATE and rate < 0.1:
        train.changed(key, "training.learning_rate", 1.0, "below 0.1 it is 1 there, as the optimizer wants")
        rate = 1.0
    elif train.has(key):
        train.exactly(key, "training.learning_rate", rate)
    values["training.learning_rate"] = rate
    if key == "unet_lr" and train.has("lr"):
        train.first("lr", "unet_lr")
    _encoder(train, rate)
    given = train.get("lr_scheduler_params")
    inner = Settings(
        train.draft,
        given if isinstance(given, dict) else {},
        prefix="train.lr_scheduler_params.",
        source=train.source,
    )
    warmup = inner.number("warmup_steps") or inner.number("num_warmup_steps") or 0.0
    schedule = TheirSchedule(train.text("lr_scheduler") or "constant", warmup)
    put_schedule(train, "lr_scheduler", schedule, optimizer=name)
    for one in ("warmup_steps", "num_warmup_steps"):
        if one in inner.values:
            inner.along(one, f"training.warmup_steps = {values['training.warmup_steps']}")
    inner.finish(each("total_iters eta_min T_max T_0 factor", idle("the rate falls to the last step")))
    if "lr_scheduler_params" in train.values:
        train.in_parts("lr_scheduler_params")
    if train.has("dtype"):
        put_dtype(train, "dtype", "base.dtype")
    ema = train.get("ema_config")
    if isinstance(ema, dict) and not is_off(ema.get("use_ema", True)):
        train.exactly("ema_config", "training.ema", Settings(train.draft, ema).number("ema_decay") or 0.999)
    elif "ema_config" in train.values:
        train.needless("ema_config", "off")
    _objective(train)


def _length(train: Settings) -> None:
    """Their steps are micro-batches with gradient_accumulation_steps, and not with gradient_accumulation."""
    values = train.draft.values
    steps, batch = train.whole("steps") or 1000, train.whole("batch_size") or 1
    train.exactly("batch_size", "training.batch_size", batch)
    values["training.batch_size"] = batch
    old, new = train.whole("gradient_accumulation_steps") or 1, train.whole("gradient_accumulation") or 1
    if old > 1:
        values["training.gradient_accumulation"] = old
        train.exactly("gradient_accumulation_steps", "training.gradient_accumulation", old)
        why = f"optimizer steps: theirs are micro-batches, {old} for each"
        train.changed("steps", "training.steps", max(1, round(steps / old)), why)
    else:
        if new > 1:
            train.exactly("gradient_accumulation", "training.gradient_accumulation", new)
        train.exactly("steps", "training.steps", steps)
    for key in ("gradient_accumulation", "gradient_accumulation_steps"):
        if key in train.values and key not in train.told:
            train.needless(key, "1")


def _encoder(train: Settings, rate: float) -> None:
    if "train_unet" in train.values:
        if train.yes("train_unet"):
            train.along("train_unet", "adapter")
        else:
            train.unsupported("train_unet", '[[adapter.layers]] with pattern = "unet.*" and train = false')
    if train.yes("train_text_encoder") and not train.draft.is_flow:
        train.exactly("train_text_encoder", "adapter.text_encoder", True)
        own = train.number("text_encoder_lr") or rate
        train.draft.values["training.text_encoder_learning_rate"] = own
    elif "train_text_encoder" in train.values:
        train.off_or("train_text_encoder", "the text encoders of such a base stay frozen")
    if "text_encoder_lr" in train.values:
        train.along("text_encoder_lr", "training.text_encoder_learning_rate")


def _objective(train: Settings) -> None:
    values = train.draft.values
    gamma = train.number("min_snr_gamma") or train.number("snr_gamma") or 0.0
    values["objective.snr_gamma"] = gamma
    for key in ("min_snr_gamma", "snr_gamma"):
        if train.has(key):
            train.exactly(key, "objective.snr_gamma", gamma)
    if "noise_scheduler" in train.values:
        train.needless("noise_scheduler", "the base's own")
    low, high = train.number("min_denoising_steps") or 0.0, train.number("max_denoising_steps") or 999.0
    if low or high < 999:
        values["objective.timestep_range"] = [low / 1000, min(1.0, (high + 1) / 1000)]
    for key in ("min_denoising_steps", "max_denoising_steps"):
        if key in train.values:
            train.along(key, "objective.timestep_range")
    loss = train.text("loss_type") or "mse"
    if loss == "mae":
        train.changed("loss_type", "objective.loss", "smooth_l1", "with loss_delta = 0.001, so all but l1")
        values["objective.loss_delta"] = 0.001
    elif "loss_type" in train.values:
        train.off_or("loss_type", "objective.loss knows l2, huber and smooth_l1", "mse")
    side = train.text("content_or_style") or "balanced"
    bias = {"content": 2.0, "style": -2.0}.get(side)
    if bias is not None:
        why = "a power of the share of noise, of the same mean"
        train.changed("content_or_style", "objective.timestep_bias", bias, why)
    elif "content_or_style" in train.values:
        train.needless("content_or_style", "balanced")
    _sigmas(train)
    if train.yes("diff_output_preservation"):
        factor = train.number("diff_output_preservation_multiplier") or 1.0
        share = round(min(0.95, factor / (1 + factor)), 4) if factor > 0 else 0.0
        why = "that share of the images without their trigger words, not each image twice"
        train.changed("diff_output_preservation", "objective.preservation", share, why)
        if words := train.text("diff_output_preservation_class"):
            train.exactly("diff_output_preservation_class", "data.class_words", words)
    for key in (
        "diff_output_preservation",
        "diff_output_preservation_multiplier",
        "diff_output_preservation_class",
    ):
        if key in train.values and key not in train.told:
            train.along(key, "objective.preservation")


def _sigmas(train: Settings) -> None:
    kind = train.text("timestep_type") or "sigmoid"
    if not train.draft.is_flow:
        if "timestep_type" in train.values:
            train.needless("timestep_type", "of flow matching alone")
        return
    values = train.draft.values
    density, shift, why = {
        "sigmoid": ("logit_normal", 1.0, ""),
        "linear": ("uniform", 1.0, ""),
        "shift": ("uniform", "auto", "shifted as the base's scheduler does"),
        "flux_shift": ("uniform", "auto", "shifted as the base's scheduler does"),
        "weighted": ("uniform", 1.0, "weighted by a bell, not by their table"),
    }.get(kind, ("logit_normal", 1.0, "the nearest that is here"))
    values["objective.density"], values["objective.shift"] = density, shift
    if kind == "weighted":
        values["objective.sigma_weighting"] = "bell"
    if "timestep_type" in train.values and why:
        train.changed("timestep_type", "objective.density", density, why)
    elif "timestep_type" in train.values:
        train.exactly("timestep_type", "objective.density", density)


def _datasets(given: Settings, places: Places, listed: object) -> int:
    """Folders, each with its own settings, and an epoch's views; what [data] has once is the first one's."""
    tables = tables_in(listed, "datasets")
    given.in_parts("datasets") if "datasets" in given.values else None
    lost, sources, views = [], [], 0
    learned = [one for one in tables if is_off(one.get("is_reg"))]
    for number, one in enumerate(tables):
        inner = Settings(given.draft, one, prefix=f"datasets[{number}].", source=given.source)
        said = str(one.get("folder_path") or one.get("dataset_path") or "")
        folder = places.folder(said, alone=len(learned) == 1 and one in learned)
        if folder is None:
            lost.append(said or "folder_path")
            continue
        source = _dataset(inner, places, folder)
        sources.append(source)
        views += source.get("repeats", 1) * views_in(folder) if one in learned else 0
    if lost:
        raise missing(lost)
    values = given.draft.values
    if not sources:
        if places.images is None:
            raise missing(["datasets"])
        sources.append({"images": places.written(places.images)})
    if len(sources) == 1 and not {"role", "weight"} & sources[0].keys():
        values |= {f"data.{key}": value for key, value in sources[0].items()}
    else:
        values["data.sources"] = sources
    values.setdefault("data.caption_dropout", 0.0)
    values["data.max_upscale"] = 16.0
    if values.get("data.keep_tags") and not (
        values.get("data.shuffle_tags") or values.get("data.tag_dropout")
    ):
        values.pop("data.keep_tags")
    return views


def _dataset(inner: Settings, places: Places, folder: Any) -> dict[str, Any]:
    """A table of data.sources; options of [data] go into the draft unless another dataset has set them."""
    source: dict[str, Any] = {"images": places.written(folder)}
    for key in ("folder_path", "dataset_path"):
        if inner.has(key):
            inner.along(key, f"images = {source['images']}")
    if not is_off(inner.get("is_reg")):
        source["role"] = "prior"
    elif (repeats := inner.whole("num_repeats") or 1) != 1:
        source["repeats"] = repeats
    for key in ("is_reg", "num_repeats"):
        if key in inner.values:
            inner.along(key, "data.sources")
    if (weight := inner.number("loss_multiplier")) not in (None, 1.0):
        source["weight"] = weight
    if "loss_multiplier" in inner.values:
        inner.along("loss_multiplier", "weight")
    if caption := inner.text("default_caption"):
        source["instance_prompt"] = caption
    if "default_caption" in inner.values:
        inner.along("default_caption", "instance_prompt")
    if masks := inner.text("mask_path"):
        if (found := places.find(masks)) is not None:
            source["masks"] = places.written(found)
            inner.along("mask_path", f"masks = {source['masks']}")
        else:
            inner.unsupported("mask_path", "not on this machine; masks in [[data.sources]]")
    _shared(inner)
    inner.finish(rules("ai_toolkit", "dataset"))
    return source


def _shared(inner: Settings) -> None:
    values = inner.draft.values
    sides = list(dict.fromkeys(sides_in(inner.get("resolution") or 512, "resolution")))
    first = max(sides)
    values.setdefault("data.resolution", first)
    rest = [one for one in sides if one != first]
    if rest:
        values.setdefault("data.extra_resolutions", rest)
    if "resolution" in inner.values:
        inner.exactly("resolution", "data.resolution", values["data.resolution"])
        if rest:
            inner.exactly("resolution", "data.extra_resolutions", values["data.extra_resolutions"])
    for key, option in (
        ("caption_dropout_rate", "data.caption_dropout"),
        ("token_dropout_rate", "data.tag_dropout"),
        ("shuffle_tokens", "data.shuffle_tags"),
        ("keep_tokens", "data.keep_tags"),
    ):
        if key in inner.values and not is_off(inner.get(key)):
            value: Any = (
                inner.number(key) if "rate" in key else inner.whole(key) if key[0] == "k" else inner.yes(key)
            )
            if option in values and values[option] != value:
                inner.changed(key, option, values[option], "the same for all folders")
            else:
                inner.exactly(key, option, value)
        elif key in inner.values:
            inner.needless(key, "off")
    for key, option, value in (
        ("flip_x", "data.flip", 0.5),
        ("random_crop", "data.crop", "random"),
        ("alpha_mask", "data.transparency", "mask"),
    ):
        if key in inner.values and inner.yes(key):
            inner.exactly(key, option, value)
        elif key in inner.values:
            inner.needless(key, "off")


def _sample(sample: Settings, trigger: str) -> None:
    """Prompts, [trigger] filled in."""
    listed = sample.get("samples") or sample.get("prompts") or []
    listed = listed if isinstance(listed, list) else [listed]
    texts = [one.get("prompt", "") if isinstance(one, dict) else one for one in listed]
    prompts = [" ".join(str(one).replace("[trigger]", trigger).split()) for one in texts]
    found = [one for one in prompts if one]
    if found:
        sample.draft.values["samples.prompts"] = found
    for key in ("prompts", "samples"):
        if key in sample.values:
            sample.exactly(key, "samples.prompts", found) if found else sample.needless(key, "empty")
    if sample.text("neg"):
        sample.exactly("neg", "samples.negative_prompt", sample.text("neg"))
    elif "neg" in sample.values:
        sample.needless("neg", "empty")
    for key, option in (
        ("seed", "samples.seed"),
        ("sample_steps", "samples.steps"),
        ("sample_every", "samples.every"),
    ):
        if sample.has(key):
            sample.exactly(key, option, max(0, sample.whole(key) or 0))
    if sample.has("guidance_scale"):
        said = sample.number("guidance_scale") or 1.0
        if said < 1:
            sample.changed("guidance_scale", "samples.guidance", 1.0, "1 is none")
        else:
            sample.exactly("guidance_scale", "samples.guidance", said)
