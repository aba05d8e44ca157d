"""LoRA files of transformer families with a thing or two wrong, from a seed; as `lora_mutator` has them."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import torch
from fuzzing import damaged
from lora_mutator import EXTRAS, KINDS, Tensors, Verbs, _key_twice, _saved, changed, try_calls
from safetensors.torch import save_file

QKV, LINEAR1 = (192, 64), (448, 64)
LAYERS: dict[str, dict[str, tuple[int, int]]] = {
    "fused": {
        **{"double_blocks.0.img_attn.qkv": QKV, "double_blocks.0.txt_attn.proj": (64, 64)},
        **{"single_blocks.0.linear1": LINEAR1, "single_blocks.3.linear2": (64, 320)},
    },
    "single": {
        **{f"transformer_blocks.0.attn.to_{one}": (64, 64) for one in "qkv"},
        **{
            "single_transformer_blocks.0.proj_mlp": (256, 64),
            "single_transformer_blocks.0.attn.to_q": (64, 64),
        },
    },
    "another family, fused": {
        "joint_blocks.0.x_block.attn.qkv": QKV,
        "joint_blocks.0.x_block.mlp.fc1": (256, 64),
    },
    "a third one": {
        **{f"layers.0.attention.to_{one}": (64, 64) for one in "qkv"},
        "layers.0.feed_forward.w1": (160, 64),
    },
    "a third one, fused": {"layers.0.attention.qkv": QKV, "noise_refiner.0.attention.out": (64, 64)},
}
PREFIXES = (
    "lora_unet_",
    "diffusion_model.",
    "transformer.",
    "lycoris_",
    "",
    "base_model.model.",
    "lora_transformer_",
)
LETTERS = {"lora_down.weight": "lora_A.weight", "lora_up.weight": "lora_B.weight"}
STRANGE = (
    *("lora_unet_double_blocks_0_img_attn_qkv", "diffusion_model.single_blocks.0.linear1"),
    *("transformer.transformer_blocks.0.attn.to_q", "lora_unet_single_blocks_99999999999999999999_linear1"),
    *("transformer.", "diffusion_model.double_blocks..img_attn.qkv", "lycoris_layers_0_attention_qkv", "#"),
)


def whole_file(layers: str, prefix: str, kind: str, *, lettered: bool) -> Tensors:
    """All of its layers of a kind."""
    torch.manual_seed(0)
    tensors = {}
    for path, shape in LAYERS[layers].items():
        stem = prefix + (path.replace(".", "_") if prefix.endswith("_") else path)
        for end, one in KINDS[kind](shape).items():
            tensors[f"{stem}.{LETTERS.get(end, end) if lettered else end}"] = one
    return tensors


def mutated(draw: random.Random) -> tuple[str, str, bytes]:
    """Whose layers, a label, and the file."""
    layers, prefix = draw.choice(list(LAYERS)), draw.choice(PREFIXES)
    kind = draw.choice(list(KINDS)) if draw.random() < 0.5 else "lora"
    extra, lettered = draw.choice(list(EXTRAS)), draw.random() < 0.5
    metadata = {"ss_base_model_version": draw.choice(("flux1", "sd3_m", "", "z_image", "chroma"))}
    tensors = whole_file(layers, prefix, kind, lettered=lettered)
    if extra != "twice":
        tensors = EXTRAS[extra](tensors, metadata, kind)
    said = [layers, prefix, kind, extra, str(lettered)]
    if draw.random() < 0.2:
        key = draw.choice(list(tensors))
        tensors[f"{draw.choice(STRANGE)}.{key.rpartition('.')[2]}"] = tensors[key]
    if draw.random() < 0.8:
        said += [changed(tensors, metadata, draw) for _ in range(draw.choice((1, 1, 2)))]
        return layers, ", ".join(said), _saved(tensors, metadata)
    content = _saved(tensors, metadata)
    if draw.random() < 0.2:
        return layers, ", ".join([*said, "a key twice"]), _key_twice(content, draw)
    return layers, ", ".join([*said, "its header"]), damaged(content, draw)


def calls_of(verbs: Verbs) -> Iterator[object]:
    yield from (verbs.verify, verbs.inspect, verbs.convert, verbs.convert_to_diffusers)
    yield from (verbs.resize, verbs.combine, verbs.compare)


def run(folder: Path, numbers: range) -> tuple[dict[str, int], list[str]]:
    """How many calls used a file and refused it, and what went wrong otherwise."""
    counts, crashes, verbs = {"used": 0, "refused": 0}, [], Verbs(folder)
    for number in numbers:
        layers, what, content = mutated(random.Random(number))
        verbs.path.write_bytes(content)
        save_file(
            whole_file(
                layers, "transformer." if "single" in layers else "lora_unet_", "lora", lettered=False
            ),
            verbs.good,
        )
        try_calls(calls_of(verbs), f"{number} ({what})", counts, crashes)
        verbs.out.unlink(missing_ok=True)
    return counts, crashes
