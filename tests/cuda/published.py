"""What a run of a published base takes on a GPU: the peak of every phase, as JSON.

From the project's root: python tests/cuda/published.py SDXL --checkpointing --prompts 4
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from PIL import Image

from lora_studio.recipe import Recipe
from lora_studio.recipe.load import recipe_from

SIDES = {"SD1.5": 512, "SDXL": 1024}
INSIDE = "LORA_STUDIO_PRETENDS"  # in the environment of the process in which a GPU is pretended


def recipe(base: str, images: Path, *, checkpointing: bool = False, prompts: int = 1) -> Recipe:
    """bfloat16, rank 16, one image at a time."""
    side = SIDES[base]
    images.mkdir()
    for number in range(3):
        name = images / f"{number}.png"
        Image.effect_noise((side, side), 40 + number).convert("RGB").save(name, compress_level=1)
        name.with_suffix(".txt").write_text(f"number {number}, zwx style", "utf-8")
    values: dict[str, Any] = {
        "name": "full_size",
        "base": {"model": "none", "dtype": "bfloat16"},
        "data": {"images": str(images), "trigger": "zwx style", "resolution": side},
        "adapter": {"rank": 16, "alpha": 16},
        "training": {"steps": 2, "batch_size": 1, "warmup_steps": 1},
        "validation": {"count": 1},
        "samples": {"prompts": ["a"] * prompts, "steps": 2},
        "machine": {"device": "cuda", "gradient_checkpointing": checkpointing},
    }
    return recipe_from(values, folder=images)


def run(arguments: argparse.Namespace, folder: Path) -> None:
    from drive import drive

    wanted = recipe(
        arguments.base,
        folder / "images",
        checkpointing=arguments.checkpointing,
        prompts=arguments.prompts,
    )
    print(json.dumps(asdict(drive(arguments.base, wanted, folder, count_bytes=True))))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("base", choices=SIDES)
    parser.add_argument("--checkpointing", action="store_true")
    parser.add_argument("--prompts", type=int, default=1)
    arguments = parser.parse_args()
    with TemporaryDirectory() as folder:
        if os.environ.get(INSIDE):
            run(arguments, Path(folder))
            return
        import stub

        os.environ[INSIDE] = "1"
        library = stub.build(Path(folder))
        process = stub.start(library, Path(__file__).name, sys.argv[1:], Path(folder) / "cache")
        printed, said = process.communicate()
        if process.returncode:
            sys.exit(said)
        outcome = json.loads(printed.splitlines()[-1])
        outcome["GiB"] = {name: round(one["peak"] / 2**30, 2) for name, one in outcome["phases"].items()}
        print(json.dumps(outcome, indent=1))


if __name__ == "__main__":
    main()
