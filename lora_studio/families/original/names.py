"""Which tensor of a single file is which of a part in diffusers' layout, for reading and for writing.

The names are diffusers' business: its conversion functions are run on a stand-in of one number for each
tensor, and where a number comes out says what its tensor becomes. The weights can then be read one by one.
What is named for writing is read back by the same map before anything is written.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from lora_studio.errors import BaseModelError
from lora_studio.families.layer_names.spellings import original_path
from lora_studio.families.original import UNET_PREFIX, VAE_PREFIX, BaseKind, Shapes, TextEncoder
from lora_studio.families.original.configurations import num_layers

if TYPE_CHECKING:
    from torch import Tensor, nn

VAE_PREFIXES = (VAE_PREFIX, "vae.")  # in Stable Diffusion 1 to 3, and in what came later
VAE_STARTS = ("encoder.", "decoder.", "quant_conv.", "post_quant_conv.", "conv1.", "conv2.", "bn.")
VAE_FIRSTS = ("decoder.conv_in.weight", "decoder.conv1.weight")  # of an image's VAE, and of a video's
_WITHIN = re.compile(r"\b(?:encoder|decoder)\.((?:post_)?quant_conv\.)")
_JOINED = (".in_proj_weight", ".in_proj_bias")  # OpenCLIP's q, k and v, one below the other


@dataclass(frozen=True)
class TensorOrigin:
    """Where a tensor lies in the file, and what is done to it."""

    name: str
    third: int | None = None  # of q, k and v
    transposed: bool = False
    rows: tuple[int, int] | None = None  # of a tensor that holds several layers; behind the last is the end
    swapped: bool = False  # its second half stands before its first one
    sides: tuple[int, ...] | None = None  # of a tensor that the file has in one line

    def shape(self, shapes: Shapes) -> tuple[int, ...]:
        """That `take` gives of a file with these shapes."""
        shape = shapes[self.name]
        if self.rows is not None:
            return (max(0, min(self.rows[1], shape[0]) - self.rows[0]), *shape[1:])
        if self.sides is not None and math.prod(self.sides) == math.prod(shape):
            return self.sides
        if self.third is not None:
            return (shape[0] // 3, *shape[1:])
        return shape[::-1] if self.transposed else shape

    def take(self, tensor: Tensor) -> Tensor:
        """The part's own, of the tensor called `name`; a view where it can be."""
        if self.rows is not None:
            return tensor[slice(*self.rows)]
        if self.swapped:
            return tensor.roll(len(tensor) // 2, 0)
        if self.sides is not None:
            return tensor.reshape(self.sides)
        if self.third is not None:
            return tensor.chunk(3)[self.third]
        return tensor.T if self.transposed else tensor


def origins(
    kind: BaseKind, shapes: Shapes, configurations: Mapping[str, dict[str, Any]]
) -> dict[str, dict[str, TensorOrigin]]:
    """Part -> its tensors' names in diffusers' layout -> where they lie."""
    from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint

    found = {encoder.part: _text_origins(encoder, shapes) for encoder in kind.text_encoders}
    names = [key for key in shapes if key.startswith(UNET_PREFIX)]
    configured = partial(convert_ldm_unet_checkpoint, config=configurations["unet"])
    found["unet"] = _origins(names, shapes, configured)
    found["vae"] = vae_origins(shapes, configurations["vae"])
    return found


def vae_origins(shapes: Shapes, configuration: Mapping[str, Any]) -> dict[str, TensorOrigin]:
    """Of a whole base, or of a VAE's own file, in which the prefix may be missing."""
    from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint, convert_wan_vae_to_diffusers

    prefixed = {
        start: [key for key in shapes if key.startswith(start) and key.startswith(VAE_STARTS, len(start))]
        for start in (*VAE_PREFIXES, "")
    }
    start, names = next((pair for pair in prefixed.items() if pair[1]), ("", []))

    def of_video(tensors: dict[str, Any]) -> dict[str, Any]:
        bare = {key.removeprefix(start): one for key, one in tensors.items()}
        found: dict[str, Any] = convert_wan_vae_to_diffusers(bare)
        return found

    def of_image(tensors: dict[str, Any]) -> dict[str, Any]:
        """FLUX.2's has the convolutions between encoder and decoder within them, and a batch norm."""
        named = {_WITHIN.sub(r"\1", key): one for key, one in tensors.items()}
        counted = {key.removeprefix(start): t for key, t in tensors.items() if key.startswith(f"{start}bn.")}
        return convert_ldm_vae_checkpoint(named, config=configuration) | counted

    return _origins(names, shapes, of_video if start + VAE_FIRSTS[1] in shapes else of_image)


def _text_origins(encoder: TextEncoder, shapes: Shapes) -> dict[str, TensorOrigin]:
    """Without the layers that are not asked; `text_model.` as the installed class has it."""
    from diffusers.loaders.single_file_utils import convert_ldm_clip_checkpoint, convert_open_clip_checkpoint

    names = [key for key in shapes if key.startswith(encoder.prefix) and not _unasked(encoder, shapes, key)]
    if not encoder.open_clip:
        found = _origins(names, shapes, convert_ldm_clip_checkpoint)
    else:
        narrow = SimpleNamespace(config=SimpleNamespace(hidden_size=1))  # as wide as the stand-ins
        convert = partial(convert_open_clip_checkpoint, narrow, prefix=encoder.prefix)
        found = _origins(names, shapes, convert)
    if encoder.projects:
        return found
    return {key.removeprefix("text_model."): origin for key, origin in found.items()}


def _origins(names: Iterable[str], shapes: Shapes, convert: Any) -> dict[str, TensorOrigin]:
    import torch

    names = list(names)
    stand_ins = {}
    for number, name in enumerate(names):
        rank = len(shapes[name])
        sides = (3, *(1,) * (rank - 1)) if name.endswith(_JOINED) else (1,) * rank
        stand_ins[name] = torch.full(sides, number)
    found = {}
    for key, stand_in in convert(stand_ins).items():
        name = names[int(stand_in.flatten()[0])]
        third = "qkv".index(key.split(".")[-2][0]) if name.endswith(_JOINED) else None
        found[key] = TensorOrigin(name, third, transposed=name.endswith(".text_projection"))
    return found


def _unasked(encoder: TextEncoder, shapes: Shapes, name: str) -> bool:
    """Whether a tensor belongs to what the file's text encoder has beyond the base's."""
    if not encoder.drops_last:
        return False
    layer = re.match(rf"{re.escape(encoder.prefix)}transformer\.resblocks\.(\d+)\.", name)
    if layer:
        return num_layers(shapes, encoder) == int(layer[1])
    return name == f"{encoder.prefix}text_projection"


# What a file may hold beside its parts; all else that is not used is an error.
_EMA = re.compile(r"^(first_stage_model\.)?model_ema\.")
_LEFTOVERS = re.compile(
    r"^(betas|alphas_cumprod(_prev)?|sqrt_\w+|log_one_minus_\w+|posterior_\w+|logvar|lvlb_weights|global_step"
    r"|v_pred|ztsnr|denoiser\.\w+|first_stage_model\.loss\..*"
    r"|(cond_stage_model|conditioner)\..*(position_ids|logit_scale|attn_mask)"
    r"|(cond_stage_model|conditioner\.embedders\.0)\.(transformer\.)?text_projection(\.weight)?)$"
)


def sort_rest(kind: BaseKind, shapes: Shapes, used: set[str]) -> tuple[list[str], list[str], list[str]]:
    """Names that no part uses: averaged weights, harmless leftovers, and what should not be there."""
    averaged, harmless, unexpected = [], [], []
    for name in (name for name in shapes if name not in used):
        if _EMA.match(name):
            averaged.append(name)
        elif _LEFTOVERS.match(name) or any(_unasked(one, shapes, name) for one in kind.text_encoders):
            harmless.append(name)
        else:
            unexpected.append(name)
    return averaged, harmless, unexpected


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
    """Original name -> tensor, copied if changed; raises BaseModelError for parts that have no such names."""
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
    import torch

    shapes = {name: tuple(tensor.shape) for name, tensor in named.items()}
    found = origins(kind, shapes, {name: dict(parts[name].config) for name in ("unet", "vae")})  # type: ignore[arg-type]
    for part, module in parts.items():
        own = {key: tensor for key, tensor in module.state_dict().items() if "position_ids" not in key}
        read = {key: origin for key, origin in found[part].items() if "position_ids" not in key}
        if read.keys() != own.keys():
            raise ValueError(part)
        for key, tensor in own.items():
            taken = read[key].take(named[read[key].name])
            fits = taken.numel() == tensor.numel()
            if not fits or not (tensor.is_meta or torch.equal(taken.reshape(tensor.shape), tensor)):
                raise ValueError(key)


def original_unet(unet: nn.Module) -> dict[str, Tensor]:
    """Original name -> tensor, in the order of the UNet's own."""
    blocks: int = unet.config.layers_per_block  # type: ignore[union-attr, assignment]
    found = {}
    state = unet.state_dict()
    for key, tensor in state.items():
        path, _, end = key.rpartition(".")
        name = original_path(path, layers_per_block=blocks)
        block, sampler, _ = path.partition(".upsamplers.")
        if sampler and f"{block}.attentions.0.norm.weight" not in state:
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
    import torch

    state = _without_tree(module)
    found = {f"{encoder.prefix}text_model.{key}": tensor for key, tensor in state.items()}
    places = len(state["embeddings.position_embedding.weight"])
    found[f"{encoder.prefix}text_model.embeddings.position_ids"] = torch.arange(places)[None]
    return found


def _open_clip(encoder: TextEncoder, module: nn.Module) -> dict[str, Tensor]:
    """q, k and v one below the other, the projection from the right, and what no base asks.

    A last layer that the base was made without is one that changes nothing, with a projection likewise.
    """
    import torch

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
        norm = found["ln_final.weight"]
        found["text_projection"] = torch.eye(len(norm), device=norm.device)
    found["logit_scale"] = torch.tensor(_LOGIT_SCALE)
    return {encoder.prefix + name: tensor for name, tensor in found.items()}


def _open_clip_layer(key: str, tensor: Tensor, value: Callable[[str], Tensor]) -> dict[str, Tensor]:
    import torch

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
