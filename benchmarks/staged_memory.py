"""How much main memory a base takes that is read in stages: its text encoder, its VAE, its transformer.

`python benchmarks/staged_memory.py` makes a scaled-down twin of a rectified-flow transformer, 0.34 billion
random numbers in the transformer and as many in its text encoder, in bfloat16 files and in float16 ones (2 GB
of disk at a time, in a temporary folder). On each it trains a LoRA of rank 4 for two steps at 128 pixels on
the CPU in bfloat16, with previews, and takes the process's peak from the kernel. A base of a few million
numbers tells what Python, torch and the run itself take: what is above that is the base. From the bfloat16
files the text encoder is pages of the file, which no cast copies; of the float16 ones all is copied.
The result is benchmarks/results/staged_memory.json, beside what the plan says.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch
from diffusers import AutoencoderKL, ZImagePipeline, ZImageTransformer2DModel
from figures import Criterion, at_least, at_most, criteria_table, machine, write_json
from main_memory import write_images
from transformers import Qwen2Tokenizer, Qwen3Config, Qwen3Model
from watched import COMMAND_OUTPUT, run_command

from lora_studio.families.stored import MAPPED_BYTES
from lora_studio.pocket.stages import configuration
from lora_studio.pocket.stages.text import new_tokenizer
from lora_studio.pocket.stages.transformer import new_flow_scheduler

RESULTS = Path(__file__).parent / "results" / "staged_memory.json"
SIDE, STEPS = 128, 2
CARD = "RTX 4090"
RECIPE = """name = "memory"
base = {{ model = "{base}", dtype = "bfloat16" }}
data = {{ images = "{images}", trigger = "zwx style", resolution = {side} }}
adapter = {{ rank = 4, alpha = 4 }}
training = {{ steps = {steps}, batch_size = 1, warmup_steps = 1 }}
validation = {{ count = 1 }}
samples = {{ prompts = ["zwx style, number 7"], steps = 2, guidance = 2 }}
machine = {{ device = "cpu" }}
"""


class Sizes(NamedTuple):
    """Of a twin: the transformer's own, its blocks, and those of its text encoder."""

    width: int
    blocks: int
    text: dict[str, int]


LARGE = Sizes(
    1280, 12, {"hidden_size": 1280, "intermediate_size": 3840, "num_hidden_layers": 17, "head_dim": 128}
)
SMALL = Sizes(256, 2, {"hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 3, "head_dim": 32})
HEAD = 128  # channels of one of the transformer's


def write_twin(folder: Path, sizes: Sizes, dtype: torch.dtype) -> dict[str, int]:
    """A folder that diffusers loads; returns the numbers that each part has."""
    tokenizer = new_tokenizer(folder.with_name("tokenizer"))
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)  # so that this process stays small, too
    try:
        encoder, transformer = _text_encoder(sizes, tokenizer), _transformer(sizes)
    finally:
        torch.set_default_dtype(default)
    vae = AutoencoderKL(**configuration("flow_vae"))
    parts: dict[str, Any] = {"text_encoder": encoder.to(dtype), "transformer": transformer.to(dtype)}
    pipeline = ZImagePipeline(scheduler=new_flow_scheduler(), vae=vae.to(dtype), tokenizer=tokenizer, **parts)
    pipeline.save_pretrained(folder)
    return {name: sum(one.numel() for one in part.parameters()) for name, part in parts.items()}


def _text_encoder(sizes: Sizes, tokenizer: Qwen2Tokenizer) -> Qwen3Model:
    heads = sizes.text["hidden_size"] // sizes.text["head_dim"]
    numbers = {"num_attention_heads": heads, "num_key_value_heads": heads // 2, "bos_token_id": None}
    numbers |= {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    return Qwen3Model(
        Qwen3Config(vocab_size=len(tokenizer), max_position_embeddings=512, **numbers, **sizes.text)
    )


def _transformer(sizes: Sizes) -> ZImageTransformer2DModel:
    heads = sizes.width // HEAD
    return ZImageTransformer2DModel(
        in_channels=16,
        dim=sizes.width,
        n_layers=sizes.blocks,
        n_refiner_layers=2,
        n_heads=heads,
        n_kv_heads=heads,
        cap_feat_dim=sizes.text["hidden_size"],
        axes_dims=[32, 48, 48],
        axes_lens=[1024, 64, 64],
    )


def measure(folder: Path, sizes: Sizes, dtype: torch.dtype) -> dict[str, Any]:
    """Peaks of `train` and `plan` in MB, what the plan states in bytes, and whether the file was verified."""
    folder.mkdir()
    os.environ["LORA_STUDIO_CACHE"] = str(folder / "cache")
    began = time.perf_counter()
    numbers = write_twin(folder / "base", sizes, dtype)
    print(f"{folder.name} is written, {time.perf_counter() - began:.0f} s", flush=True)
    recipe, said = folder / "memory.toml", folder / COMMAND_OUTPUT
    values = {"base": folder / "base", "images": write_images(folder, SIDE), "side": SIDE, "steps": STEPS}
    recipe.write_text(RECIPE.format(**values), "utf-8")
    seconds, processor, peak = run_command(
        ["train", str(recipe), "--out", str(folder / "run")], folder, codes=(0,)
    )
    print(f"it is trained, {seconds:.0f} s, {peak:.0f} MB", flush=True)
    verified = json.loads((folder / "run" / "verify.json").read_text("utf-8"))
    os.environ["LORA_STUDIO_CACHE"] = str(folder / "empty")  # else the text encoder's turn would not come
    *_, planning = run_command(["plan", str(recipe), "--json"], folder, codes=(0,))
    memory = json.loads(said.read_text("utf-8"))["memory"]
    run_command(["plan", str(recipe), "--for", CARD, "--json"], folder, codes=(0,))
    with_libraries = json.loads(said.read_text("utf-8"))["main_memory"]
    return {
        "numbers": numbers,
        "seconds": seconds,
        "processor_seconds": processor,
        "peak_mb": peak,
        "peak_of_plan_mb": planning,
        "plan": {"memory": memory, "main_memory": with_libraries},
        "whole": verified["whole"],
        "faults": verified["faults"],
    }


def judge(found: dict[str, dict[str, Any]]) -> list[Criterion]:
    """Of each kind of files what the base takes above a small one, by what plan says and by its sizes."""
    small, made = found["small"], []
    for name in ("bfloat16", "float16"):
        one = found[name]
        transformer, encoder = (one["numbers"][part] for part in ("transformer", "text_encoder"))
        base = (one["peak_mb"] - small["peak_mb"]) * 1e6
        stated = one["plan"]["memory"]["total"] - small["plan"]["memory"]["total"]
        stated += MAPPED_BYTES  # what is mapped of a file at once while parts are read or compared
        planning = (one["peak_of_plan_mb"] - small["peak_of_plan_mb"]) * 1e6
        made += [
            at_most(
                f"{name} files: peak, by what plan --for states",
                one["peak_mb"] * 1e6 / one["plan"]["main_memory"],
                1,
            ),
            at_most(
                f"{name} files: the base's share of it, by what plan states and a window of a file",
                base / stated,
                1.1,
            ),
            at_most(
                f"{name} files: by encoder and transformer together",
                base / (2 * (transformer + encoder)),
                0.8,
            ),
            at_most(f"{name} files: by the transformer in float32", base / (4 * transformer), 0.8),
            at_most(f"{name} files: the same of plan itself, by the same", planning / stated, 1.1),
            at_least(f"{name} files: verified", float(one["whole"] and not one["faults"]), 1),
        ]
    return made


def main() -> None:
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    found: dict[str, dict[str, Any]] = {}
    asked = {
        "small": (SMALL, torch.bfloat16),
        "bfloat16": (LARGE, torch.bfloat16),
        "float16": (LARGE, torch.float16),
    }
    for name, (sizes, dtype) in asked.items():
        with tempfile.TemporaryDirectory() as scratch:
            found[name] = measure(Path(scratch) / name, sizes, dtype)
    criteria = judge(found)
    report = {"machine": machine(), "runs": found, "criteria": [vars(one) for one in criteria]}
    write_json(report, RESULTS)
    print(criteria_table(criteria))


if __name__ == "__main__":
    main()
