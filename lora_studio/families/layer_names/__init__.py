"""What layers are called in published files, what a name alone says, and the layers of the published bases.

The latter from lists, which tests/published_names.py writes: what names the layers of a run has no part in
them, so that a fault there cannot hide itself from `verify`.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib.resources import files

from lora_studio.pocket import layer_shapes

DENOISER = "unet"  # the part that a file means by a layer without one
DENOISER_TITLE = "UNet"
PART_PATTERN = r"unet|text_encoder(?:_2)?"  # the parts before diffusers' paths
_PREFIXES = {"unet": "lora_unet_", "text_encoder": "lora_te_", "text_encoder_2": "lora_te2_"}
_BLOCK = re.compile(r"lora_unet_(?:(down|up|input|output)_blocks_(\d+)|(mid|middle)_block|(.*))_?.*")
_ENCODER = re.compile(r"lora_(te\d?)_.*?_layers_(\d+)_.*")
_HALVES = ("down", "input", "mid", "up", "output", "other")
_DOTTED = {  # the transformers' blocks, by diffusers' paths, in the order in which they are passed
    **{"text_fusion.layerwise_blocks": "text", "text_fusion.refiner_blocks": "text refiner"},
    **{"noise_refiner": "noise refiner", "context_refiner": "context refiner", "layers": "layer"},
    **{"transformer_blocks": "block", "single_transformer_blocks": "single"},
}
_DOTTED_BLOCK = re.compile(rf"transformer\.({'|'.join(map(re.escape, _DOTTED))})\.(\d+)\.")
SIZES_BY_PATH = "lora_unet_add_embedding_"  # how the embeddings of sizes begin by diffusers' path
_ATTENTION = re.compile(r"lora_unet_.*_attn\d_to_")
_READS_TEXT = re.compile(r"attn2[._]to_[kv]$")
_ROLE = re.compile(  # the last words of a layer's name; what stands before them is its block
    r"_((?:attn[12]_to_(?:q|k|v|out_0))|ff_net_(?:0_proj|2)|proj_(?:in|out)|self_attn_(?:q|k|v|out)_proj"
    r"|mlp_fc[12]|(?:conv1|conv2|conv_shortcut|time_emb_proj|conv|op)|(?:in|emb|out)_layers_\d|skip_connection)$"
)


def path_name(part: str, path: str, *, two_encoders: bool) -> str:
    """A layer by its diffusers path, as kohya would spell that."""
    prefix = "lora_te1_" if part == "text_encoder" and two_encoders else _PREFIXES.get(part, f"{part}_")
    return prefix + path.replace(".", "_")


def reads_text(name: str) -> bool:
    """Whether a layer, by its path or UI name, is a key or value of cross-attention, as wide as the text."""
    return _READS_TEXT.search(name) is not None


def is_attention(name: str) -> bool:
    """Whether a layer, by its UI name, is of the denoiser's attention."""
    return _ATTENTION.match(name) is not None


def block_of(name: str) -> str:
    """A layer's place for people: "down 1", "mid", "output 3", "te1 layer 5", "single 7", or "other"."""
    if found := _DOTTED_BLOCK.match(name):
        return f"{_DOTTED[found[1]]} {found[2]}"
    if found := _ENCODER.fullmatch(name):
        return f"{found[1]} layer {found[2]}"
    found = _BLOCK.fullmatch(name)
    if found and found[1]:
        return f"{found[1]} {found[2]}"
    return "mid" if found and found[3] else "other"


def block_order(block: str) -> tuple[int, str, int]:
    """For sorting what `block_of` gives, as an image goes through: text encoders, then down, mid and up."""
    head, _, number = block.rpartition(" ")
    head = head or block
    if head in _DOTTED.values():
        return list(_DOTTED.values()).index(head), "", int(number)
    half = _HALVES.index(head) if head in _HALVES else -1
    return half, head if half == -1 else "", int(number) if number.isdigit() else 0


def split_role(name: str) -> tuple[str, str]:
    """A layer's name in UIs' spelling -> its block, and its role there: "attn1_to_q", or "other"."""
    if dotted := _DOTTED_BLOCK.match(name):
        return name[: dotted.end() - 1].replace(".", "_"), name[dotted.end() :].replace(".", "_")
    found = _ROLE.search(name)
    block = name[: found.start()] if found else name
    return block.removeprefix("lora_"), found[1] if found else "other"


Shape = tuple[int, ...]

OWN = "own"  # the name that every UI knows
OTHER_DENOISER = "other spelling of the UNet"  # diffusers' path for the original checkpoint's, or the reverse
OTHER_PREFIX = "other prefix of an encoder"
OUTSIDE = "outside"  # first and last convolution and the embeddings of time and sizes, seldom adapted


@dataclass(frozen=True)
class Encoder:
    prefix: str
    mistaken: str  # the prefix that some files have instead
    vectors: str  # the key of its vectors in the file of a learned token
    width: int
    joined: bool  # the original checkpoint holds q, k and v in one tensor


@dataclass(frozen=True)
class PublishedLayer:
    """A layer of a base: the shape of its weight, and how far its name is what UIs look for."""

    shape: Shape
    how: str = OWN
    encoder: Encoder | None = None  # None: the UNet


@dataclass(frozen=True, eq=False)  # each is itself alone
class PublishedBase:
    title: str
    key_list: str  # the file in key_lists/ of its layers
    version: str  # how ss_base_model_version begins
    original: bool  # UIs name the UNet's layers by the original checkpoint's paths
    encoders: Mapping[str, Encoder]  # by their parts
    quirks: Collection[str]  # rows of the table of UIs that are true of this base

    @property
    def vectors(self) -> dict[str, int]:
        """What a learned token's file has: key -> width."""
        return {one.vectors: one.width for one in self.encoders.values()}

    @cached_property
    def places(self) -> dict[str, PublishedLayer]:
        """Every name that a file could have for one of its layers -> that layer; own names go first."""
        found: dict[str, PublishedLayer] = {}
        for line in files(__package__).joinpath("key_lists", self.key_list).read_text("utf-8").splitlines():
            part, diffusers, original, *sides = line.split(" ")
            shape = tuple(map(int, sides))
            if encoder := self.encoders.get(part):
                found[encoder.prefix + diffusers] = PublishedLayer(shape, encoder=encoder)
                found.setdefault(encoder.mistaken + diffusers, PublishedLayer(shape, OTHER_PREFIX, encoder))
                continue
            own, other = (original, diffusers) if self.original else (diffusers, original)
            is_inside = diffusers.startswith(_INSIDE)
            found[f"lora_unet_{own}"] = PublishedLayer(shape, OWN if is_inside else OUTSIDE)
            found[f"lora_unet_{other}"] = PublishedLayer(shape, OTHER_DENOISER if is_inside else OUTSIDE)
        return found


class PocketBase(PublishedBase):
    """The one in the package, of which no UI knows: it has diffusers' names alone, and widths of its own."""

    @cached_property
    def places(self) -> dict[str, PublishedLayer]:
        """As its weights beside it have them."""
        found = {}
        for (part, path), shape in layer_shapes().items():
            name, encoder = path.replace(".", "_"), self.encoders.get(part)
            if encoder:
                found[encoder.prefix + name] = PublishedLayer(shape, encoder=encoder)
                found[encoder.mistaken + name] = PublishedLayer(shape, OTHER_PREFIX, encoder)
            else:
                inside = name.startswith(_INSIDE)
                found[_PREFIXES[part] + name] = PublishedLayer(shape, OWN if inside else OUTSIDE)
        return found


_INSIDE = ("down_blocks_", "mid_block_", "up_blocks_")
_CLIP = Encoder("lora_te_", "lora_te1_", "emb_params", 768, joined=False)
_OPEN_CLIP = Encoder("lora_te_", "lora_te1_", "emb_params", 1024, joined=True)
_CLIP_L = Encoder("lora_te1_", "lora_te_", "clip_l", 768, joined=False)
_CLIP_G = Encoder("lora_te2_", "lora_te3_", "clip_g", 1280, joined=True)
_POCKET_CLIP = Encoder("lora_te_", "lora_te1_", "emb_params", 96, joined=False)
_SD2_QUIRKS, _SDXL_QUIRKS = ("attention_unused", "either_projection"), ("encoder_alone", "two_encoders")
_TWO = {"text_encoder": _CLIP_L, "text_encoder_2": _CLIP_G}
PUBLISHED = (
    PublishedBase("SD1", "sd1.txt", "sd_v1", False, {"text_encoder": _CLIP}, ("lokr_unidentified",)),
    PublishedBase("SD2", "sd2.txt", "sd_v2", False, {"text_encoder": _OPEN_CLIP}, _SD2_QUIRKS),
    PublishedBase("SDXL", "sdxl.txt", "sdxl_", True, _TWO, _SDXL_QUIRKS),
)
POCKET_BASE = PocketBase("the pocket base", "", "sd_v1", False, {"text_encoder": _POCKET_CLIP}, ("in_no_ui",))
KNOWN = (*PUBLISHED, POCKET_BASE)
