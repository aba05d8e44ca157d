"""A base in the original layout again: the names and shapes that UIs expect in a single file.

What is named here is read back by the map that reads such files, diffusers' own, before anything is written.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import torch

from lora_studio.errors import BaseModelError
from lora_studio.families.layer_names.spellings import original_path
from lora_studio.families.original import UNET_PREFIX, VAE_PREFIX, BaseKind, TextEncoder
from lora_studio.families.original.names import origins

if TYPE_CHECKING:
    from torch import Tensor, nn

_OPEN_CLIP = {
    "embeddings.token_embedding.weight": "token_embedding.weight",
    "embeddings.position_embedding.weight": "positional_embedding",
    "final_layer_norm.weight": "ln_final.weight",
    "final_layer_norm.bias": "ln_final.bias",
}
_IN_LAYER = {
    **{"layer_norm1": "ln_1", "layer_norm2": "ln_2", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj"},
    "self_attn.out_proj": "attn.out_proj",
}
_IN_VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
_LOGIT_SCALE = math.log(100)  # as CLIP's training ends; nothing of a base asks it


def original_tensors(kind: BaseKind, parts: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    """Original name -> tensor, not copied where it stays as it is.

    Raises BaseModelError for a base whose parts the original layout has no names for.
    """
    try:
        named = original_unet(parts["unet"]) | _vae(parts["vae"])
        for encoder in kind.text_encoders:
            named |= (_open_clip if encoder.open_clip else _clip)(encoder, parts[encoder.part])
        _check(kind, parts, named)
    except (KeyError, ValueError, IndexError):
        raise BaseModelError(
            f"this base is not built as a published {kind.title}, so it has no single-file layout; "
            "take the target merged, a diffusers folder."
        ) from None
    return named


def _check(kind: BaseKind, parts: Mapping[str, nn.Module], named: Mapping[str, Tensor]) -> None:
    """Raise ValueError unless the map that reads single files finds every tensor of every part again."""
    shapes = {name: tuple(tensor.shape) for name, tensor in named.items()}
    found = origins(kind, shapes, {name: dict(parts[name].config) for name in ("unet", "vae")})  # type: ignore[arg-type]
    for part, module in parts.items():
        own = {key: tensor for key, tensor in module.state_dict().items() if "position_ids" not in key}
        read = {key: origin for key, origin in found[part].items() if "position_ids" not in key}
        if read.keys() != own.keys():
            raise ValueError(part)
        for key, tensor in own.items():
            taken = read[key].take(named[read[key].name])
            if taken.numel() != tensor.numel() or not (
                tensor.is_meta or torch.equal(taken.reshape(tensor.shape), tensor)
            ):
                raise ValueError(key)


def original_unet(unet: nn.Module) -> dict[str, Tensor]:
    """Original name -> tensor, in the order of the UNet's own."""
    blocks: int = unet.config.layers_per_block  # type: ignore[union-attr, assignment]
    found = {}
    state = unet.state_dict()
    for key, tensor in state.items():
        path, _, end = key.rpartition(".")
        name = original_path(path, layers_per_block=blocks)
        if (
            ".upsamplers." in path
            and f"{path.split('.upsamplers.')[0]}.attentions.0.norm.weight" not in state
        ):
            name = re.sub(r"\.2\.conv$", ".1.conv", name)  # behind a resnet, where there is no attention
        found[f"{UNET_PREFIX}{name}.{end}"] = tensor
    return found


def _vae(vae: nn.Module) -> dict[str, Tensor]:
    """Levels of the decoder are counted from the image; attention is of 1 x 1 convolutions."""
    levels = len(vae.config.block_out_channels)  # type: ignore[union-attr, arg-type]
    found = {}
    for key, tensor in vae.state_dict().items():
        path, _, end = key.rpartition(".")
        name = _vae_path(path, levels)
        is_projection = ".mid.attn_1." in name and not name.endswith("norm") and end == "weight"
        found[f"{VAE_PREFIX}{name}.{end}"] = tensor[:, :, None, None] if is_projection else tensor
    return found


def _vae_path(path: str, levels: int) -> str:
    """`decoder.up_blocks.0.resnets.1.conv1` -> `decoder.up.3.block.1.conv1`"""
    half, _, inner = path.partition(".")
    if half not in ("encoder", "decoder"):
        return path
    match = re.fullmatch(r"(down|up)_blocks\.(\d+)\.(resnets\.(\d+)|\w+samplers\.0)\.(.+)", inner)
    if match:
        side, level = match[1], int(match[2]) if match[1] == "down" else levels - 1 - int(match[2])
        kind = f"block.{match[4]}" if match[4] else f"{side}sample"
        return f"{half}.{side}.{level}.{kind}.{match[5].replace('conv_shortcut', 'nin_shortcut')}"
    if match := re.fullmatch(r"mid_block\.resnets\.(\d)\.(.+)", inner):
        return f"{half}.mid.block_{int(match[1]) + 1}.{match[2]}"
    if match := re.fullmatch(r"mid_block\.attentions\.0\.(.+)", inner):
        return f"{half}.mid.attn_1.{_IN_VAE_ATTENTION[match[1]]}"
    return f"{half}.{inner.replace('conv_norm_out', 'norm_out')}"


def _clip(encoder: TextEncoder, module: nn.Module) -> dict[str, Tensor]:
    """With `text_model.` and the numbers of the places, which older libraries kept as a tensor."""
    state = _without_tree(module)
    found = {f"{encoder.prefix}text_model.{key}": tensor for key, tensor in state.items()}
    places = len(state["embeddings.position_embedding.weight"])
    found[f"{encoder.prefix}text_model.embeddings.position_ids"] = torch.arange(places)[None]
    return found


def _open_clip(encoder: TextEncoder, module: nn.Module) -> dict[str, Tensor]:
    """q, k and v one below the other, the projection from the right, and what no base asks.

    A last layer that the base was made without is one that changes nothing, with a projection likewise.
    """
    state = _without_tree(module)
    found: dict[str, Tensor] = {}
    for key, tensor in state.items():
        if key == "text_projection.weight":
            found["text_projection"] = tensor.T
        elif key in _OPEN_CLIP:
            found[_OPEN_CLIP[key]] = tensor
        else:
            found |= _open_clip_layer(key, tensor, state.__getitem__)
    first = {name: one for name, one in found.items() if name.startswith("transformer.resblocks.0.")}
    if encoder.drops_last:
        last = sum(name.endswith("ln_1.weight") for name in found)
        found |= {n.replace(".0.", f".{last}.", 1): torch.zeros_like(one) for n, one in first.items()}
        found["text_projection"] = torch.eye(
            len(found["ln_final.weight"]), device=found["ln_final.weight"].device
        )
    found["logit_scale"] = torch.tensor(_LOGIT_SCALE)
    return {encoder.prefix + name: tensor for name, tensor in found.items()}


def _open_clip_layer(key: str, tensor: Tensor, value: Callable[[str], Tensor]) -> dict[str, Tensor]:
    layers, number, rest = key.removeprefix("encoder.").split(".", 2)
    assert layers == "layers", key
    module, _, end = rest.rpartition(".")
    block = f"transformer.resblocks.{number}."
    if module in _IN_LAYER:
        return {f"{block}{_IN_LAYER[module]}.{end}": tensor}
    if module != "self_attn.q_proj":  # k and v come with q
        return {}
    joined = [value(key.replace("q_proj", name)) for name in ("q_proj", "k_proj", "v_proj")]
    return {f"{block}attn.in_proj_{end}": torch.cat(joined)}


def _without_tree(module: nn.Module) -> dict[str, Tensor]:
    state = {key.removeprefix("text_model."): tensor for key, tensor in module.state_dict().items()}
    return {key: tensor for key, tensor in state.items() if not key.endswith("position_ids")}
