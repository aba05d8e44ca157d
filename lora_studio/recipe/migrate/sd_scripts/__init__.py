"""kohya's sd-scripts: config files and command lines of its *train_network.py, for SD, SDXL, SD3, FLUX.1."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lora_studio.errors import RecipeError
from lora_studio.recipe.migrate.draft import Draft, Settings, rules
from lora_studio.recipe.migrate.folders import Places
from lora_studio.recipe.migrate.meanings import put_dtype, put_name, put_samples, scale_note
from lora_studio.recipe.migrate.reading import Content, TrainingCommand, read_settings
from lora_studio.recipe.migrate.sd_scripts.dataset import Shown, put_data
from lora_studio.recipe.migrate.sd_scripts.networks import put_network
from lora_studio.recipe.migrate.sd_scripts.training import put_objective, put_rates

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
    put_rates(given, is_flow=is_flow)
    processes = started.whole("num_processes") or 1
    shown = put_data(given, places, dataset or {}, processes=processes)
    _length(given, shown)
    put_objective(given, is_flow=is_flow)
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


def _length(given: Settings, shown: Shown) -> None:
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
