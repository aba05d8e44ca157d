"""What OneTrainer trains of the base, and at which rates: a table a part, or keys at the top as at first."""

from __future__ import annotations

import math

from lora_studio.recipe.migrate.draft import Settings, each, idle
from lora_studio.recipe.migrate.meanings import TheirSchedule, put_quantization, put_schedule

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


def put_rates(given: Settings, optimizer: str) -> None:
    """The rate for all parts, its schedule and warm-up, and EMA. Raises RecipeError for wrong values."""
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


def put_parts(given: Settings) -> None:
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
