"""How much main memory a training of SDXL's size takes, from its start to the verified file.

`python benchmarks/main_memory.py` writes an SDXL base at its published sizes with random weights in float16
(7 GB of disk, in a temporary folder), trains a LoRA of rank 16 on it for two steps at 256 pixels on the CPU,
with the base in bfloat16, and takes the process's peak from the kernel. The result is
benchmarks/results/main_memory.json, beside what the plan says. It takes some ten minutes on two cores.
"""

from __future__ import annotations

import argparse
import gc
import json
import tempfile
import time
from pathlib import Path

import torch
from figures import at_most, criteria_table, machine, write_json
from PIL import Image
from published import published
from watched import run_command

RESULTS = Path(__file__).parent / "results" / "main_memory.json"
MODEL = "stabilityai/stable-diffusion-xl-base-1.0"
NUM_IMAGES, SIDE, STEPS = 4, 256, 2
MOST_GB = 9.5
RECIPE = """name = "memory"
base = {{ model = "{base}", dtype = "bfloat16" }}
data = {{ images = "{images}", trigger = "zwx style", resolution = {side} }}
adapter = {{ rank = 16, alpha = 16 }}
training = {{ steps = {steps}, batch_size = 1, warmup_steps = 1 }}
validation = {{ count = 1 }}
samples = {{ prompts = [] }}
machine = {{ device = "cpu" }}
"""


def write_base(folder: Path) -> None:
    """In diffusers' layout; one part after the other, so that this process stays small."""
    family = published(MODEL, made=())
    index: dict[str, object] = {"_class_name": "StableDiffusionXLPipeline"}
    for name, part in list(family.parts.items()):
        made = published(MODEL, dtype=torch.float16, made=[name]).parts[name]
        made.half().save_pretrained(folder / name)  # type: ignore[operator]
        index[name] = [type(part).__module__.split(".")[0], type(part).__name__]
        del made
        gc.collect()
    for name, tokenizer in family.tokenizers.items():
        tokenizer.save_pretrained(folder / name)
        index[name] = ["transformers", type(tokenizer).__name__]
    scheduler = family.pipeline().scheduler
    scheduler.save_pretrained(folder / "scheduler")
    index["scheduler"] = ["diffusers", type(scheduler).__name__]
    (folder / "model_index.json").write_text(json.dumps(index), "utf-8")


def write_images(folder: Path, side: int) -> Path:
    """A folder of noise with captions, in this one."""
    images = folder / "images"
    images.mkdir()
    for number in range(NUM_IMAGES):
        image = Image.effect_noise((side, side), 40 + number).convert("RGB")
        image.save(images / f"{number}.png")
        (images / f"{number}.txt").write_text(f"number {number}, zwx style", "utf-8")
    return images


def write_recipe(folder: Path) -> Path:
    recipe = folder / "memory.toml"
    values = {"base": folder / "base", "images": write_images(folder, SIDE), "side": SIDE, "steps": STEPS}
    recipe.write_text(RECIPE.format(**values), "utf-8")
    return recipe


def main() -> None:
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        began = time.perf_counter()
        write_base(folder / "base")
        print(f"the base is written, {time.perf_counter() - began:.0f} s", flush=True)
        words = ["train", str(write_recipe(folder)), "--out", str(folder / "run")]
        seconds, processor, peak = run_command(words, folder, codes=(0,))
        verified = json.loads((folder / "run" / "verify.json").read_text("utf-8"))
    criteria = [at_most("peak of main memory, GB", peak / 1000, MOST_GB)]
    report = {
        "machine": machine(),
        "base": f"{MODEL}, random float16 weights",
        "run": {"seconds": seconds, "processor_seconds": processor, "peak_mb": peak},
        "verified": verified,
        "criteria": [vars(one) for one in criteria],
    }
    write_json(report, RESULTS)
    print(criteria_table(criteria))


if __name__ == "__main__":
    main()
