"""Bases in the original layout, written from diffusers models by a name map of our own.

It follows the module lists of CompVis's and Stability's configurations and shares nothing with the map that
reads such files, diffusers' own.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

UNET, VAE = "model.diffusion_model.", "first_stage_model."
CLIP, OPEN_CLIP = "cond_stage_model.transformer.", "cond_stage_model.model."
CLIP_XL, OPEN_CLIP_XL = "conditioner.embedders.0.transformer.", "conditioner.embedders.1.model."
WORDS = 49408

# The published sizes, as in the config.json files of each base's folder; then miniatures of the same build.
_CROSS = "CrossAttnDownBlock2D"
_SD_CHANNELS = (320, 640, 1280, 1280)
PUBLISHED: dict[str, dict[str, dict[str, Any]]] = {
    "sd15": {
        "unet": {"block_out_channels": _SD_CHANNELS, "cross_attention_dim": 768, "sample_size": 64},
        "vae": {"block_out_channels": (128, 256, 512, 512), "sample_size": 512, "scaling_factor": 0.18215},
        "text_encoder": {"hidden_size": 768, "num_hidden_layers": 12},
    },
    "sd2": {
        "unet": {
            "block_out_channels": _SD_CHANNELS,
            "cross_attention_dim": 1024,
            "sample_size": 96,
        },
        "vae": {"block_out_channels": (128, 256, 512, 512), "sample_size": 768, "scaling_factor": 0.18215},
        "text_encoder": {"hidden_size": 1024, "num_hidden_layers": 23},
    },
    "sdxl": {
        "unet": {"block_out_channels": (320, 640, 1280), "cross_attention_dim": 2048, "sample_size": 128},
        "vae": {"block_out_channels": (128, 256, 512, 512), "sample_size": 1024, "scaling_factor": 0.13025},
        "text_encoder": {"hidden_size": 768, "num_hidden_layers": 12},
        "text_encoder_2": {"hidden_size": 1280, "num_hidden_layers": 32},
    },
}
MINIATURES: dict[str, dict[str, dict[str, Any]]] = {
    "sd15": {
        "unet": {"block_out_channels": (32, 64, 64, 64), "cross_attention_dim": 64, "sample_size": 64},
        "vae": {"block_out_channels": (32,) * 4, "sample_size": 512, "scaling_factor": 0.18215},
        "text_encoder": {"hidden_size": 64, "num_hidden_layers": 2},
    },
    "sd2": {
        "unet": {"block_out_channels": (64, 64, 128, 128), "cross_attention_dim": 128, "sample_size": 96},
        "vae": {"block_out_channels": (32,) * 4, "sample_size": 768, "scaling_factor": 0.18215},
        "text_encoder": {"hidden_size": 128, "num_hidden_layers": 2},
    },
    "sdxl": {
        "unet": {"block_out_channels": (64, 64, 128), "cross_attention_dim": 192, "sample_size": 128},
        "vae": {"block_out_channels": (32,) * 4, "sample_size": 1024, "scaling_factor": 0.13025},
        "text_encoder": {"hidden_size": 64, "num_hidden_layers": 2},
        "text_encoder_2": {"hidden_size": 128, "num_hidden_layers": 3},
    },
}
_FULL_DEPTHS = {320: (1, 2, 10), 64: (1, 1, 2)}  # SDXL's transformer blocks by level


def new_parts(kind: str, sizes: Mapping[str, dict[str, Any]], *, words: int = WORDS) -> dict[str, nn.Module]:
    """A base's networks in diffusers' layout; on the device that is the default."""
    parts: dict[str, nn.Module] = {
        "unet": UNet2DConditionModel.from_config(unet_config(kind, sizes)),
        "vae": AutoencoderKL.from_config(vae_config(sizes["vae"])),
    }
    for part in sizes:
        if part.startswith("text_encoder"):
            open_clip = kind == "sd2" or part == "text_encoder_2"
            config = text_config(sizes[part], open_clip=open_clip, words=words)
            model = CLIPTextModelWithProjection if part == "text_encoder_2" else CLIPTextModel
            parts[part] = model(CLIPTextConfig(**config))
    return parts


def unet_config(kind: str, sizes: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """As in unet/config.json."""
    values = dict(sizes["unet"])
    channels = values["block_out_channels"]
    values |= {"in_channels": 4, "out_channels": 4, "layers_per_block": 2}
    down = ["DownBlock2D", _CROSS, _CROSS] if kind == "sdxl" else [_CROSS, _CROSS, _CROSS, "DownBlock2D"]
    values["down_block_types"] = tuple(down)
    values["up_block_types"] = tuple(name.replace("Down", "Up") for name in reversed(down))
    values["attention_head_dim"] = 8 if kind == "sd15" else tuple(width // 64 for width in channels)
    values["use_linear_projection"] = kind != "sd15"
    if kind == "sdxl":
        values |= {
            "transformer_layers_per_block": _FULL_DEPTHS[channels[0]],
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 256,
            "projection_class_embeddings_input_dim": sizes["text_encoder_2"]["hidden_size"] + 6 * 256,
        }
    return values


def vae_config(values: dict[str, Any]) -> dict[str, Any]:
    """As in vae/config.json."""
    levels = len(values["block_out_channels"])
    return {
        "in_channels": 3,
        "out_channels": 3,
        "latent_channels": 4,
        "layers_per_block": 2,
        "down_block_types": ("DownEncoderBlock2D",) * levels,
        "up_block_types": ("UpDecoderBlock2D",) * levels,
        **values,
    }


def text_config(values: dict[str, Any], *, open_clip: bool, words: int = WORDS) -> dict[str, Any]:
    """As in text_encoder/config.json."""
    width = values["hidden_size"]
    return {
        "vocab_size": words,
        "intermediate_size": 4 * width,
        "num_attention_heads": width // 64,
        "max_position_embeddings": 77,
        "projection_dim": width,
        "hidden_act": "gelu" if open_clip else "quick_gelu",
        "bos_token_id": words - 2,
        "eos_token_id": words - 1,
        "pad_token_id": 0 if open_clip else words - 1,
        **values,
    }


def to_original(kind: str, parts: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    """All tensors of a base under the names of its single file."""
    tensors = {UNET + unet_name(key): value for key, value in parts["unet"].state_dict().items()}
    levels = len(parts["vae"].config.block_out_channels)
    for key, value in parts["vae"].state_dict().items():
        name = vae_name(key, levels)
        lifted = ".attn_1." in name and name.endswith("weight") and value.ndim == 2
        tensors[VAE + name] = value[:, :, None, None] if lifted else value
    for part, module in parts.items():
        if part.startswith("text_encoder"):
            tensors |= _text_tensors(kind, part, module.state_dict())
    return {name: tensor.contiguous() for name, tensor in tensors.items()}


def _text_tensors(kind: str, part: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    state = {key.removeprefix("text_model."): value for key, value in state.items()}
    if kind == "sd15" or (kind == "sdxl" and part == "text_encoder"):
        prefix = CLIP if kind == "sd15" else CLIP_XL
        return {f"{prefix}text_model.{key}": value for key, value in state.items()}
    prefix = OPEN_CLIP if kind == "sd2" else OPEN_CLIP_XL
    found = {prefix + name: value for name, value in _open_clip(state).items()}
    if kind == "sd2":  # the last layer and projection of OpenCLIP-H, which the base does not ask
        layers = 1 + max(int(m[1]) for name in found if (m := re.search(r"resblocks\.(\d+)", name)))
        first = [name for name in found if ".resblocks.0." in name]
        found |= {n.replace(".0.", f".{layers}."): torch.zeros_like(found[n]) for n in first}
        width = state["final_layer_norm.weight"].shape[0]
        found[f"{prefix}text_projection"] = torch.zeros(width, width)
    found[f"{prefix}logit_scale"] = torch.zeros(())
    return found


def unet_name(key: str) -> str:
    """A UNet's tensor in the layout of openaimodel.py, for two resnets a level."""
    ends = {
        "conv_in": "input_blocks.0.0",
        "time_embedding.linear_1": "time_embed.0",
        "time_embedding.linear_2": "time_embed.2",
        "add_embedding.linear_1": "label_emb.0.0",
        "add_embedding.linear_2": "label_emb.0.2",
        "conv_norm_out": "out.0",
        "conv_out": "out.2",
    }
    stem, _, end = key.rpartition(".")
    if stem in ends:
        return f"{ends[stem]}.{end}"
    side, _, rest = key.partition(".")
    if side == "mid_block":
        kind, number, inner = rest.split(".", 2)
        place = 1 if kind == "attentions" else 2 * int(number)
        return f"middle_block.{place}.{_in_block(kind, inner)}"
    level, kind, number, inner = rest.split(".", 3)
    first = 3 * int(level)
    if side == "down_blocks":
        if kind == "downsamplers":
            return f"input_blocks.{first + 3}.0.{inner.replace('conv', 'op')}"
        return f"input_blocks.{first + 1 + int(number)}.{int(kind == 'attentions')}.{_in_block(kind, inner)}"
    if kind == "upsamplers":  # behind the attention, if there is one: marked for `settle_upsamplers`
        return f"output_blocks.{first + 2}.UP.{inner}"
    return f"output_blocks.{first + int(number)}.{int(kind == 'attentions')}.{_in_block(kind, inner)}"


def _in_block(kind: str, inner: str) -> str:
    if kind == "attentions":
        return inner
    names = {
        "norm1": "in_layers.0",
        "conv1": "in_layers.2",
        "time_emb_proj": "emb_layers.1",
        "norm2": "out_layers.0",
        "conv2": "out_layers.3",
        "conv_shortcut": "skip_connection",
    }
    first, _, end = inner.partition(".")
    return f"{names[first]}.{end}"


def settle_upsamplers(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Upsamplers stand behind the attention of their block, or behind its resnet."""
    crossed = {m[1] for name in tensors if (m := re.match(r"(.*output_blocks\.\d+)\.1\.", name))}
    return {
        re.sub(
            r"(.*output_blocks\.\d+)\.UP\.", lambda m: f"{m[1]}.{2 if m[1] in crossed else 1}.", name
        ): tensor
        for name, tensor in tensors.items()
    }


def vae_name(key: str, levels: int) -> str:
    """A VAE's tensor in the layout of autoencoder.py."""
    key = re.sub(r"up_blocks\.(\d+)", lambda m: f"up.{levels - 1 - int(m[1])}", key)
    key = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", key)
    for ours, theirs in (
        ("down_blocks", "down"),
        ("resnets", "block"),
        ("conv_shortcut", "nin_shortcut"),
        ("downsamplers.0", "downsample"),
        ("upsamplers.0", "upsample"),
        ("conv_norm_out", "norm_out"),
        ("mid_block.attentions.0", "mid.attn_1"),
        ("group_norm", "norm"),
        ("to_out.0", "proj_out"),
        ("to_q", "q"),
        ("to_k", "k"),
        ("to_v", "v"),
    ):
        key = key.replace(ours, theirs)
    return key


def _open_clip(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """open_clip's text transformer: q, k and v one below the other, the projection applied from the right."""
    plain = {
        "embeddings.token_embedding.weight": "token_embedding.weight",
        "embeddings.position_embedding.weight": "positional_embedding",
        "final_layer_norm.weight": "ln_final.weight",
        "final_layer_norm.bias": "ln_final.bias",
    }
    inner = {
        "layer_norm1": "ln_1",
        "layer_norm2": "ln_2",
        "mlp.fc1": "mlp.c_fc",
        "mlp.fc2": "mlp.c_proj",
        "self_attn.out_proj": "attn.out_proj",
    }
    found: dict[str, Tensor] = {}
    for key, value in state.items():
        if key in plain:
            found[plain[key]] = value
        elif key == "text_projection.weight":
            found["text_projection"] = value.T
        else:
            number, rest = key.removeprefix("encoder.layers.").split(".", 1)
            block, (module, end) = f"transformer.resblocks.{number}.", rest.rsplit(".", 1)
            if module in inner:
                found[f"{block}{inner[module]}.{end}"] = value
            elif module == "self_attn.q_proj":
                stack = [state[key.replace("q_proj", name)] for name in ("q_proj", "k_proj", "v_proj")]
                found[f"{block}attn.in_proj_{end}"] = torch.cat(stack)
    return found


def original_tensors(kind: str, parts: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    """What a base's single file holds, with the leftovers that published files have."""
    tensors = settle_upsamplers(to_original(kind, parts))
    if kind == "sdxl":
        return tensors | {"denoiser.sigmas": torch.zeros(1000)}
    leftovers = {name: torch.zeros(1000) for name in ("betas", "alphas_cumprod", "sqrt_recip_alphas_cumprod")}
    if kind == "sd15":
        leftovers[f"{CLIP}text_model.embeddings.position_ids"] = torch.arange(77)[None]
    return tensors | leftovers


def random_original(
    kind: str, *, words: int = WORDS, vae_levels: int = 4
) -> tuple[dict[str, nn.Module], dict[str, Tensor]]:
    """A random miniature: its networks, and what its single file holds; fewer latents with more levels."""
    torch.manual_seed(0)
    sizes = MINIATURES[kind]
    vae = sizes["vae"] | {"block_out_channels": (32,) * vae_levels}
    parts = new_parts(kind, sizes | {"vae": vae}, words=words)
    return parts, original_tensors(kind, parts)


def write_random(path: Path, shapes: Mapping[str, tuple[int, ...]], dtype: torch.dtype) -> None:
    """A safetensors file of small random numbers, tensor by tensor, so that it may be larger than memory."""
    size = torch.empty((), dtype=dtype).element_size()
    header: dict[str, Any] = {}
    place = 0
    for name, shape in shapes.items():
        end = place + size * torch.Size(shape).numel()
        word = {torch.float16: "F16", torch.bfloat16: "BF16", torch.float32: "F32"}[dtype]
        header[name] = {"dtype": word, "shape": list(shape), "data_offsets": [place, end]}
        place = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    # one stretch of numbers over and over, from elsewhere for each tensor: random enough, and quick
    stretch = (torch.randn(1 << 20, generator=torch.Generator().manual_seed(0)) * 0.02).to(dtype)
    numbers = stretch.view(torch.uint8).numpy().tobytes()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for index, shape in enumerate(shapes.values()):
            left = size * torch.Size(shape).numel()
            start = 4096 * index % len(numbers)
            while left:
                left -= file.write(numbers[start : start + left])
                start = 0
