"""The layers of the published bases as LoRA files name them, and the shapes of their weights.

Written from the published configurations, and independent of what names the layers of a run: a fault there
must not hide itself from `verify`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial

Shape = tuple[int, ...]


def encoder_layers(width: int, layers: int) -> Iterator[tuple[str, Shape]]:
    """Names and shapes of a text encoder's layers, as transformers calls them."""
    wide, narrow = 4 * width, width
    for number in range(layers):
        stem = f"text_model_encoder_layers_{number}_"
        for name in ("q", "k", "v", "out"):
            yield f"{stem}self_attn_{name}_proj", (narrow, narrow)
        yield f"{stem}mlp_fc1", (wide, narrow)
        yield f"{stem}mlp_fc2", (narrow, wide)


def unet_layers(
    channels: Sequence[int], depths: Sequence[int], *, cross: int, linear: bool
) -> Iterator[tuple[str, str, Shape]]:
    """diffusers' name, the original's name and the shape of every layer, block by block.

    Two residual blocks a level on the way down and three on the way up, each of which takes what one place
    on the way down has left. The original counts the places through, and a downsampler is one of its own.
    """
    levels = list(zip(channels, depths, strict=True))
    time = 4 * channels[0]
    attention = partial(_attention, cross=cross, linear=linear)
    width, place, left = channels[0], 0, [channels[0]]
    for level, (out, depth) in enumerate(levels):
        for number in range(2):
            place += 1
            stems = f"down_blocks_{level}_resnets_{number}", f"input_blocks_{place}_0"
            yield from _resnet(*stems, (width, out, time))
            stems = f"down_blocks_{level}_attentions_{number}", f"input_blocks_{place}_1"
            yield from attention(*stems, (out, depth))
            width = out
            left.append(width)
        if level < len(levels) - 1:
            place += 1
            yield f"down_blocks_{level}_downsamplers_0_conv", f"input_blocks_{place}_0_op", _square(width)
            left.append(width)
    for number in range(2):
        stems = f"mid_block_resnets_{number}", f"middle_block_{2 * number}"
        yield from _resnet(*stems, (width, width, time))
    deepest = max(depths)
    yield from attention("mid_block_attentions_0", "middle_block_1", (width, deepest))
    place = -1
    for level, (out, depth) in enumerate(reversed(levels)):
        for number in range(3):
            place += 1
            stems = f"up_blocks_{level}_resnets_{number}", f"output_blocks_{place}_0"
            yield from _resnet(*stems, (width + left.pop(), out, time))
            stems = f"up_blocks_{level}_attentions_{number}", f"output_blocks_{place}_1"
            yield from attention(*stems, (out, depth))
            width = out
        if level < len(levels) - 1:
            after = 2 if depth else 1
            original = f"output_blocks_{place}_{after}_conv"
            yield f"up_blocks_{level}_upsamplers_0_conv", original, _square(width)


def _square(width: int) -> Shape:
    return (width, width, 3, 3)


def _resnet(diffusers: str, original: str, sizes: tuple[int, int, int]) -> Iterator[tuple[str, str, Shape]]:
    inputs, out, time = sizes
    yield f"{diffusers}_conv1", f"{original}_in_layers_2", (out, inputs, 3, 3)
    yield f"{diffusers}_time_emb_proj", f"{original}_emb_layers_1", (out, time)
    yield f"{diffusers}_conv2", f"{original}_out_layers_3", _square(out)
    if inputs != out:
        yield f"{diffusers}_conv_shortcut", f"{original}_skip_connection", (out, inputs, 1, 1)


def _attention(
    diffusers: str, original: str, sizes: tuple[int, int], *, cross: int, linear: bool
) -> Iterator[tuple[str, str, Shape]]:
    width, depth = sizes
    if not depth:
        return
    inside: dict[str, Shape] = {}
    projection = (width, width) if linear else (width, width, 1, 1)
    inside["proj_in"] = projection
    for number in range(depth):
        stem = f"transformer_blocks_{number}_"
        for attention, read in (("attn1", width), ("attn2", cross)):
            inside[f"{stem}{attention}_to_q"] = (width, width)
            inside[f"{stem}{attention}_to_k"] = (width, read)
            inside[f"{stem}{attention}_to_v"] = (width, read)
            inside[f"{stem}{attention}_to_out_0"] = (width, width)
        inside[f"{stem}ff_net_0_proj"] = (8 * width, width)  # GEGLU: value and gate, 4 times as wide each
        inside[f"{stem}ff_net_2"] = (width, 4 * width)
    inside["proj_out"] = projection
    for name, shape in inside.items():
        yield f"{diffusers}_{name}", f"{original}_{name}", shape


OWN = "own"  # the name that every UI knows
OTHER_DENOISER = "other spelling of the UNet"  # diffusers' path for the original checkpoint's, or the reverse
OTHER_PREFIX = "other prefix of an encoder"
OUTSIDE = "outside"  # first and last convolution and the embeddings of time and sizes, seldom adapted


@dataclass(frozen=True)
class Encoder:
    """A text encoder."""

    prefix: str
    mistaken: str  # the prefix that some files have instead
    vectors: str  # the key of its vectors in the file of a learned token
    width: int
    layers: int
    joined: bool  # the original checkpoint holds q, k and v in one tensor


@dataclass(frozen=True)
class PublishedLayer:
    """A layer of a base: the shape of its weight, and how far its name is what UIs look for."""

    shape: Shape
    how: str = OWN
    encoder: Encoder | None = None  # None: the UNet


@dataclass(frozen=True)
class PublishedBase:
    """A published base."""

    title: str
    version: str  # how ss_base_model_version begins
    channels: tuple[int, ...]  # of the UNet's levels
    depths: tuple[int, ...]  # transformer blocks in an attention of each level; 0: it has none
    cross: int  # width of the conditioning
    linear: bool  # proj_in and proj_out are linear layers, not convolutions
    original: bool  # UIs name the UNet's layers by the original checkpoint's paths
    encoders: tuple[Encoder, ...]
    outside: tuple[tuple[str, str, Shape], ...]
    quirks: frozenset[str] = frozenset()  # rows of the table of UIs that are true of this base

    @property
    def vectors(self) -> dict[str, int]:
        """What a learned token's file has: key -> width."""
        return {one.vectors: one.width for one in self.encoders}

    @cached_property
    def places(self) -> dict[str, PublishedLayer]:
        """Every name that a file could have for one of its layers -> that layer; own names go first."""
        found: dict[str, PublishedLayer] = {}
        unet = unet_layers(self.channels, self.depths, cross=self.cross, linear=self.linear)
        for diffusers, original, shape in unet:
            own, other = (original, diffusers) if self.original else (diffusers, original)
            found[f"lora_unet_{own}"] = PublishedLayer(shape)
            found[f"lora_unet_{other}"] = PublishedLayer(shape, OTHER_DENOISER)
        for diffusers, original, shape in self.outside:
            found |= {f"lora_unet_{name}": PublishedLayer(shape, OUTSIDE) for name in (diffusers, original)}
        for encoder in self.encoders:
            for name, shape in encoder_layers(encoder.width, encoder.layers):
                found[encoder.prefix + name] = PublishedLayer(shape, encoder=encoder)
                found.setdefault(encoder.mistaken + name, PublishedLayer(shape, OTHER_PREFIX, encoder))
        return found


_OUTSIDE: tuple[tuple[str, str, Shape], ...] = (
    ("conv_in", "input_blocks_0_0", (320, 4, 3, 3)),
    ("conv_out", "out_2", (4, 320, 3, 3)),
    ("time_embedding_linear_1", "time_embed_0", (1280, 320)),
    ("time_embedding_linear_2", "time_embed_2", (1280, 1280)),
)
_SIZES: tuple[tuple[str, str, Shape], ...] = (
    ("add_embedding_linear_1", "label_emb_0_0", (1280, 2816)),
    ("add_embedding_linear_2", "label_emb_0_2", (1280, 1280)),
)
_LEVELS = (320, 640, 1280, 1280)
PUBLISHED = (
    PublishedBase(
        title="SD1",
        version="sd_v1",
        channels=_LEVELS,
        depths=(1, 1, 1, 0),
        cross=768,
        linear=False,
        original=False,
        encoders=(Encoder("lora_te_", "lora_te1_", "emb_params", 768, 12, joined=False),),
        outside=_OUTSIDE,
        quirks=frozenset({"lokr_unidentified"}),
    ),
    PublishedBase(
        title="SD2",
        version="sd_v2",
        channels=_LEVELS,
        depths=(1, 1, 1, 0),
        cross=1024,
        linear=True,
        original=False,
        encoders=(Encoder("lora_te_", "lora_te1_", "emb_params", 1024, 23, joined=True),),
        outside=_OUTSIDE,
        quirks=frozenset({"attention_unused", "either_projection"}),
    ),
    PublishedBase(
        title="SDXL",
        version="sdxl_",
        channels=_LEVELS[:3],
        depths=(0, 2, 10),
        cross=2048,
        linear=True,
        original=True,
        encoders=(
            Encoder("lora_te1_", "lora_te_", "clip_l", 768, 12, joined=False),
            Encoder("lora_te2_", "lora_te3_", "clip_g", 1280, 32, joined=True),
        ),
        outside=_OUTSIDE + _SIZES,
        quirks=frozenset({"encoder_alone", "two_encoders"}),
    ),
)
