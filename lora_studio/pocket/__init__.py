"""The base that ships with the package: what it is good for, and the layers that it has."""

import json
from functools import cache
from pathlib import Path

from lora_studio.tensor_file.header import read_header

WEIGHTS = Path(__file__).resolve().parent / "weights"


@cache
def pocket_note() -> str:
    """What whoever chooses it should know; its size is its configuration's."""
    unet, vae = (json.loads((WEIGHTS / part / "config.json").read_text("utf-8")) for part in ("unet", "vae"))
    side = unet["sample_size"] * 2 ** (len(vae["block_out_channels"]) - 1)
    drawn = f"it draws simple shapes at {side} x {side} pixels; photographs only try the way with it"
    return f"{drawn}: a real base, such as your UI's checkpoint, learns them"


_LEARNING = {"unet": "diffusion_pytorch_model", "text_encoder": "model"}  # parts that LoRA files change


@cache
def layer_shapes() -> dict[tuple[str, str], tuple[int, ...]]:
    """(part, path of diffusers) -> the shape of the weight, of every linear layer and convolution."""
    found = {}
    for part, name in _LEARNING.items():
        for key, one in read_header(WEIGHTS / part / f"{name}.safetensors").entries.items():
            path = key.removesuffix(".weight")
            if path != key and len(one.shape) > 1 and not path.endswith("_embedding"):
                start = "text_model." if part != "unet" and not path.startswith("text_model.") else ""
                found[part, start + path] = one.shape
    return found
