"""What trainers have in common: optimizers, schedules, precisions, sizes and prompts, in our terms."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lora_studio.errors import RecipeError
from lora_studio.recipe.migrate.draft import Draft, Settings
from lora_studio.recipe.migrate.folders import Places
from lora_studio.recipe.migrate.optimizers import plain
from lora_studio.recipe.migrate.values import is_off, number_in
from lora_studio.text import shown

DTYPES = {
    **dict.fromkeys(("no", "fp32", "float", "float32", "float_32"), "float32"),
    **dict.fromkeys(("fp16", "float16", "float_16"), "float16"),
    **dict.fromkeys(("bf16", "bfloat16", "bfloat_16"), "bfloat16"),
}
QUANTIZED = {  # how another trainer calls it -> ours, and what differs
    "nfloat4": ("bnb_nf4", ""),
    "nf4bnb": ("bnb_nf4", ""),
    "int4quanto": ("bnb_nf4", "4 bits as normal floats"),
    "int2quanto": ("bnb_nf4", "4 bits, the fewest here"),
    "uint4": ("bnb_nf4", "4 bits as normal floats"),
    "int8": ("bnb_int8", ""),
    "int8quanto": ("torchao_int8", "torchao's 8 bits"),
    "int8torchao": ("torchao_int8", ""),
    "qint8": ("torchao_int8", "torchao's 8 bits"),
    "uint8": ("torchao_int8", "torchao's 8 bits"),
    "float8": ("torchao_float8", "torchao's float8"),
    "qfloat8": ("torchao_float8", "torchao's float8"),
    "fp8quanto": ("torchao_float8", "torchao's float8"),
    "fp8uzquanto": ("torchao_float8", "torchao's float8"),
    "fp8torchao": ("torchao_float8", ""),
}


@dataclass(frozen=True)
class TheirSchedule:
    """A schedule's name and its numbers, as they stand there."""

    name: str
    warmup: float = 0.0  # in steps, or below 1 a share
    cycles: float = 1.0
    power: float = 1.0
    floor: float | None = None


def put_schedule(settings: Settings, key: str, one: TheirSchedule, *, optimizer: str = "") -> None:
    """Learning-rate schedule, where it ends, and warm-up."""
    values, name = settings.draft.values, one.name.lower().replace(" ", "_")
    ours, floor, why = _schedule(name, one)
    if optimizer == "schedule_free" and ours != "constant":
        ours, floor, why = "constant", None, "its mean of all steps stands in for a falling rate"
    warmup = 0.0 if name in ("constant", "adafactor", "piecewise_constant") else one.warmup
    if ours == "":
        settings.unsupported(key, f"linear to 0 is taken; there are cosine, linear and constant{why}")
        values["training.lr_schedule"] = "linear"
    elif settings.has(key) and why:
        settings.changed(key, "training.lr_schedule", ours, why)
    elif settings.has(key):
        settings.exactly(key, "training.lr_schedule", ours)
    values["training.lr_schedule"] = ours or "linear"
    if floor is not None:
        values["training.lr_schedule_floor"] = round(floor, 12)
    values["training.warmup_steps"] = int(warmup) if warmup >= 1 or not warmup else warmup


def _schedule(name: str, one: TheirSchedule) -> tuple[str, float | None, str]:
    """Ours, its floor where that is not the usual one, and what differs."""
    if name in ("constant", "constant_with_warmup"):
        return "constant", None, ""
    if name == "adafactor":
        return "constant", None, "the rate is the recipe's, not the optimizer's own"
    if name == "cosine":
        whole = one.cycles in (0.5, 1.0)
        return "cosine", one.floor or 0.0, "" if whole else f"one half wave, not {one.cycles:g}"
    if name in ("cosine_with_restarts", "cosine_with_hard_restarts", "cosineannealinglr"):
        once = one.cycles <= 1
        return "cosine", one.floor or 0.0, "" if once else f"once, not {one.cycles:g} times: no restarts"
    if name in ("cosine_with_min_lr", "cosine_warmup_with_min_lr"):
        return "cosine", one.floor or 0.0, ""
    if name == "linear":
        return "linear", one.floor, ""
    if name == "polynomial":
        return "linear", one.floor, "" if one.power == 1 else f"a straight line, not one to the {one.power:g}"
    return "", None, ""


def put_dtype(settings: Settings, key: str, option: str) -> None:
    """A precision under its names elsewhere."""
    said = settings.text(key).lower()
    if name := DTYPES.get(said):
        settings.exactly(key, option, name)
    else:
        settings.off_or(key, f"{option} knows float32, float16 and bfloat16")


def put_quantization(settings: Settings, key: str, said: str, *, off: bool = False) -> None:
    """What keeps the frozen layers in fewer bits; precisions that are none are told of as such."""
    if off or is_off(said) or plain(said) in ("none", "nochange") or said.lower() in DTYPES:
        settings.needless(key, "not quantized")
        return
    name, why = QUANTIZED.get(plain(said), ("torchao_int8", "8 bits, the nearest that is here"))
    if why:
        settings.changed(key, "base.quantize", name, why)
    else:
        settings.exactly(key, "base.quantize", name)


def sides_in(value: object, name: str) -> list[int]:
    """Of "512", "512,768", "1024x1024", 512 or [512, 768] the numbers. Raises RecipeError."""
    parts = value if isinstance(value, list | tuple) else re.split(r"[,x×]", str(value))
    sides = [round(number_in(one, name)) for one in parts if str(one).strip()]
    if not sides or min(sides) < 1 or max(sides) > 65_536:
        raise RecipeError(f"{name} is {shown(repr(value), limit=80)}; it must be a size in pixels.")
    return sides


def put_size(settings: Settings, key: str, *, step: int = 64) -> None:
    """A width and a height, or one side, as the side of a square of that area in multiples of `step`."""
    sides = sides_in(settings.get(key), key)
    if len(set(sides)) == 1:
        settings.exactly(key, "data.resolution", sides[0])
        return
    side = max(step, round(math.sqrt(math.prod(sides[:2])) / step) * step)
    settings.changed(
        key, "data.resolution", side, "the side of a square of that area; buckets have its shape"
    )


def put_samples(draft: Draft, lines: Sequence[str]) -> int:
    """Prompts with kohya's options behind them ("a fox --n blurry --s 20 --l 7 --d 1"); returns how many.

    Options become the samples' own where all prompts agree.
    """
    prompts, options = [], []
    for line in lines:
        text, *rest = re.split(r"\s--(?=[a-z])", f" {line.strip()}")
        if text.strip() and not text.strip().startswith("#"):
            prompts.append(" ".join(text.split()))
            options.append({part.split(" ", 1)[0]: part.partition(" ")[2].strip() for part in rest})
    if not prompts:
        return 0
    draft.values["samples.prompts"] = prompts
    kinds: tuple[tuple[str, str, type], ...] = (
        ("n", "negative_prompt", str),
        ("s", "steps", int),
        ("l", "guidance", float),
        ("d", "seed", int),
    )
    for letter, option, kind in kinds:
        said = {one.get(letter) for one in options}
        if len(said) == 1 and (value := said.pop()):
            number = value if kind is str else kind(number_in(value, f"--{letter} of the prompts"))
            draft.values[f"samples.{option}"] = max(1.0, number) if option == "guidance" else number
    return len(prompts)


def put_name(settings: Settings, key: str) -> None:
    """The name of run and file, with what no file name may have as _."""
    said = settings.text(key)
    name = re.sub(r"[^A-Za-z0-9._-]+", "_", said).strip("._-")[:64]
    if not name:
        settings.needless(key, "left blank")
    elif name == said:
        settings.exactly(key, "name", name)
    else:
        settings.changed(key, "name", name, "letters, digits, dots, _ and - alone, at most 64")


def scale_note(draft: Draft) -> str:
    """What alpha and learning rate come to at alpha = rank, where others' numbers are compared."""
    rank, alpha = draft.values.get("adapter.rank", 16), draft.values.get("adapter.alpha", 16.0)
    rate = draft.values.get("training.learning_rate", 1e-4)
    if alpha == rank or min(alpha, rank) <= 0 or draft.values.get("training.optimizer") == "prodigy":
        return ""
    scale = alpha / rank
    return (
        f"the update is scaled by alpha / rank = {scale:.4g}, here as there; with alpha = rank, AdamW learns "
        f"about as fast at {rate * math.sqrt(scale):.3g}"
    )


def put_files(given: Settings, places: Places, options: Mapping[str, str]) -> None:
    """Files and hub ids, by the key that they are given with and the option here; with what else to do."""
    for key, option in options.items():
        if given.text(key):
            name, why = places.file(given.text(key))
            if why:
                given.changed(key, option, name, f"{why}; give the file or a hub id")
            else:
                given.exactly(key, option, name)
