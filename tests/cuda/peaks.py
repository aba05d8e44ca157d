"""What a run of a published base takes on a GPU: the peak of every phase, as JSON.

From the project's root: python tests/cuda/peaks.py SDXL --checkpointing --prompts 4
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple
from unittest.mock import patch

import stub
from PIL import Image

from lora_studio.evaluate import validation
from lora_studio.recipe import Recipe
from lora_studio.recipe.load import recipe_from


class Published(NamedTuple):
    model: str
    side: int  # pixels


BASES = {
    "SD1.5": Published("stable-diffusion-v1-5/stable-diffusion-v1-5", 512),
    "SDXL": Published("stabilityai/stable-diffusion-xl-base-1.0", 1024),
}
INSIDE = "LORA_STUDIO_PRETENDS"  # in the environment of the process in which a GPU is pretended


def recipe_of(base: str, folder: Path, *, checkpointing: bool = False, prompts: int = 1) -> Recipe:
    """bfloat16, rank 16, one image at a time; with its images."""
    images, (model, side) = folder / "images", BASES[base]
    images.mkdir()
    for number in range(3):
        name = images / f"{number}.png"
        Image.effect_noise((side, side), 40 + number).convert("RGB").save(name, compress_level=1)
        name.with_suffix(".txt").write_text(f"number {number}, zwx style", "utf-8")
    values: dict[str, Any] = {
        "name": "published",
        "base": {"model": model, "dtype": "bfloat16"},
        "data": {"images": str(images), "trigger": "zwx style", "resolution": side},
        "adapter": {"rank": 16, "alpha": 16},
        "training": {"steps": 2, "batch_size": 1, "warmup_steps": 1},
        "validation": {"count": 1},
        "samples": {"prompts": ["a"] * prompts, "steps": 1},
        "machine": {"device": "cuda", "gradient_checkpointing": checkpointing},
    }
    return recipe_from(values, folder=folder)


def outcome_of(arguments: Sequence[str]) -> dict[str, Any]:
    """Of `main` with these arguments, in a process in which a GPU can be pretended."""
    with TemporaryDirectory() as folder:
        library = stub.build(Path(folder))
        environment = {INSIDE: "1"}
        process = stub.start(library, Path(__file__).name, arguments, Path(folder) / "cache", environment)
        printed, said = process.communicate()
        if process.returncode:
            raise RuntimeError(said[-3000:])
        found: dict[str, Any] = json.loads(printed.splitlines()[-1])
        return found


def main(given: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("base", choices=BASES)
    parser.add_argument("--checkpointing", action="store_true")
    parser.add_argument("--prompts", type=int, default=1)
    wanted = parser.parse_args(given)
    if not os.environ.get(INSIDE):
        outcome = outcome_of(given)
        outcome["GiB"] = {name: round(one["peak"] / 2**30, 2) for name, one in outcome["phases"].items()}
        print(json.dumps(outcome, indent=1))
        return
    from drive import drive

    # one timestep is measured at a time, and all take as much
    with TemporaryDirectory() as folder, patch.object(validation, "TIMESTEPS", 1):
        options = {"checkpointing": wanted.checkpointing, "prompts": wanted.prompts}
        recipe = recipe_of(wanted.base, Path(folder), **options)
        print(json.dumps(asdict(drive(wanted.base, recipe, Path(folder), count_bytes=True))))


if __name__ == "__main__":
    main(sys.argv[1:])
