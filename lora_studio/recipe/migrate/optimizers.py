"""Other trainers' optimizers and their options in our terms."""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping, Sequence
from typing import Any

from lora_studio.recipe.migrate.draft import Settings
from lora_studio.recipe.migrate.values import number_in

_DECAY = "its weight decay is decoupled, as AdamW's"
_OWN_RATE = "prodigy finds its rate likewise; keep the factor 1"
OPTIMIZERS: dict[str, tuple[str, str]] = {  # without -, _ and spaces -> ours, and what differs
    "adamw": ("adamw", ""),
    "adam": ("adamw", _DECAY),
    "adamwbf16": ("adamw", "its moments are float32, not bfloat16"),
    "optimiadamw": ("adamw", "its moments are float32"),
    "bnbadamw": ("adamw", ""),
    "adamw8bit": ("adamw8bit", ""),
    "adam8bit": ("adamw8bit", _DECAY),
    "adamw8": ("adamw8bit", "bitsandbytes' 8 bits, not its own"),
    "adam8": ("adamw8bit", _DECAY),
    "bnbadamw8bit": ("adamw8bit", ""),
    "aoadamw8bit": ("adamw8bit", "bitsandbytes' 8 bits, not torchao's"),
    "pagedadamw": ("adamw", "its moments stay on the GPU"),
    "pagedadamw32bit": ("adamw", "its moments stay on the GPU"),
    "pagedadamw8bit": ("adamw8bit", "its moments stay on the GPU"),
    "bnbadamw8bitpaged": ("adamw8bit", "its moments stay on the GPU"),
    "lion": ("lion", ""),
    "bnblion": ("lion", ""),
    "optimilion": ("lion", ""),
    "lion8bit": ("lion", "its mean is float32, not of 8 bits"),
    "pagedlion8bit": ("lion", "its mean is float32, not of 8 bits"),
    "bnblion8bit": ("lion", "its mean is float32, not of 8 bits"),
    "adafactor": ("adafactor", ""),
    "prodigy": ("prodigy", ""),
    "prodigyopt": ("prodigy", ""),
    "prodigy8bit": ("prodigy", "its moments are float32, not of 8 bits"),
    "dadaptation": ("prodigy", _OWN_RATE),
    "dadaptadam": ("prodigy", _OWN_RATE),
    "dadaptadampreprint": ("prodigy", _OWN_RATE),
    "dadaptadan": ("prodigy", _OWN_RATE),
    "dadaptlion": ("prodigy", _OWN_RATE),
    "adamwschedulefree": ("schedule_free", ""),
    "schedulefreeadamw": ("schedule_free", ""),
    "prodigyschedulefree": ("prodigy", "with the schedule of training.lr_schedule"),
    "sgdnesterov": ("torch.optim:SGD", ""),
    "sgd": ("torch.optim:SGD", ""),
    "radam": ("torch.optim:RAdam", ""),
    "adagrad": ("torch.optim:Adagrad", ""),
}
_TAKES = {
    "adamw": {"betas", "eps"},
    "adamw8bit": {"betas", "eps"},
    "adafactor": {"clip_threshold", "decay_rate", "beta1"},
    "lion": {"betas"},
    "prodigy": {"betas", "d_coef", "d0", "growth_rate", "use_bias_correction", "safeguard_warmup"},
    "schedule_free": {"betas", "eps", "r"},
}
_AS_HERE = {"decouple": True, "scale_parameter": False, "relative_step": False, "warmup_init": False}
LIBRARY_DECAY = {"adamw": 0.01, "adamw8bit": 0.01}  # of the libraries' own; 0 for all others
FREE_RATE = frozenset({"prodigy"})


def plain(name: str) -> str:
    """ "Paged_AdamW-8bit" -> "pagedadamw8bit"."""
    return re.sub(r"[^a-z0-9]", "", name.lower())


def put_optimizer(settings: Settings, key: str, options: Mapping[str, Any], *, options_key: str = "") -> str:
    """Optimizer, weight decay and options; returns ours.

    `options`: theirs by name, as values. `options_key`: the key that they stand under, to tell of it.
    """
    said = settings.text(key) or "AdamW"
    name, why = OPTIMIZERS.get(plain(said.rpartition(".")[2] if "." in said else said), ("", ""))
    if not name and "." in said:
        module, _, last = said.rpartition(".")
        name, why = f"{module}:{last}", "imported from that package, which has to be installed"
    if not name:
        settings.unsupported(key, "adamw is taken; any optimizer of a package can be named as module:Class")
        name = "adamw"
    elif settings.has(key) and why:
        settings.changed(key, "training.optimizer", name, why)
    elif settings.has(key):
        settings.exactly(key, "training.optimizer", name)
    settings.draft.values["training.optimizer"] = name
    kept, left = _sorted_options(name, options)
    decay = kept.pop("weight_decay", LIBRARY_DECAY.get(name, 0.0))
    settings.draft.values["training.weight_decay"] = float(decay)
    if said.lower() == "sgdnesterov":
        kept.setdefault("nesterov", True)
        kept.setdefault("momentum", 0.9)
    if kept:
        settings.draft.values["training.optimizer_options"] = kept
    if options_key:
        _tell_options(settings, options_key, kept, decay, left)
    return name


def _sorted_options(name: str, options: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    kept: dict[str, Any] = {}
    left = []
    for key, value in options.items():
        if key == "weight_decay":
            kept[key] = number_in(value, key)
        elif ":" in name or key in _TAKES[name]:
            kept[key] = [number_in(one, key) for one in value] if isinstance(value, list | tuple) else value
        elif value != _AS_HERE.get(key):
            left.append(f"{key} = {value}")
    if name == "prodigy":  # its authors' defaults, where ours are what they advise
        kept = {"use_bias_correction": False, "safeguard_warmup": False} | kept
        kept = {key: one for key, one in kept.items() if (key, one) != ("betas", [0.9, 0.999])}
    elif name in ("adamw", "adamw8bit"):
        kept = {
            key: one
            for key, one in kept.items()
            if (key, one) not in (("betas", [0.9, 0.999]), ("eps", 1e-8))
        }
    return kept, left


def _tell_options(
    settings: Settings, key: str, kept: Mapping[str, Any], decay: float, left: Sequence[str]
) -> None:
    if left:
        why = f"{', '.join(left)} left out: training.optimizer_options has no such argument of this optimizer"
        settings.unsupported(key, why)
    elif settings.has(key):
        settings.exactly(key, "training.weight_decay", float(decay))
        if kept:
            settings.exactly(key, "training.optimizer_options", dict(kept))


def literal(text: str) -> Any:
    """ "0.9,0.99" -> [0.9, 0.99]; "True" -> True; other text as it is."""
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        lowered = text.lower()
        return {"true": True, "false": False}.get(lowered, text)
    return list(value) if isinstance(value, tuple) else value
