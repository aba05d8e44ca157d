"""Files of full-size bases in other spellings and of other kinds, from what UIs expect, and looked at."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import torch
from reference_files import metadata, reference_tensors
from safetensors.torch import save_file
from torch import Tensor

from lora_studio.verify import VerifyReport, verify

Tensors = dict[str, Tensor]
LETTERS = {"completely": "c", "partly": "p", "not at all": "n", "not known": "?"}
FIRST = {
    "SD1": "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k",
    "SD2": "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k",
    "SDXL": "lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_k",
}


def only(base: str, *parts: str) -> Tensors:
    return {key: one for part in parts for key, one in reference_tensors(base, layers=part).items()}


def small(base: str) -> Tensors:
    """A few layers of the UNet and each text encoder."""
    encoders = ("lora_te_", "lora_te1_", "lora_te2_")
    blocks = ("_1_attentions_0_", "input_blocks_4_1_")
    return only(base, *(f"{one}text_model_encoder_layers_1_" for one in encoders), *blocks, FIRST[base])


def renamed(tensors: Tensors, old: str, new: str) -> Tensors:
    return {re.sub(old, new, key): one for key, one in tensors.items()}


def without(tensors: Tensors, *endings: str) -> Tensors:
    return {key: one for key, one in tensors.items() if not key.endswith(endings)}


def each(tensors: Tensors, ending: str, change: Callable[[Tensor], Tensor]) -> Tensors:
    return {key: change(one) if key.endswith(ending) else one for key, one in tensors.items()}


def as_peft(tensors: Tensors) -> Tensors:
    """UNet layers by diffusers' paths, so far as the underscores can be told from dots."""
    found = {}
    for key, one in without(tensors, "alpha").items():
        if not key.startswith("lora_unet_"):
            continue
        name, _, end = key.removeprefix("lora_unet_").partition(".")
        path = re.sub(r"_(?=\d|attentions|transformer|attn|to_[qkv]|ff|net|proj(?!_))", ".", name)
        path = re.sub(r"(?<=\d)_", ".", path).replace("proj.in", "proj_in").replace("proj.out", "proj_out")
        letter = "lora_A" if "down" in end else "lora_B"
        found[f"unet.{path}.{letter}.weight"] = one
    return found


def other_names(tensors: Tensors, base: str) -> Tensors:
    """The UNet's layers by the spelling that is not the base's own: by the lists, shape for shape."""
    pairs = {"lora_unet_down_blocks_1_attentions_0": "lora_unet_input_blocks_4_1"}
    pairs |= {"lora_unet_up_blocks_1_attentions_0": "lora_unet_output_blocks_3_1"}
    pairs |= {"lora_unet_down_blocks_0_attentions_0": "lora_unet_input_blocks_1_1"}
    if base == "SDXL":
        pairs = {"lora_unet_down_blocks_1_attentions_0": "lora_unet_input_blocks_4_1"}
        pairs |= {"lora_unet_up_blocks_0_upsamplers_0_conv": "lora_unet_output_blocks_2_2_conv"}
        pairs = {original: diffusers for diffusers, original in pairs.items()}
    for old, new in pairs.items():
        tensors = renamed(tensors, f"^{old}(?=[_.])", new)
    return tensors


def as_loha(tensors: Tensors) -> Tensors:
    names = {key.partition(".")[0] for key in tensors}
    found = {}
    for name in names:
        down, up = (tensors[f"{name}.lora_{end}.weight"].flatten(1) for end in ("down", "up"))
        for number in (1, 2):
            found |= {f"{name}.hada_w{number}_a": up.clone(), f"{name}.hada_w{number}_b": down.clone()}
        found[f"{name}.alpha"] = tensors[f"{name}.alpha"]
    return found


def as_lokr(tensors: Tensors) -> Tensors:
    names = {key.partition(".")[0] for key in tensors}
    found = {}
    for name in names:
        down, up = (tensors[f"{name}.lora_{end}.weight"].flatten(1) for end in ("down", "up"))
        found |= {f"{name}.lokr_w1": torch.ones(2, 2), f"{name}.alpha": tensors[f"{name}.alpha"]}
        found |= {f"{name}.lokr_w2_a": up[::2].clone(), f"{name}.lokr_w2_b": down[:, ::2].clone()}
    return found


def with_dora(tensors: Tensors, *, outputs: bool) -> Tensors:
    found = dict(tensors)
    for key, one in tensors.items():
        name, _, end = key.partition(".")
        if end == ("lora_up.weight" if outputs else "lora_down.weight"):
            size = (one.shape[0], 1) if outputs else (1, one.shape[1])
            found[f"{name}.dora_scale"] = torch.ones(*size, *(1 for _ in one.shape[2:]))
    return found


def numbered(tensors: Tensors, count: int) -> Tensors:
    return tensors | {f"stray_{number}": torch.ones(1) for number in range(count)}


def look(tensors: Tensors, base: str, path: Path) -> VerifyReport:
    save_file({key: one.contiguous().clone() for key, one in tensors.items()}, path, metadata=metadata(base))
    return verify(path)
