"""Write the lists of the published transformers' layers: `python tests/published_transformers.py KEYS`.

KEYS is a folder of lists, each line a tensor's name, a tab and its shape: `<base>_checkpoint_original.txt`,
and `<base>_<spelling>.txt` of LoRA files as UIs expect them. Of the former, and of diffusers' own models at
published sizes without weights, are made the lists in `families/layer_names/layouts/`: whose name it is, the
name with the numbers of the blocks that have such a layer, and its weight's shape. The latter are written to
`tests/reference/`, with the blocks' numbers as ranges, too.
"""

from __future__ import annotations

import ast
import re
import sys
import warnings
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import diffusers
import torch
from torch import nn

from lora_studio.families import layer_names
from lora_studio.families.layer_names.transformers import layouts

FOLDER = Path(layer_names.__file__).parent / "layouts"
SD3 = {"sample_size": 128, "joint_attention_dim": 4096, "pooled_projection_dim": 2048}
KLEIN = {"num_layers": 5, "num_single_layers": 20, "num_attention_heads": 24, "guidance_embeds": False}
# published base -> its class in diffusers, and what of its configuration is not the class's default
BASES: dict[str, tuple[str, dict[str, Any]]] = {
    "flux1": ("FluxTransformer2DModel", {"guidance_embeds": True}),
    "chroma": ("ChromaTransformer2DModel", {}),
    "flux2_dev": ("Flux2Transformer2DModel", {}),
    "flux2_klein_4b": ("Flux2Transformer2DModel", KLEIN | {"joint_attention_dim": 7680}),
    "flux2_klein_9b": (
        "Flux2Transformer2DModel",
        KLEIN
        | {"num_layers": 8, "num_single_layers": 24, "num_attention_heads": 32, "joint_attention_dim": 12288},
    ),
    "sd3_medium": (
        "SD3Transformer2DModel",
        SD3 | {"num_layers": 24, "num_attention_heads": 24, "caption_projection_dim": 1536},
    ),
    "sd35_medium": (
        "SD3Transformer2DModel",
        SD3
        | {"num_layers": 24, "num_attention_heads": 24, "caption_projection_dim": 1536, "qk_norm": "rms_norm"}
        | {"dual_attention_layers": tuple(range(13)), "pos_embed_max_size": 384},
    ),
    "sd35_large": (
        "SD3Transformer2DModel",
        SD3
        | {"num_layers": 38, "num_attention_heads": 38, "caption_projection_dim": 2432}
        | {"qk_norm": "rms_norm", "pos_embed_max_size": 192},
    ),
    "z_image": ("ZImageTransformer2DModel", {}),
    "qwen_image": ("QwenImageTransformer2DModel", {}),
    "krea2": ("Krea2Transformer2DModel", {}),
    "lumina2": ("Lumina2Transformer2DModel", {"cap_feat_dim": 2304}),
    "anima": (
        "CosmosTransformer3DModel",
        {"num_attention_heads": 16, "extra_pos_embed_type": None, "rope_scale": (1.0, 4.0, 4.0)},
    ),
}
_BLOCK = re.compile(r"(?<![^._])\d+(?![^._])")
REFERENCE = Path(__file__).parent / "reference"
_RANGE = re.compile(r"\[(\d+)-(\d+)\]")


@cache
def published(base: str) -> nn.Module:
    """At its published size, without weights."""
    kind, configuration = BASES[base]
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # diffusers warns of itself
        return getattr(diffusers, kind)(**configuration)


def linear_shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {
        path: tuple(one.weight.shape) for path, one in model.named_modules() if isinstance(one, nn.Linear)
    }


@cache
def listed(base: str) -> dict[str, dict[str, tuple[int, ...]]]:
    """As the package has it: whose -> path -> the weight's shape."""
    found: dict[str, dict[str, tuple[int, ...]]] = {"diffusers": {}, "original": {}}
    (text,) = (layout.published[base][1] for layout in layouts().values() if base in layout.published)
    for line in text.splitlines():
        whose, name, *shape = line.split(" ")
        found[whose] |= {path: tuple(map(int, shape)) for path in expanded(name)}
    return found


def original_shapes(keys: Path, base: str) -> dict[str, tuple[int, ...]]:
    """Of the weights that are matrices."""
    lines = (keys / f"{base}_checkpoint_original.txt").read_text("utf-8").splitlines()
    tensors = {name: ast.literal_eval(shape) for name, _, shape in (line.partition("\t") for line in lines)}
    return {
        name.removesuffix(".weight"): shape
        for name, shape in tensors.items()
        if name.endswith(".weight") and len(shape) == 2
    }


def lines_of(whose: str, shapes: Mapping[str, tuple[int, ...]]) -> Iterator[str]:
    """With the blocks of one shape as a range."""
    blocks: dict[tuple[str, tuple[int, ...]], list[int]] = {}
    for path, shape in shapes.items():
        found = _BLOCK.search(path)
        pattern = path if found is None else f"{path[: found.start()]}#{path[found.end() :]}"
        blocks.setdefault((pattern, shape), []).append(int(found[0]) if found else 0)
    for (pattern, shape), numbers in blocks.items():
        for first, last in _ranges(sorted(numbers)):
            path = pattern.replace("#", f"[{first}-{last}]" if last > first else str(first))
            yield f"{whose} {path} {' '.join(map(str, shape))}".strip()


def _ranges(numbers: list[int]) -> Iterator[tuple[int, int]]:
    first = last = numbers[0]
    for number in numbers[1:]:
        if number != last + 1:
            yield first, last
            first = number
        last = number
    yield first, last


@cache
def reference(spelling: str) -> dict[str, tuple[int, ...]]:
    """Every key of a full LoRA file of a base in a spelling at rank 4, `<base>_<spelling>`, and its shape."""
    found = {}
    for line in (REFERENCE / f"{spelling}.txt").read_text("utf-8").splitlines():
        _, name, *shape = line.split(" ")
        for key in expanded(name):
            found[key] = tuple(map(int, shape))
    return found


def expanded(name: str) -> list[str]:
    """`a.[0-2].b` -> `a.0.b`, `a.1.b`, `a.2.b`."""
    found = _RANGE.search(name)
    if found is None:
        return [name]
    numbers = range(int(found[1]), int(found[2]) + 1)
    return [f"{name[: found.start()]}{number}{name[found.end() :]}" for number in numbers]


def _write_references(keys: Path) -> None:
    for name in BASES:
        for path in sorted(keys.glob(f"{name}_*.txt")):
            if "checkpoint" not in path.name:
                pairs = (line.partition("\t")[::2] for line in path.read_text("utf-8").splitlines())
                lines = lines_of("lora", {key: ast.literal_eval(shape) for key, shape in pairs})
                (REFERENCE / path.name).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


if __name__ == "__main__":
    _write_references(Path(sys.argv[1]))
    for name in BASES:
        lists = {
            "diffusers": linear_shapes(published(name)),
            "original": original_shapes(Path(sys.argv[1]), name),
        }
        lines = [f"{line}\n" for whose, shapes in lists.items() for line in lines_of(whose, shapes)]
        for path in FOLDER.glob("*.toml"):
            start = rf'(\[published\.{name}\]\ntitle = .*\nlayers = """\n)[^"]*'
            text = re.sub(start, rf"\g<1>{''.join(lines)}", path.read_text("utf-8"))
            path.write_text(text, encoding="utf-8")
