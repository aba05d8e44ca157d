"""What files call the layers of a Stable Diffusion, in every spelling there is, told without the base.

A layer's place is its part and its path in diffusers' words, dotted, as `ModelFamily.canonical_path` has it.
The spellings are those of kohya, LyCORIS, PEFT and diffusers; the original checkpoint's block numbers, by
which kohya names one kind's UNet, count two layers a block, as every published base has.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import NamedTuple

_KINDS = {"resnets": 0, "attentions": 1, "upsamplers": 2}
IN_RESNET = {
    **{"norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1"},
    **{"norm2": "out_layers.0", "conv2": "out_layers.3", "conv_shortcut": "skip_connection"},
}
OUTSIDE = {
    **{"conv_in": "input_blocks.0.0", "conv_norm_out": "out.0", "conv_out": "out.2"},
    **{"time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2"},
    **{"add_embedding.linear_1": "label_emb.0.0", "add_embedding.linear_2": "label_emb.0.2"},
}


def original_path(path: str, *, layers_per_block: int) -> str:
    """A module's path in diffusers -> in the original checkpoint; 2 layers a block in every published SDXL.

    The original counts its blocks through: each layer is one, and so is each downsampler, while an upsampler
    belongs to the layer before it.
    """
    if path in OUTSIDE:
        return OUTSIDE[path]
    half, *words = path.split(".")
    if half == "mid_block":
        kind, number, *inner = words
        place = 1 if kind == "attentions" else 2 * int(number)
        return ".".join(["middle_block", str(place), *_inside(kind, inner)])
    block, kind, number, *inner = words
    first = int(block) * (layers_per_block + 1)
    if kind == "downsamplers":
        return f"input_blocks.{first + layers_per_block + 1}.0.op"
    if half == "down_blocks":
        blocks, place = "input_blocks", first + 1 + int(number)
    else:
        blocks, place = "output_blocks", first + (layers_per_block if kind == "upsamplers" else int(number))
    return ".".join([blocks, str(place), str(_KINDS[kind]), *_inside(kind, inner)])


def _inside(kind: str, inner: list[str]) -> list[str]:
    return [IN_RESNET[name] for name in inner] if kind == "resnets" else inner


LAYERS_PER_BLOCK = 2
UNET, TEXT, SECOND_TEXT = "unet", "text_encoder", "text_encoder_2"

_PARTS = {
    **{"lora_unet_": UNET, "lora_te_": TEXT, "lora_te1_": TEXT, "lora_te2_": SECOND_TEXT},
    **{"unet.": UNET, "text_encoder.": TEXT, "text_encoder_2.": SECOND_TEXT, "diffusion_model.": UNET},
    **{"model.diffusion_model.": UNET, "text_encoders.clip_l.": TEXT, "text_encoders.clip_g.": SECOND_TEXT},
    **{"text_encoders.clip_h.": TEXT},
}
_IN_A_PART = "transformer."  # between ComfyUI's name of a text encoder and what is in it
_PARTLESS = "lycoris_"  # SimpleTuner's prefix of every part
_WRAPPER = "base_model.model."  # of a model in PEFT's own hands
_WORDS = (
    *("down_blocks", "mid_block", "up_blocks", "attentions", "resnets", "downsamplers", "upsamplers"),
    *("transformer_blocks", "attn1", "attn2", "to_q", "to_k", "to_v", "to_out", "ff", "net", "proj"),
    *("proj_in", "proj_out", "conv1", "conv2", "conv", "conv_shortcut", "time_emb_proj", "conv_in"),
    *("conv_out", "conv_norm_out", "time_embedding", "add_embedding", "linear_1", "linear_2", "norm"),
    *("norm1", "norm2", "norm3", "text_model", "encoder", "layers", "self_attn", "q_proj", "k_proj"),
    *("v_proj", "out_proj", "mlp", "fc1", "fc2", "layer_norm1", "layer_norm2", "final_layer_norm"),
    *("embeddings", "token_embedding", "position_embedding", "text_projection", r"\d+"),
)
_PATH = re.compile(rf"(?:{'|'.join(sorted(_WORDS, key=len, reverse=True))})(?=_|$)")
_OF_ATTENTION = {"to_q": "q_proj", "to_k": "k_proj", "to_v": "v_proj", "to_out": "out_proj"}
_IN_TEXT_MODEL = ("encoder_", "embeddings_", "final_layer_norm")
TEXT_PROJECTIONS = tuple(_OF_ATTENTION.values())
_BLOCK = re.compile(r"(input_blocks|middle_block|output_blocks)_(\d+)_(.+)")
_ONLY_ONE = re.compile(  # levels that have attention, are there, or are halved, in the one kind alone
    r"(down_blocks\.0|up_blocks\.[23])\.attentions|(down|up)_blocks\.(3\.|2\.(down|up)samplers)"
)
_ONLY_TWO = re.compile(r"up_blocks\.0\.attentions|.*\.transformer_blocks\.[1-9]|add_embedding")
_TOP = {name.replace(".", "_"): path.replace(".", "_") for path, name in OUTSIDE.items()}
_RESNET = {name.replace(".", "_"): path for path, name in IN_RESNET.items()}


class LayerPlace(NamedTuple):
    part: str
    path: str  # canonical


@dataclass(frozen=True)
class KohyaLayout:
    """How kohya's files, and so all UIs, name the layers of a kind of base."""

    prefixes: Mapping[str, str]  # part -> how its layers' names begin
    original: bool = False  # the UNet's layers by their paths in the original checkpoint

    def name(self, place: LayerPlace, *, layers_per_block: int = LAYERS_PER_BLOCK) -> str:
        """Without the tensor's ending."""
        path = place.path
        if self.original and place.part == UNET:
            path = original_path(path, layers_per_block=layers_per_block)
        return self.prefixes[place.part] + path.replace(".", "_")

    def spells(self, name: str, place: LayerPlace) -> bool:
        """Whether a layer's name is of this layout, however many layers its base has in a block."""
        if place.part == UNET and self.original:
            return _ORIGINAL.match(name) is not None
        return place.part in self.prefixes and name == self.name(place)


_ORIGINAL = re.compile(r"lora_unet_(?:(?:in|out)put_blocks_|middle_block_|time_embed_\d|label_emb_|out_\d)")
ONE_ENCODER = KohyaLayout({UNET: "lora_unet_", TEXT: "lora_te_"})
TWO_ENCODERS = KohyaLayout({UNET: "lora_unet_", TEXT: "lora_te1_", SECOND_TEXT: "lora_te2_"}, original=True)


def place_of(stem: str) -> LayerPlace | None:
    """Of a key without its tensor's ending, in any spelling; None if no base has such a layer.

    >>> place_of("lora_unet_input_blocks_4_1_proj_in")
    Place(part='unet', path='down_blocks.1.attentions.0.proj_in')
    >>> place_of("text_encoder.text_model.encoder.layers.0.self_attn.to_q").path
    'text_model.encoder.layers.0.self_attn.q_proj'
    """
    stem = stem.removeprefix(_WRAPPER).removeprefix(_PARTLESS)
    prefix = max((one for one in _PARTS if stem.startswith(one)), key=len, default="")
    inside = stem.removeprefix(prefix).removeprefix(_WRAPPER)
    if prefix.startswith("text_encoders."):
        inside = inside.removeprefix(_IN_A_PART)
    name = inside.replace(".processor.", ".").replace(".", "_")
    of_text = name.startswith(("text_model_", "text_projection", *_IN_TEXT_MODEL))
    part = _PARTS.get(prefix, TEXT if of_text else UNET)
    path = _dotted(_text_name(name) if part != UNET else _from_original(name))
    return None if path is None else LayerPlace(part, path)


def layout_of(
    places: Collection[LayerPlace], *, widths: Collection[int] = (), version: str = ""
) -> KohyaLayout | None:
    """The layout of the base that a file with these layers is for; None if nothing tells.

    `widths` are the inputs of its cross-attention, `version` what the file says of itself, which counts
    least; the UNet's levels that have attention tell the kinds apart.
    """
    paths = [place.path for place in places if place.part == UNET]
    if any(place.part == SECOND_TEXT for place in places) or 2048 in widths:
        return TWO_ENCODERS
    if any(map(_ONLY_TWO.match, paths)):
        return TWO_ENCODERS
    if {768, 1024} & set(widths) or any(map(_ONLY_ONE.match, paths)):
        return ONE_ENCODER
    if version.startswith(("sdxl", "sd_v")):
        return TWO_ENCODERS if version.startswith("sdxl") else ONE_ENCODER
    return None


def kernel_of(path: str) -> int:
    """The side of a layer's kernel: 3 of most convolutions, 1 of others and of linear layers."""
    return 3 if path.rpartition(".")[2] in ("conv1", "conv2", "conv", "conv_in", "conv_out") else 1


def _text_name(name: str) -> str:
    """With `text_model_`, which transformers 5 dropped from paths, and a text encoder's own words."""
    if name.startswith(_IN_TEXT_MODEL):
        name = f"text_model_{name}"
    head, attention, last = name.rpartition("self_attn_")
    return head + attention + _OF_ATTENTION.get(last, last) if attention else name


def _from_original(name: str) -> str:
    """A UNet layer's name in the original checkpoint, or diffusers' -> diffusers', with underscores."""
    if name in _TOP:
        return _TOP[name]
    if name.endswith(("attn1_to_out", "attn2_to_out")):
        name += "_0"  # diffusers' old attention processors leave that out
    match = _BLOCK.fullmatch(name)
    if match is None:
        return name
    half, number, rest = match[1], int(match[2]), match[3]
    if half == "middle_block":
        inside = f"attentions_0_{rest}" if number == 1 else f"resnets_{number // 2}_{_RESNET.get(rest, rest)}"
        return f"mid_block_{inside}"
    place, _, inner = rest.partition("_")
    if half == "input_blocks":
        block, layer = divmod(number - 1, LAYERS_PER_BLOCK + 1)
        if inner == "op":
            return f"down_blocks_{block}_downsamplers_0_conv"
    else:
        block, layer = divmod(number, LAYERS_PER_BLOCK + 1)
        if inner == "conv":
            return f"up_blocks_{block}_upsamplers_0_conv"
    inside = f"resnets_{layer}_{_RESNET.get(inner, inner)}" if place == "0" else f"attentions_{layer}_{inner}"
    return f"{'down' if half == 'input_blocks' else 'up'}_blocks_{block}_{inside}"


def _dotted(name: str) -> str | None:
    """`down_blocks_0_attn1_to_q` -> `down_blocks.0.attn1.to_q`; None for a word that no layer has."""
    words, at = [], 0
    while at < len(name):
        match = _PATH.match(name, at)
        if match is None:
            return None
        words.append(match[0])
        at = match.end() + 1
    return ".".join(words) or None
