"""Runs on a pretended GPU with and without blocks in main memory: a line of JSON for each of `RUNS`."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory

from cases import Case, write_images
from drive import drive

from lora_studio.recipe.load import load_recipe

CHECKPOINTING = "machine.gradient_checkpointing=true"
RUNS: dict[str, tuple[str, ...]] = {
    "all here": (),
    "offloaded": ("machine.offload_blocks=3",),
    "all here, checkpointing": (CHECKPOINTING,),
    "offloaded, checkpointing": ("machine.offload_blocks=3", CHECKPOINTING),
}
BLOCKS = 3  # of Z-Image's miniature: two refiners and a layer

if __name__ == "__main__":
    for name, changes in RUNS.items():
        with TemporaryDirectory() as folder:
            write_images(Path(folder))
            Case("z_image", "lora", "bfloat16", "adamw", ("plain",)).recipe(Path(folder))  # writes it
            path = Path(folder) / "recipe.toml"
            steps = ("training.steps=3", "base.dtype=bfloat16", "machine.device=cuda", *changes)
            outcome = drive("z_image", load_recipe(path, changes=steps), Path(folder), count_bytes=True)
        print(json.dumps({"name": name} | asdict(outcome)), flush=True)
