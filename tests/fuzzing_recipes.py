"""Recipes with odd or random values in each, from a seed, and what loading and a first step make of them."""

from __future__ import annotations

import random
import time
import tomllib
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import tomli_w
from annotated_types import Ge, Gt, Le, Lt
from trying import tried

from lora_studio.errors import RenamedOption
from lora_studio.recipe import Recipe, fields
from lora_studio.recipe.load import changed, load_recipe, names_elsewhere
from lora_studio.recipe.renamed import RENAMED
from lora_studio.recipe.sweep import SweepConfig
from lora_studio.training.events import Event, StepDone
from lora_studio.training.prepare.checks import name_faults
from lora_studio.training.session import to_toml, train

ODD = (
    *("inf", "-inf", "nan", "-0.0", "1e-320", "1e308", "1e999", "-1", "0", "1", "2", "0.5", "1000", "3e9"),
    *(str(2**31), str(2**63), str(10**26), "9" * 5000, "0x" + "f" * 9000, "true", "false", '""', '" "'),
    *('"x"', "[]", "{}", "[[]]", "[1, 2]", '["a", 1]', "[inf]", "{ a = 1 }", "[{ a = 1 }]", "1979-05-27"),
    *("07:32:00", "1979-05-27T07:32:00Z", "[" * 50 + "]" * 50, "[" * 9000 + "]" * 9000, '"""a\nb"""'),
    *(r'"\u0000"', r'"\u001b[31m\u202e"', r'"C:\\Users\\me"', r'"C:\temp"', r'"C:\Users"', "'~nobody/x'"),
    *('"é\U0001f98a"', f'"{"x" * 300}"', f'"{"x/" * 3000}"', f'"{"x" * 50_000}"', '"/dev/null"', '"."'),
    *('".."', '"CON"', '"pocket"', '"none"', '"full"', '"os:system"', '"a:b:c"', '"{a|b} <lora:x:1>"'),
)
WORDS = ("lora", "loha", "dora", "full", "none", "lion", "prodigy", "adafactor", "linear", "constant", "cpu")
STEP_SECONDS = 60  # of a first step, at most; a machine that is busy takes long


OPTIONS: dict[str, Any] = {option: section.model_fields[name] for option, section, name in fields()}


def valid(option: str, draw: random.Random) -> object:
    """A value of the option's type and within its limits."""
    field = OPTIONS[option]
    kinds = [one for one in (field.annotation, *get_args(field.annotation)) if one is not type(None)]
    if choices := next((get_args(one) for one in kinds if get_origin(one) is Literal), ()):
        return draw.choice(choices)
    if bool in kinds:
        return draw.random() < 0.5
    if int not in kinds and float not in kinds:
        is_list = any(get_origin(one) is tuple for one in (field.annotation, *kinds))
        return [] if is_list else draw.choice(("", "zwx", "a b, c", *WORDS))
    ends = {name: end for one in field.metadata for name, end in vars_of(one).items()}
    low, high = ends.get("ge", ends.get("gt", 0)), ends.get("le", ends.get("lt", 9))
    value = draw.choice((low, high, draw.uniform(low, high), draw.uniform(low, min(high, low + 8))))
    return float(value) if float in kinds else round(value)


def vars_of(bound: object) -> dict[str, float]:
    names = ("ge", "gt", "le", "lt") if isinstance(bound, Ge | Gt | Le | Lt) else ()
    return {name: getattr(bound, name) for name in names if hasattr(bound, name)}


def written(base: dict[str, Any], draw: random.Random) -> tuple[bytes, list[str]]:
    """A recipe's bytes and what is given with --set: some values of each kind, and perhaps a damaged text."""
    values: dict[str, Any] = {key: dict(one) if isinstance(one, dict) else one for key, one in base.items()}
    for _ in range(draw.randint(0, 2)):
        option = draw.choice([*OPTIONS])
        put(values, option, valid(option, draw))
    changes = []
    for _ in range(draw.choice((0, 1, 1, 2))):
        option, value = draw.choice([*OPTIONS]), draw.choice(ODD)
        if draw.random() < 0.1:
            option = draw.choice([*RENAMED, *names_elsewhere(), "a.b.c", "training", "", "a..b", "x\x1b"])
        try:
            put(values, option, tomllib.loads(f"v = {value}")["v"])
            tomli_w.dumps(values)
        except (ValueError, RecursionError, TypeError):  # no TOML
            values = {key: one for key, one in values.items() if key != option.partition(".")[0]} | base
            changes.append(f"{option}={value}")
    content = tomli_w.dumps(values).encode("utf-8", "surrogatepass")
    return (damaged(content, draw) if draw.random() < 0.15 else content), changes


def put(values: dict[str, Any], option: str, value: object) -> None:
    *sections, last = option.split(".")
    for one in sections:
        values[one] = values = dict(values[one]) if isinstance(values.get(one), dict) else {}
    values[last] = value


def damaged(content: bytes, draw: random.Random) -> bytes:
    """With one thing wrong in its bytes or lines."""
    lines = content.split(b"\n")
    place = draw.randrange(len(content))
    return draw.choice(
        (
            lambda: content[:place],
            lambda: content[:place] + bytes([draw.randrange(256)]) + content[place + 1 :],
            lambda: content[:place] + draw.randbytes(20) + content[place:],
            lambda: (
                content[:place] + draw.choice((b'"', b"'", b"[", b"=", b"\\", b"\0", b"#")) + content[place:]
            ),
            lambda: b"\n".join(line for line in lines if draw.random() > 0.1),
            lambda: b"\n".join([*lines, draw.choice(lines)]),
            lambda: b"\n".join(draw.sample(lines, len(lines))),
            lambda: content.replace(b"\n", b"\r\n"),
            lambda: b"\xef\xbb\xbf" + content,
            lambda: content.decode().encode("utf-16"),
            lambda: content.replace(b" = ", b": "),
            lambda: draw.randbytes(300),
            lambda: b"",
        )
    )()


class FirstStep(Exception):
    """The first step is done."""


def stop_after_a_step(event: Event) -> None:
    if isinstance(event, StepDone):
        raise FirstStep


AFFORDABLE = {
    "data.resolution": 96,
    "data.max_upscale": 2.0,
    "data.crops": 2,
    "data.regularization_images.count": 2,
    "data.regularization_images.steps": 1,
    "training.batch_size": 4,
    "training.gradient_accumulation": 2,
    "adapter.rank": 8,
    "adapter.conv_rank": 8,
}
"""What would take its time, as it was asked for, is made less in a recipe that was accepted."""


def affordable(recipe: Recipe) -> Recipe:
    draws = bool(recipe.data.regularization_images.count)
    less: dict[str, object] = {"machine.compile": False, "samples.prompts": (), "data.extra_resolutions": ()}
    for option, most in AFFORDABLE.items():
        value: Any = recipe
        for name in option.split("."):
            value = getattr(value, name)
        if value is not None and value > most and (draws or "images" not in option):
            less[option] = most
    return changed(recipe, less)


def run(
    folder: Path, base: dict[str, Any], numbers: range, *, steps: int
) -> tuple[dict[str, int], list[str]]:
    """How many were refused, accepted and had a first step, of which `steps` are tried; what went wrong."""
    counts, crashes = {"refused": 0, "accepted": 0, "stepped": 0}, []
    path = folder / "recipe.toml"
    warnings.simplefilter("ignore", RenamedOption)
    for number in numbers:
        draw, began = random.Random(number), time.monotonic()
        content, changes = written(base, draw)
        path.write_bytes(content)
        with tried(f"{number}: {changes}", counts, crashes, is_said=_is_said), suppress(FirstStep):
            recipe = load_recipe(path, changes=changes)
            again = path.with_name("again.toml")
            again.write_text(to_toml(recipe), "utf-8") if not name_faults(recipe) else None
            of_run = recipe.model_copy(update={"sweep": SweepConfig()})  # which is about other runs
            if again.is_file() and load_recipe(again) != of_run:
                crashes.append(f"{number}: written down it is another recipe")
            again.unlink(missing_ok=True)
            counts["accepted"] += 1
            if counts["stepped"] < steps:
                counts["stepped"] += 1
                train(affordable(recipe), folder / f"run{number}", on_event=stop_after_a_step)
        if time.monotonic() - began > STEP_SECONDS:
            crashes.append(f"{number}: {changes} took {time.monotonic() - began:.0f} s")
    return counts, crashes


def _is_said(text: str) -> bool:
    lines = text.splitlines()
    return 0 < len(lines) < 60 and all(len(line) < 1700 for line in lines) and "Traceback" not in text
