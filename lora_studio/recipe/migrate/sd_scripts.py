"""kohya's sd-scripts: config files and command lines of its *train_network.py, for SD, SDXL, SD3, FLUX.1."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lora_studio.errors import RecipeError
from lora_studio.recipe.migrate import sd_scripts_data
from lora_studio.recipe.migrate.draft import Draft, Settings, is_off, number_in, rules
from lora_studio.recipe.migrate.folders import Places
from lora_studio.recipe.migrate.meanings import (
    TheirSchedule,
    literal,
    put_dtype,
    put_name,
    put_optimizer,
    put_samples,
    put_schedule,
    scale_note,
)
from lora_studio.recipe.migrate.networks import put_network, trains_unet_alone
from lora_studio.recipe.migrate.reading import Content, TrainingCommand, pairs_of, read_settings

TITLE = "kohya's sd-scripts"
SCRIPTS = ("train_network.py", "sdxl_train_network.py", "flux_train_network.py", "sd3_train_network.py")
DEFAULTS: dict[str, Any] = {
    "max_train_steps": 1600,
    "train_batch_size": 1,
    "learning_rate": 2e-6,
    "optimizer_type": "AdamW",
    "lr_scheduler": "constant",
    "mixed_precision": "no",
}


def is_dataset(content: Mapping[str, Any]) -> bool:
    """Whether it is a dataset configuration, without the training's."""
    return (
        isinstance(content.get("datasets"), list)
        and not {"network_module", "network_dim"} & _flat(content).keys()
    )


def take_all(
    draft: Draft, places: Places, settings: Content | None, data: Content | None, *, source: str
) -> None:
    """Settings and the files that they name: config_file and dataset_config. Raises as `take` does."""
    script, launcher = "", {}
    options: dict[str, Any] = {}
    if isinstance(settings, TrainingCommand):
        script, launcher, options = settings.script, settings.launcher, dict(settings.arguments)
        if config := places.find(str(options.get("config_file", ""))):
            inner = read_settings(config)
            options = {**(_flat(inner) if isinstance(inner, dict) else {}), **options}
    elif isinstance(settings, dict):
        options = _flat({key: value for key, value in settings.items() if key not in ("general", "datasets")})
        data = data or {key: settings[key] for key in ("general", "datasets") if key in settings} or None
    if data is None and (said := str(options.get("dataset_config") or "")):
        path = places.find(said)
        if path is None:
            raise RecipeError(
                f"{source} names the dataset configuration {said}, which is not here; "
                "give it with a second --from."
            )
        data = read_settings(path)
    dataset = data if isinstance(data, dict) else {}
    take(draft, places, options, script=script, launcher=launcher, dataset=dataset, source=source)


def take(
    draft: Draft,
    places: Places,
    options: Mapping[str, Any],
    *,
    script: str = "",
    launcher: Mapping[str, Any] | None = None,
    dataset: Mapping[str, Any] | None = None,
    source: str = "",
) -> None:
    """All keys of a training configuration and, if there is one, of a dataset configuration.

    `options`: of a config file or a command line. `launcher`: accelerate's arguments. Raises RecipeError for
    values of the wrong kind and for folders that are nowhere.
    """
    started = Settings(draft, launcher or {}, prefix="accelerate ", source=source)
    given = Settings(draft, _flat(options), defaults=DEFAULTS, source=source)
    if not given.has("mixed_precision") and started.has("mixed_precision"):
        given.defaults["mixed_precision"] = started.get("mixed_precision")
        started.along("mixed_precision", "base.dtype")
    is_flow = "flux" in script or "sd3" in script or any(given.has(key) for key in ("clip_l", "t5xxl", "ae"))
    draft.is_flow = is_flow
    _base(given, places, is_flow=is_flow)
    put_network(given, is_flow=is_flow)
    _rates(given, is_flow=is_flow)
    processes = started.whole("num_processes") or 1
    shown = sd_scripts_data.put_data(given, places, dataset or {}, processes=processes)
    _length(given, shown)
    _objective(given, is_flow=is_flow)
    _samples_and_tracking(given, places)
    given.finish(rules("sd_scripts"))
    started.finish(rules("sd_scripts"))
    if note := scale_note(draft):
        draft.notes.append(note)


def _flat(options: Mapping[str, Any]) -> dict[str, Any]:
    """A config file's tables are only for people: sd-scripts reads the keys in them as its own."""
    found: dict[str, Any] = {}
    for key, value in options.items():
        found |= value if isinstance(value, dict) else {key: value}
    return found


def _base(given: Settings, places: Places, *, is_flow: bool) -> None:
    for key, option in (
        ("pretrained_model_name_or_path", "base.model"),
        ("vae", "base.vae"),
        ("ae", "base.vae"),
        ("network_weights", "adapter.init_from"),
    ):
        if not given.text(key):
            continue
        name, why = places.file(given.text(key))
        if why:
            given.changed(key, option, name, f"{why}; give the file or a hub id")
        else:
            given.exactly(key, option, name)
    encoders = [key for key in ("clip_l", "clip_g", "t5xxl") if given.text(key)]
    if encoders:
        names = [places.file(given.text(key))[0] for key in encoders]
        for key in encoders:
            given.exactly(key, "base.text_encoder", names)
    if given.yes("v_parameterization"):
        given.exactly("v_parameterization", "base.prediction_type", "v_prediction")
    put_dtype(given, "mixed_precision", "base.dtype")
    for key in ("full_fp16", "full_bf16"):
        if given.yes(key):
            given.changed(
                key,
                "base.dtype",
                key.replace("full_fp", "float").replace("full_bf", "bfloat"),
                "of the base; what is trained stays float32",
            )
    for key in ("fp8_base", "fp8_base_unet"):
        if given.yes(key):
            given.changed(key, "base.quantize", "torchao_float8", "linear layers in float8 with a scale each")
    if given.has("save_precision"):
        put_dtype(given, "save_precision", "export.dtype")
    if is_flow and given.has("guidance_scale"):
        if given.number("guidance_scale") == 1:
            given.needless("guidance_scale", "1 here, too, while it trains")
        else:
            given.unsupported("guidance_scale", "a base that is told its guidance is trained at 1")


def _rates(given: Settings, *, is_flow: bool) -> None:
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


def _length(given: Settings, shown: sd_scripts_data.Shown) -> None:
    """Steps or epochs; what counts epochs becomes steps where the images can be counted."""
    values = given.draft.values
    batch = values.get("training.batch_size", 1)
    accumulation = given.whole("gradient_accumulation_steps") or 1
    an_epoch = shown.steps(batch, accumulation)
    if given.has("max_train_epochs") and given.whole("max_train_epochs"):
        epochs = float(given.whole("max_train_epochs") or 1)
        given.exactly("max_train_epochs", "training.epochs", epochs)
        if an_epoch:
            about = f"{epochs:g} epochs are about {round(an_epoch * epochs)} steps"
            given.draft.notes.append(f"{about} with the images that are here")
        if given.has("max_train_steps"):
            given.first("max_train_steps", "max_train_epochs")
    else:
        steps = given.whole("max_train_steps") or 1600
        if shown.factor != 1:
            why = "each step shows more images: a regularization image beside each"
            given.changed("max_train_steps", "training.steps", max(1, round(steps * shown.factor)), why)
        else:
            given.exactly("max_train_steps", "training.steps", steps)
        if given.has("max_train_epochs"):
            given.needless("max_train_epochs", "left blank")
    _every(
        given,
        "save",
        "training.checkpoint_every",
        an_epoch,
        "checkpoints to resume from; export makes a LoRA",
    )
    _every(given, "sample", "samples.every", an_epoch, "")


def _every(given: Settings, what: str, option: str, an_epoch: int, why: str) -> None:
    """`save_every_n_steps`, or that of epochs, which comes first."""
    by_steps, by_epochs = f"{what}_every_n_steps", f"{what}_every_n_epochs"
    if given.has(by_epochs) and (count := given.whole(by_epochs)):
        if an_epoch:
            steps = max(1, an_epoch * count)
            given.changed(
                by_epochs, option, steps, f"an epoch of the images that are here is {an_epoch} steps"
            )
        else:
            given.unsupported(by_epochs, f"{option} counts steps")
        if given.has(by_steps):
            given.along(by_steps, by_epochs)
    elif given.has(by_steps) and (count := given.whole(by_steps)):
        if why:
            given.changed(by_steps, option, count, why)
        else:
            given.exactly(by_steps, option, count)
    for key in (by_steps, by_epochs):
        if given.has(key) and key not in given.told:
            given.needless(key, "off")


def _objective(given: Settings, *, is_flow: bool) -> None:
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


def _samples_and_tracking(given: Settings, places: Places) -> None:
    if said := given.text("sample_prompts"):
        path = places.find(said)
        lines = path.read_text("utf-8", "replace").splitlines() if path and path.is_file() else []
        if path and path.suffix.lower() in (".json", ".toml"):
            given.unsupported("sample_prompts", "samples.prompts holds them itself; write them there")
        elif put_samples(given.draft, lines):
            given.exactly("sample_prompts", "samples.prompts", given.draft.values["samples.prompts"])
        else:
            given.unsupported(
                "sample_prompts", "that file is not here; samples.prompts holds the prompts itself"
            )
    said = given.text("log_with").lower()
    if services := {"all": ["tensorboard", "wandb"]}.get(
        said, [said] if said in ("tensorboard", "wandb") else []
    ):
        given.exactly("log_with", "tracking.to", services)
    elif given.has("log_with"):
        given.off_or("log_with", "tracking.to knows tensorboard, wandb and trackio")
    if given.has("output_name"):
        put_name(given, "output_name")
