"""LoRA files of transformer families at published widths, made from lists and not by the exporter."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from published_transformers import reference
from safetensors.torch import load_file, save_file
from torch import Tensor

Factors = dict[str, tuple[Tensor, Tensor]]  # diffusers' path -> down, up with the scale in it


def some_layers(base: str, *, rank: int = 2, blocks: str = "0", layers: str = "", seed: int = 0) -> Factors:
    """Random factors of the layers of these blocks (a regular expression) whose paths match `layers`."""
    draw, found = torch.Generator().manual_seed(seed), {}
    for key, (_, columns) in reference(f"{base}_diffusers").items():
        path = key.removeprefix("transformer.").removesuffix(".lora_A.weight")
        block = re.search(r"\.(\d+)\.", path)
        if path not in key or key.endswith("lora_B.weight") or not re.search(layers, path):
            continue
        if block is None or re.fullmatch(blocks, block[1]):
            rows, _ = reference(f"{base}_diffusers")[f"transformer.{path}.lora_B.weight"]
            down = torch.randn(rank, columns, generator=draw) * 0.1
            found[path] = (down, torch.randn(rows, rank, generator=draw) * 0.1)
    return found


def write_diffusers(path: Path, factors: Mapping[str, tuple[Tensor, Tensor]], **metadata: str) -> Path:
    """As diffusers trains them: no alpha."""
    tensors = {}
    for name, (down, up) in factors.items():
        tensors |= {f"transformer.{name}.lora_A.weight": down, f"transformer.{name}.lora_B.weight": up}
    save_file({key: one.contiguous() for key, one in tensors.items()}, path, metadata=metadata or None)
    return path


def read_peft(tensors: Mapping[str, Tensor]) -> Factors:
    """What diffusers' converters make of a file."""
    found = {}
    for key, down in tensors.items():
        if key.endswith("lora_A.weight"):
            up = tensors[key.replace("lora_A", "lora_B")]
            found[key.removeprefix("transformer.").removesuffix(".lora_A.weight")] = (down, up)
    return found


def assert_same_change(found: Factors, expected: Factors, *, rounding: float = 0.0) -> None:
    """Of `expected`'s layers, and none of others but by nothing. Not multiplied out: seen by a random vector.

    Two matrices that send random vectors to the same places are the same.
    """
    assert found.keys() >= expected.keys(), sorted(expected.keys() - found.keys())[:3]
    draw = torch.Generator().manual_seed(1)
    for path, (down, up) in found.items():
        seen = torch.randn(down.shape[1], 3, generator=draw).double()
        made = up.double() @ (down.double() @ seen)
        if path not in expected:
            assert not made.any(), path
            continue
        wanted = expected[path][1].double() @ (expected[path][0].double() @ seen)
        assert (made - wanted).norm() <= (rounding + 1e-6) * wanted.norm(), path


def keys_and_shapes_of(path: Path) -> dict[str, tuple[int, ...]]:
    return {key: tuple(one.shape) for key, one in load_file(path).items()}
