"""The bases that ship with the package: what they are good for, and the layers that they have."""

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path

from lora_studio.tensor_file.header import read_header

POCKET, POCKET_FLOW = "pocket", "pocket_flow"
WEIGHTS = Path(__file__).resolve().parent / "weights"
FLOW_WEIGHTS = WEIGHTS.with_name("flow_weights")
EMBEDDED = {POCKET: WEIGHTS, POCKET_FLOW: FLOW_WEIGHTS}
"""What recipes call them, and their folders."""


def embedded_base(metadata: Mapping[str, str]) -> str | None:
    """The one that a LoRA file says it was trained on."""
    name = metadata.get("lora_studio.base")
    return name if name in EMBEDDED else None


@cache
def pocket_note(model: str) -> str:
    """What whoever chooses the base of this name should know; its size is its configuration's."""
    vae = json.loads((EMBEDDED[model] / "vae" / "config.json").read_text("utf-8"))
    drawn = (
        f"it draws simple shapes at {vae['sample_size']} x {vae['sample_size']} pixels; photographs only try "
        "the way with it"
    )
    return f"{drawn}: a real base, such as your UI's checkpoint, learns them"


_LEARNING = {  # parts that LoRA files change
    POCKET: {"unet": "diffusion_pytorch_model", "text_encoder": "model"},
    POCKET_FLOW: {"transformer": "diffusion_pytorch_model"},
}


@cache
def layer_shapes(model: str = POCKET) -> dict[tuple[str, str], tuple[int, ...]]:
    """(part, path of diffusers) -> the shape of the weight, of every linear layer and convolution."""
    found = {}
    for part, name in _LEARNING[model].items():
        for key, one in read_header(EMBEDDED[model] / part / f"{name}.safetensors").entries.items():
            path = key.removesuffix(".weight")
            if path != key and len(one.shape) > 1 and not path.endswith("_embedding"):
                start = "text_model." if part == "text_encoder" and not path.startswith("text_model.") else ""
                found[part, start + path] = one.shape
    return found
