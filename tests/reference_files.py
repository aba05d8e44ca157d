"""LoRA files of full-size bases, made from the lists of what UIs expect and not by the exporter."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

REFERENCE = Path(__file__).parent / "reference"
LISTS = {"SD1": "sd15_linear", "SD2": "sd2_linear", "SDXL": "sdxl_conv"}
VERSIONS = {"SD1": "sd_v1", "SD2": "sd_v2", "SDXL": "sdxl_base_v1-0"}


@cache
def keys_and_shapes(base: str) -> dict[str, tuple[int, ...]]:
    """Every key of a full file of a base, or of a list, and the shape of its tensor, at rank 4."""
    lines = (REFERENCE / f"{LISTS.get(base, base)}.txt").read_text("utf-8").splitlines()
    return {key: ast.literal_eval(shape) for key, _, shape in (line.partition("\t") for line in lines)}


def reference_tensors(base: str, *, layers: str = "") -> dict[str, Tensor]:
    """Random tensors of rank 1 in float16 for the layers whose names hold `layers`; alpha is 0.5."""
    draw = torch.Generator().manual_seed(0)
    found = {}
    for key, shape in keys_and_shapes(base).items():
        if layers not in key:
            continue
        if key.endswith("alpha"):
            found[key] = torch.tensor(0.5)
            continue
        size = list(shape)
        size["lora_up" in key] = 1
        found[key] = torch.randn(size, generator=draw).half()
    return found


def metadata(base: str) -> dict[str, str]:
    """The least that says what it is for."""
    return {"ss_base_model_version": VERSIONS[base]}
