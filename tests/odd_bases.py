"""Diffusers folders with one thing wrong in a configuration, from a seed, and what is made of them."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import torch
from tiny import POCKET_FOLDER
from trying import in_one_line, tried

from lora_studio.families.base import ModelFamily
from lora_studio.families.loading import load_base
from lora_studio.objectives.base import ObjectiveOptions

PARTS = ("unet", "vae", "text_encoder", "scheduler", "tokenizer")
NUMBERS = (0, 1, -1, 2, 3, 5, 7, 1e-30, 0.5, 100, 10**4, 10**9, 2**63, 10**30, 1e300, True, False)
OTHERS: tuple[Any, ...] = (
    None,
    "",
    "x",
    "nothing",
    "\ud800",
    [],
    {},
    [[]],
    {"a": 1},
    float("nan"),
    float("inf"),
)
LISTS: tuple[Any, ...] = (
    [1, 1],
    [48, 64, 96, 96],
    [10**9],
    ["x"],
    [48] * 3000,
    [None],
    [[10**9]],
    "UpBlock2D",
)


def configuration_of(folder: Path, part: str) -> Path:
    (path,) = (folder / part).glob("*config.json")
    return path


def changed(text: str, draw: random.Random) -> str:
    """A configuration with one thing wrong in its text or in a value."""
    values = json.loads(text)
    key = draw.choice(list(values))
    what = draw.randrange(10)
    if what == 0:
        return text[: draw.randrange(len(text))]
    if what == 1:
        place = draw.randrange(len(text))
        return text[:place] + draw.choice(('"', "{", "[", ",", "0", "\0", "é")) + text[place + 1 :]
    if what == 2:
        deep = draw.choice((20, 2000, 100_000))
        return text.replace("{", '{"x":' + "[" * deep + "]" * deep + ",", 1)
    if what == 3:
        del values[key]
    elif what == 4:
        values[draw.choice(("num_class_embeds", "time_embedding_dim", "encoder_hid_dim", "x"))] = draw.choice(
            NUMBERS
        )
    elif isinstance(values[key], int | float) and what < 8:
        values[key] = draw.choice((*NUMBERS, values[key] + 1, values[key] * 2, -values[key], [values[key]]))
    elif isinstance(values[key], list) and what < 8:
        values[key] = draw.choice((*LISTS, values[key][1:], values[key][::-1], values[key] * 2))
    else:
        values[key] = draw.choice((*NUMBERS, *OTHERS, *LISTS))
    return json.dumps(values)


def use(family: ModelFamily) -> bool:
    """Whether what a run first asks of a base is finite."""
    side = family.native_side
    assert side % family.stride == 0 and family.stride >= 1
    family.objective(ObjectiveOptions())
    with torch.no_grad():
        text = family.encode_text(["a robot", "x " * 100])
        mean, deviation = family.encode_image(torch.zeros(1, 3, side, side))
        probe = family.probe_inputs()
        prediction = family.denoise(probe.latents, probe.timestep, text, probe.geometry)
    tensors = [mean, deviation, prediction, family.schedule.alphas]  # type: ignore[attr-defined]
    assert all(one.isfinite().all() for one in tensors)
    return bool(mean.any() and prediction.any())


def run(folder: Path, numbers: range) -> tuple[dict[str, int], list[str]]:
    """How many were used and refused, and what went wrong otherwise."""
    base, counts, crashes = folder / "base", {"used": 0, "refused": 0}, []
    shutil.copytree(POCKET_FOLDER, base, ignore=shutil.ignore_patterns("image_encoder"), dirs_exist_ok=True)
    for number in numbers:
        draw = random.Random(number)
        path = draw.choice([configuration_of(base, part) for part in PARTS] + [base / "model_index.json"])
        whole = path.read_text("utf-8")
        path.write_text(changed(whole, draw), "utf-8", errors="surrogatepass")
        label = f"{number}: {path.parent.name}"
        with tried(label, counts, crashes, is_said=in_one_line(500)):
            assert use(load_base(str(base)))
            counts["used"] += 1
        path.write_text(whole, "utf-8")
    return counts, crashes
