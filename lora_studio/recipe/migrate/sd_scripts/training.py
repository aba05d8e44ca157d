"""sd-scripts' optimizer, rates, text encoders and objective."""

from __future__ import annotations

from typing import Any

from lora_studio.recipe.migrate.draft import Settings
from lora_studio.recipe.migrate.meanings import TheirSchedule, put_schedule
from lora_studio.recipe.migrate.optimizers import literal, put_optimizer
from lora_studio.recipe.migrate.reading import pairs_of
from lora_studio.recipe.migrate.sd_scripts.networks import trains_unet_alone
from lora_studio.recipe.migrate.values import is_off, number_in


def put_rates(given: Settings, *, is_flow: bool) -> None:
    """Optimizer, learning rates and which text encoders are trained with which."""
    args = {
        key: literal(value) for key, value in pairs_of(given.get("optimizer_args"), "optimizer_args").items()
    }
    if given.yes("use_8bit_adam") and not given.has("optimizer_type"):
        given.defaults["optimizer_type"] = "AdamW8bit"
        given.along("use_8bit_adam", "training.optimizer")
    if given.yes("use_lion_optimizer") and not given.has("optimizer_type"):
        given.defaults["optimizer_type"] = "Lion"
        given.along("use_lion_optimizer", "training.optimizer")
    name = put_optimizer(given, "optimizer_type", args, options_key="optimizer_args")
    if name == "adafactor" and args.get("relative_step", True) is not False:
        given.unsupported(
            "optimizer_args", "Adafactor finds no rate of its own here: set training.learning_rate"
        )
    rate_key = "unet_lr" if given.has("unet_lr") and not is_off(given.get("unet_lr")) else "learning_rate"
    given.exactly(rate_key, "training.learning_rate", given.number(rate_key))
    if rate_key == "unet_lr" and given.has("learning_rate"):
        given.first("learning_rate", "unet_lr")
    if given.has("unet_lr") and rate_key == "learning_rate":
        given.needless("unet_lr", "left blank")
    warmup = given.number("lr_warmup_steps") or 0.0
    ratio = given.number("lr_scheduler_min_lr_ratio")
    cycles = given.number("lr_scheduler_num_cycles") or 1.0
    power = 1.0 if (said := given.number("lr_scheduler_power")) is None else said
    schedule = TheirSchedule(given.text("lr_scheduler"), warmup, cycles, power, ratio)
    put_schedule(given, "lr_scheduler", schedule, optimizer=name)
    for key in ("lr_scheduler_num_cycles", "lr_scheduler_power", "lr_scheduler_min_lr_ratio"):
        if given.has(key):
            given.along(key, "training.lr_schedule")
    if given.has("lr_warmup_steps"):
        if given.draft.values["training.warmup_steps"] or not warmup:
            steps = given.draft.values["training.warmup_steps"]
            given.exactly("lr_warmup_steps", "training.warmup_steps", steps)
        else:
            given.needless("lr_warmup_steps", "a constant schedule has none")
    given.off_or("lr_scheduler_type", "there are cosine, linear and constant")
    given.off_or("lr_scheduler_args", "there are cosine, linear and constant")
    given.off_or("lr_decay_steps", "the rate falls from the warm-up to the end")
    given.off_or("lr_scheduler_timescale", "there are cosine, linear and constant")
    _text_encoders(given, is_flow=is_flow)
    if given.has("max_grad_norm"):
        norm = given.number("max_grad_norm") or 0.0
        if norm:
            given.exactly("max_grad_norm", "training.max_grad_norm", norm)
        else:
            given.changed("max_grad_norm", "training.max_grad_norm", 1e6, "as good as no limit")


def _text_encoders(given: Settings, *, is_flow: bool) -> None:
    """They are trained unless it is said otherwise; those of FLUX and Stable Diffusion 3 stay frozen here."""
    alone = trains_unet_alone(given)
    cached = given.yes("cache_text_encoder_outputs")
    said = given.get("text_encoder_lr")
    rates = said if isinstance(said, list) else [said] if said not in (None, "") else []
    numbers = [number_in(one, "text_encoder_lr") for one in rates]
    for key in ("text_encoder_lr1", "text_encoder_lr2"):
        if given.has(key):
            numbers.append(given.number(key) or 0.0)
            given.along(key, "training.text_encoder_learning_rate")
    trained = not alone and not cached and not (numbers and not any(numbers))
    for key in ("network_train_unet_only", "cache_text_encoder_outputs"):
        if given.has(key) and (alone or cached):
            given.exactly(key, "adapter.text_encoder", False)
        elif given.has(key):
            given.along(key, "adapter.text_encoder")
    if is_flow or not trained:
        if given.has("text_encoder_lr"):
            if trained:
                given.unsupported("text_encoder_lr", "the text encoders of such a base stay frozen")
            else:
                given.needless("text_encoder_lr", "the text encoders stay frozen")
        return
    first = next((one for one in numbers if one), given.number("learning_rate"))
    values = given.draft.values
    values["adapter.text_encoder"] = True
    values["training.text_encoder_learning_rate"] = first
    if given.has("text_encoder_lr"):
        given.exactly("text_encoder_lr", "training.text_encoder_learning_rate", first)
    if len(numbers) > 1 and numbers[1] != first:
        rule: dict[str, Any] = {"pattern": "text_encoder_2.*"}
        rule |= {"learning_rate": numbers[1]} if numbers[1] else {"train": False}
        values.setdefault("adapter.layers", []).append(rule)


def put_objective(given: Settings, *, is_flow: bool) -> None:
    """Noise, weights, timesteps and loss; of flow matching how sigmas are drawn. Raises RecipeError."""
    values = given.draft.values
    gamma = given.number("min_snr_gamma") or 0.0
    if is_flow:
        given.off_or("min_snr_gamma", "flow matching has no SNR to weigh by: objective.sigma_weighting")
        _sigmas(given)
    elif given.yes("debiased_estimation_loss"):
        given.exactly("debiased_estimation_loss", "objective.weighting", "debiased")
        given.off_or("min_snr_gamma", "objective.weighting is one or the other: debiased")
    else:
        values["objective.snr_gamma"] = gamma
        if given.has("min_snr_gamma"):
            given.exactly("min_snr_gamma", "objective.snr_gamma", gamma)
    levels, discount = given.whole("multires_noise_iterations") or 0, given.number("multires_noise_discount")
    if levels:
        share = min(0.9, 0.3 if discount is None else discount)
        why = "up to 6 sizes, each half of the one before, and of variance 1; their sizes are random"
        given.changed("multires_noise_iterations", "objective.multires_noise", share, why)
        if given.has("multires_noise_discount"):
            given.along("multires_noise_discount", "objective.multires_noise")
    elif given.has("multires_noise_discount"):
        given.needless("multires_noise_discount", "off without multires_noise_iterations")
    low, high = given.number("min_timestep") or 0.0, given.number("max_timestep") or 1000.0
    if (low, high) != (0.0, 1000.0):
        values["objective.timestep_range"] = [low / 1000, high / 1000]
    for key in ("min_timestep", "max_timestep"):
        if given.has(key):
            if (low, high) == (0.0, 1000.0):
                given.needless(key, "all timesteps")
            else:
                given.exactly(key, "objective.timestep_range", [low / 1000, high / 1000])
    put_loss(given)


def put_loss(given: Settings) -> None:
    """Of loss_type and huber_c."""
    kind, delta = given.text("loss_type").lower() or "l2", given.number("huber_c")
    delta = 0.1 if delta is None else delta
    values = given.draft.values
    if kind in ("huber", "smooth_l1"):
        why = "Huber's own, linear above loss_delta; theirs is smooth, by default with SNR's schedule"
        given.changed("loss_type", "objective.loss", kind, why)
        values["objective.loss_delta"] = delta
        if given.has("huber_c"):
            given.changed("huber_c", "objective.loss_delta", delta, "the same at all timesteps")
        return
    if kind == "l1":
        given.changed("loss_type", "objective.loss", "smooth_l1", "with loss_delta = 0.001, so all but l1")
        values["objective.loss_delta"] = 0.001
    elif given.has("loss_type"):
        given.exactly("loss_type", "objective.loss", "l2")
    for key in ("huber_c", "huber_schedule", "huber_scale"):
        if given.has(key):
            given.needless(key, "for other losses")


def _sigmas(given: Settings) -> None:
    """How sigmas are drawn and shifted: add_flux_train_arguments and sd3's."""
    sampling = given.text("timestep_sampling") or "sigma"
    shift = given.number("discrete_flow_shift")
    density, moved = {
        "flux_shift": ("logit_normal", "auto"),
        "shift": ("logit_normal", 3.0 if shift is None else shift),
        "sigmoid": ("logit_normal", 1.0),
        "uniform": ("uniform", 1.0),
    }.get(sampling, ("uniform", 3.0 if shift is None else shift))
    scheme = given.text("weighting_scheme") or "uniform"
    values = given.draft.values
    if sampling == "sigma" and scheme == "logit_normal":
        density = "logit_normal"
    values["objective.density"], values["objective.shift"] = density, moved
    if given.has("timestep_sampling"):
        given.exactly("timestep_sampling", "objective.density", density)
    if given.has("discrete_flow_shift"):
        if sampling in ("shift", "sigma"):
            given.exactly("discrete_flow_shift", "objective.shift", moved)
        else:
            given.needless("discrete_flow_shift", f"not used with timestep_sampling {sampling}")
    if given.has("weighting_scheme"):
        if scheme == "cosmap":
            given.exactly("weighting_scheme", "objective.sigma_weighting", "cosmap")
        elif scheme in ("uniform", "none", "logit_normal"):
            given.along("weighting_scheme", "objective.density")
        else:
            given.unsupported("weighting_scheme", "objective.sigma_weighting knows bell and cosmap")
    if given.has("model_prediction_type") and given.text("model_prediction_type") == "raw":
        given.needless("model_prediction_type", "as here")
    elif given.has("model_prediction_type"):
        given.unsupported(
            "model_prediction_type", "the loss is that of the raw prediction, as the base's was"
        )
    else:
        what = "it is that of the image, here that of the prediction"
        given.draft.notes.append(f"sd-scripts weighs the loss by sigma², as {what}")
    given.off_or("sigmoid_scale", "the spread of logit_normal is 1", 1, 1.0, "1")
    given.off_or("logit_mean", "objective.shift moves it: exp(mean)")
    given.off_or("logit_std", "the spread of logit_normal is 1", 1, 1.0, "1")
    given.off_or("mode_scale", "objective.density knows logit_normal and uniform", 1.29, "1.29")
    given.off_or("training_shift", "objective.shift", 1, 1.0, "1")
