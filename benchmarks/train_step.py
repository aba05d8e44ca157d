"""A training step of ours, of the loop that public example scripts have, and the floor under both.

`python benchmarks/train_step.py` trains the pocket base and a model of SD1.5's shape with random weights on
the CPU. The three sides have the same base, images, batch, precision and threads, and take steps in turns,
so that whatever else the machine does hits all of them. Before that each of the two trainers starts in a
process of its own: from command to the end of the first step, and peak memory. The result is
benchmarks/results/train_step.json.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from figures import Criterion, at_least, at_most, criteria_table, machine, table, write_json
from step_arms import floor, our_session, ours, plain, recipe
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from lora_studio.families.loading import POCKET_FOLDER
from lora_studio.pocket.scenes import draw, sample_scene
from lora_studio.quiet import quiet_libraries

RESULTS = Path(__file__).parent / "results" / "train_step.json"
NUM_IMAGES = 16


@dataclass(frozen=True)
class Size:
    """A model and what it is trained on."""

    name: str
    resolution: int  # pixels
    batch_size: int
    warm_up: int  # steps of each side that are not counted
    steps: int  # of each side that are counted, taken in turns


SIZES = {
    "pocket": Size("pocket", resolution=64, batch_size=8, warm_up=5, steps=120),
    "full": Size("full", resolution=256, batch_size=1, warm_up=2, steps=16),
}


def draw_images(folder: Path, side: int) -> Path:
    """Square images with captions."""
    folder.mkdir(parents=True)
    for number in range(NUM_IMAGES):
        scene = sample_scene(number)
        draw(scene, side, side).save(folder / f"{number:02}.png")
        (folder / f"{number:02}.txt").write_text(scene.caption(), "utf-8")
    return folder


def full_size(folder: Path) -> str:
    """A diffusers folder with SD1.5's networks, with random weights and the pocket tokenizer's words."""
    torch.manual_seed(0)
    tokenizer = CLIPTokenizer.from_pretrained(POCKET_FOLDER / "tokenizer", model_max_length=77)
    text = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=768,
        intermediate_size=3072,
        num_hidden_layers=12,
        num_attention_heads=12,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(128, 256, 512, 512),
        layers_per_block=2,
        sample_size=512,
    )
    StableDiffusionPipeline(
        vae=vae,
        text_encoder=CLIPTextModel(text),
        tokenizer=tokenizer,
        unet=UNet2DConditionModel(sample_size=64, cross_attention_dim=768, attention_head_dim=8),
        scheduler=DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear"),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)
    return str(folder)


def in_turns(size: Size, base: str, images: Path, scratch: Path) -> dict[str, object]:
    """Seconds of each step of the three sides, and their ratios step by step."""
    wishes = {"resolution": size.resolution, "batch_size": size.batch_size}
    session = our_session(recipe(images, base, **wishes), scratch)
    other = plain(images, base, **wishes)
    sides = {"ours": ours(session), "plain": other.step, "floor": floor(session, base)}
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(size.warm_up + size.steps):
        for name, step in sides.items():
            began = time.perf_counter()
            step()
            if number >= size.warm_up:
                seconds[name].append(time.perf_counter() - began)
    session.run.close()
    faster = [p / o for p, o in zip(seconds["plain"], seconds["ours"], strict=True)]
    above = [o / f for o, f in zip(seconds["ours"], seconds["floor"], strict=True)]
    return {
        "seconds": {name: round(median(values), 4) for name, values in seconds.items()},
        "times_the_plain_loop": round(median(faster), 3),
        "of_the_floor": round(median(above), 3),
        "quarters": {name: _quarters(values) for name, values in (("plain", faster), ("floor", above))},
        "trained_numbers": session.adapters.num_parameters,
        "plain_trained_numbers": other.trained_numbers,
        "steps": size.steps,
    }


def _quarters(values: list[float]) -> list[float]:
    """The first and the third quartile."""
    ordered = sorted(values)
    return [round(ordered[len(ordered) // 4], 3), round(ordered[3 * len(ordered) // 4], 3)]


def start_alone(side: str, size: Size, base: str, images: Path, scratch: Path) -> dict[str, float]:
    """From command to the end of the first step, and the peak of main memory, in a process of its own."""
    began = time.time()
    command = [sys.executable, __file__, "--side", side, "--size", size.name, "--base", base]
    command += ["--images", str(images), "--scratch", str(scratch)]
    answer = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    ended, peak_bytes = json.loads(answer.splitlines()[-1])
    return {"seconds_to_first_step": round(ended - began, 1), "peak_gib": round(peak_bytes / 2**30, 2)}


def one_step(side: str, size: Size, base: str, images: Path, scratch: Path) -> None:
    """What a process started by `start_alone` does."""
    wishes = {"resolution": size.resolution, "batch_size": size.batch_size}
    if side == "ours":
        session = our_session(recipe(images, base, **wishes), scratch)
        ours(session)()
        session.run.close()
    else:
        plain(images, base, **wishes).step()
    status = Path("/proc/self/status").read_text("ascii")
    peak = re.search(r"VmHWM:\s+(\d+)", status)
    assert peak is not None, "this needs Linux"
    print(json.dumps([time.time(), int(peak[1]) * 1024]))


def measure(size: Size, scratch: Path) -> dict[str, object]:
    """Everything about one model; what each side starts with is not there yet, then it is."""
    os.environ["LORA_STUDIO_CACHE"] = str(scratch / "cache")
    images = draw_images(scratch / "images", size.resolution)
    base = "pocket" if size.name == "pocket" else full_size(scratch / "base")
    alone = {
        "ours, no caches": start_alone("ours", size, base, images, scratch / "first"),
        "ours, from caches": start_alone("ours", size, base, images, scratch / "second"),
        "plain": start_alone("plain", size, base, images, scratch),
    }
    found = in_turns(size, base, images, scratch / "turns")
    return {"resolution": size.resolution, "batch_size": size.batch_size} | found | {"alone": alone}


def criteria(results: dict[str, dict[str, object]]) -> list[Criterion]:
    """What the project demands of itself."""
    found = []
    for name, result in results.items():
        faster, above = float(str(result["times_the_plain_loop"])), float(str(result["of_the_floor"]))
        found += [
            at_least(f"{name}: times the plain loop", faster, 1.7),
            at_most(f"{name}: of the floor's time", above, 1.12 if name == "pocket" else 1.03),
        ]
    return found


def main() -> None:
    """Measure, print and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=[*SIZES])
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--side", choices=("ours", "plain"), help=argparse.SUPPRESS)
    for name in ("--size", "--base", "--images", "--scratch"):
        parser.add_argument(name, help=argparse.SUPPRESS)
    options = parser.parse_args()
    quiet_libraries()
    if options.side:
        places = (Path(options.images), Path(options.scratch))
        one_step(options.side, SIZES[options.size], options.base, *places)
        return
    results = {}
    for name in options.sizes:
        with tempfile.TemporaryDirectory() as scratch:
            results[name] = measure(SIZES[name], Path(scratch))
        print(json.dumps({name: results[name]}), flush=True)
    found = criteria(results)
    facts = machine() | {"threads": torch.get_num_threads()}
    write_json(results | {"criteria": [vars(one) for one in found], "machine": facts}, options.out)
    print(criteria_table(found))
    rows = [(name, *dict(result["seconds"]).values()) for name, result in results.items()]  # type: ignore[call-overload]
    print(table(("model", "ours s", "plain s", "floor s"), rows))
    sys.exit(0 if all(one.passed for one in found) else 1)


if __name__ == "__main__":
    main()
