"""The kohya_ss GUI's JSON, which becomes a command line of sd-scripts, so it is read as one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from lora_studio.recipe.migrate import sd_scripts
from lora_studio.recipe.migrate.draft import Draft, Settings, rules
from lora_studio.recipe.migrate.folders import Places
from lora_studio.recipe.migrate.meanings import put_samples
from lora_studio.recipe.migrate.values import is_off, number_in, yes_in

TITLE = "the kohya_ss GUI"
_NAMES = {  # of the GUI -> of sd-scripts
    "epoch": "max_train_epochs",
    "max_resolution": "resolution",
    "optimizer": "optimizer_type",
    "lora_network_weights": "network_weights",
    "sdxl_cache_text_encoder_outputs": "cache_text_encoder_outputs",
    "flux1_cache_text_encoder_outputs": "cache_text_encoder_outputs",
    "sd3_cache_text_encoder_outputs": "cache_text_encoder_outputs",
    "sdxl_no_half_vae": "no_half_vae",
    "flux1_clip_l": "clip_l",
    "flux1_t5xxl": "t5xxl",
    "num_cpu_threads_per_process": "num_cpu_threads_per_process",
}
_TYPES = {  # LoRA_type -> network_module and LyCORIS' algo
    "Standard": ("networks.lora", ""),
    "Kohya LoCon": ("networks.lora", ""),
    "Kohya DyLoRA": ("networks.dylora", ""),
    "LoRA-FA": ("networks.lora_fa", ""),
    "Flux1": ("networks.lora_flux", ""),
    "Flux1 OFT": ("networks.oft_flux", ""),
    "sd3": ("networks.lora_sd3", ""),
    "LyCORIS/LoCon": ("lycoris.kohya", "locon"),
    "LyCORIS/LoHa": ("lycoris.kohya", "loha"),
    "LyCORIS/LoKr": ("lycoris.kohya", "lokr"),
    "LyCORIS/DyLoRA": ("lycoris.kohya", "dylora"),
    "LyCORIS/Diag-OFT": ("lycoris.kohya", "diag-oft"),
    "LyCORIS/BOFT": ("lycoris.kohya", "boft"),
    "LyCORIS/Native Fine-Tuning": ("lycoris.kohya", "full"),
    "LyCORIS/iA3": ("lycoris.kohya", "ia3"),
    "LyCORIS/GLoRA": ("lycoris.kohya", "glora"),
}
_ARGS = (
    "rank_dropout",
    "module_dropout",
    "down_lr_weight",
    "mid_lr_weight",
    "up_lr_weight",
    "block_dims",
    "block_alphas",
    "conv_block_dims",
    "conv_block_alphas",
    "block_lr_zero_threshold",
    "loraplus_lr_ratio",
    "loraplus_unet_lr_ratio",
    "loraplus_text_encoder_lr_ratio",
)
_LYCORIS_ARGS = (
    "factor",
    "decompose_both",
    "use_cp",
    "use_tucker",
    "use_scalar",
    "train_norm",
    "rescaled",
    "constrain",
    "dora_wd",
    "bypass_mode",
    "rank_dropout_scale",
    "unit",
)
_WITHOUT = "for other kinds of networks"


def take(draft: Draft, places: Places, options: Mapping[str, Any], *, source: str) -> None:
    """All keys of a saved configuration. Raises RecipeError as sd-scripts' does."""
    gui = Settings(draft, options, source=source)
    given, names = _as_arguments(gui)
    script = "flux_train_network.py" if _on(options, "flux1_checkbox") else "train_network.py"
    script = "sd3_train_network.py" if _on(options, "sd3_checkbox") else script
    inner = Draft()
    sd_scripts.take(inner, places, given, script=script, source=source)
    if lines := _prompts(gui, places):
        put_samples(inner, lines)
        gui.draft.values |= {key: one for key, one in inner.values.items() if key.startswith("samples.")}
        gui.exactly("sample_prompts", "samples.prompts", inner.values.get("samples.prompts", []))
    if (share := _share(gui)) and inner.values.get("adapter.text_encoder"):
        inner.values.setdefault("adapter.layers", []).append({"pattern": "text_encoder*", "stop_at": share})
    draft.values |= inner.values
    draft.notes += inner.notes
    draft.is_flow = inner.is_flow
    for fate in inner.fates:
        key = names.get(fate.key.removeprefix("network_args "), fate.key)
        if key in options or not fate.given:
            draft.fates.append(replace(fate, key=key, value=options.get(key, fate.value)))
            gui.told.add(key)
    gui.finish({**rules("sd_scripts"), **rules("kohya_gui")})


def _on(options: Mapping[str, Any], key: str) -> bool:
    return yes_in(options.get(key, False), key)


def _as_arguments(gui: Settings) -> tuple[dict[str, Any], dict[str, str]]:
    """What the GUI hands to sd-scripts, and which of its keys an argument comes from."""
    given: dict[str, Any] = {}
    names: dict[str, str] = {}
    own = {
        *rules("kohya_gui", handled=False),
        *_ARGS,
        *_LYCORIS_ARGS,
        "LoRA_type",
        "LyCORIS_preset",
        "conv_dim",
        "conv_alpha",
        "lr_warmup",
        "noise_offset_type",
        "stop_text_encoder_training",
        "sample_prompts",
        "text_encoder_lr",
        "unet_lr",
        "xformers",
    }
    for key, value in gui.values.items():
        name = _NAMES.get(key, key)
        if key in own or value in ("", None):
            continue
        if name == "max_train_epochs" and key == "epoch" and given.get(name):
            continue
        given[name], names[name] = value, key
    for key in ("max_train_steps", "max_train_epochs", "save_every_n_steps", "scale_weight_norms"):
        if is_off(given.get(key)) and key in given:
            given.pop(key)
    if given.get("max_train_steps") and gui.has("epoch") and names.get("max_train_epochs") == "epoch":
        given.pop("max_train_epochs")  # the GUI counts epochs only where it is given no steps
        gui.first("epoch", "max_train_steps")
    _rates(gui, given, names)
    _network(gui, given, names)
    _noise(gui, given)
    _warmup(gui, given, names)
    if gui.has("xformers"):
        gui.needless("xformers", "how fast, not what is learned")
    return given, names


def _rates(gui: Settings, given: dict[str, Any], names: dict[str, str]) -> None:
    """0 for one of both rates is: not trained; both 0, or left blank: learning_rate is for both."""
    encoder, unet = (gui.number(key) if gui.has(key) else 0.0 for key in ("text_encoder_lr", "unet_lr"))
    if unet:
        given["unet_lr"], names["unet_lr"] = unet, "unet_lr"
    if encoder:
        given["text_encoder_lr"], names["text_encoder_lr"] = encoder, "text_encoder_lr"
    if unet and not encoder:
        given["network_train_unet_only"] = True
        if gui.has("text_encoder_lr"):
            gui.exactly("text_encoder_lr", "adapter.text_encoder", False)
    if encoder and not unet:
        given["network_train_text_encoder_only"] = True


def _network(gui: Settings, given: dict[str, Any], names: dict[str, str]) -> None:
    kind = gui.text("LoRA_type") or "Standard"
    module, algo = _TYPES.get(kind, ("unknown", ""))
    given["network_module"], names["network_module"] = module, "LoRA_type"
    args = {"algo": algo, "preset": gui.text("LyCORIS_preset") or "full"} if algo else {}
    lycoris_or_locon = bool(algo) or kind == "Kohya LoCon"
    wanted = ("conv_dim", "conv_alpha") if lycoris_or_locon else ()
    taken: tuple[str, ...] = (*wanted, *_ARGS, *(_LYCORIS_ARGS if algo else ()))
    for key in taken:
        if gui.has(key) and not is_off(gui.get(key)):
            args[key], names[key] = str(gui.get(key)), key
    for key in ("conv_dim", "conv_alpha", *_ARGS, *_LYCORIS_ARGS):
        if key in gui.values and key not in args:
            gui.needless(key, "off" if is_off(gui.get(key)) else _WITHOUT)
    if "LyCORIS_preset" in gui.values:
        if algo:
            gui.along("LyCORIS_preset", "adapter.kind")
        else:
            gui.needless("LyCORIS_preset", _WITHOUT)
    if args:
        given["network_args"] = [f"{key}={value}" for key, value in args.items()]


def _noise(gui: Settings, given: dict[str, Any]) -> None:
    """noise_offset_type says which of two kinds of noise is passed on."""
    kind = gui.text("noise_offset_type") or "Original"
    off: tuple[str, ...] = ("noise_offset", "adaptive_noise_scale", "noise_offset_random_strength")
    if kind == "Original":
        off = ("multires_noise_iterations", "multires_noise_discount")
    for key in off:
        given.pop(key, None)
        if key in gui.values:
            gui.needless(key, f"off with noise_offset_type {kind}")
    if "noise_offset_type" in gui.values:
        gui.along("noise_offset_type", "the noise that it names")


def _warmup(gui: Settings, given: dict[str, Any], names: dict[str, str]) -> None:
    """lr_warmup is in percent of the steps; lr_warmup_steps, if it is there, comes first."""
    if gui.has("lr_warmup_steps") and not is_off(gui.get("lr_warmup_steps")):
        given["lr_warmup_steps"] = gui.get("lr_warmup_steps")
        if gui.has("lr_warmup"):
            gui.first("lr_warmup", "lr_warmup_steps")
        return
    given.pop("lr_warmup_steps", None)
    if "lr_warmup_steps" in gui.values:
        gui.needless("lr_warmup_steps", "off")
    if not gui.has("lr_warmup"):
        return
    share = number_in(gui.get("lr_warmup"), "lr_warmup") / 100
    if share and gui.text("lr_scheduler") not in ("constant", "adafactor"):
        given["lr_warmup_steps"] = share
        gui.changed("lr_warmup", "training.warmup_steps", share, "a share of the steps, not percent")
    else:
        gui.needless("lr_warmup", "off" if not share else "a constant schedule has none")


def _share(gui: Settings) -> float:
    """Of the steps after which the text encoders stay; 0: they are trained to the end."""
    key = "stop_text_encoder_training"
    if not gui.has(key):
        return 0.0
    percent = number_in(gui.get(key), key)
    if not 0 < percent < 100:
        gui.needless(key, "off")
        return 0.0
    gui.changed(
        key,
        "adapter.layers",
        [{"pattern": "text_encoder*", "stop_at": percent / 100}],
        "a share of the steps",
    )
    gui.draft.values.pop("adapter.layers")
    return percent / 100


def _prompts(gui: Settings, places: Places) -> list[str]:
    """The GUI keeps the prompts themselves; older ones a file's path."""
    said = gui.text("sample_prompts")
    path = places.find(said) if said and len(said) < 400 and "\n" not in said else None
    if path is not None and path.is_file():
        return path.read_text("utf-8", "replace").splitlines()
    return said.splitlines()
