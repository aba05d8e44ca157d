"""ai-toolkit's table `train`: how long, at which rate, with which optimizer and objective."""

from __future__ import annotations

from lora_studio.recipe.migrate.draft import Settings, each, idle
from lora_studio.recipe.migrate.meanings import TheirSchedule, put_dtype, put_schedule
from lora_studio.recipe.migrate.optimizers import FREE_RATE, put_optimizer
from lora_studio.recipe.migrate.values import is_off


def put_train(train: Settings) -> None:
    """All keys of the table but those that finish() tells of. Raises RecipeError for wrong values."""
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
