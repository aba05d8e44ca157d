"""The layers of the published bases as LoRA files name them, and the shapes of their weights.

Written from the published configurations, and independent of what names the layers of a run: a fault there
must not hide itself from `verify`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from lora_studio.families.published_layers import Shape, encoder_layers, unet_layers

OWN = "own"  # the name that every UI knows
OTHER_UNET = "other spelling of the UNet"  # diffusers' path for the original checkpoint's, or the reverse
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
class Place:
    """A layer of a base: the shape of its weight, and how far its name is what UIs look for."""

    shape: Shape
    how: str = OWN
    encoder: Encoder | None = None  # None: the UNet


@dataclass(frozen=True)
class Layout:
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
    def places(self) -> dict[str, Place]:
        """Every name that a file could have for one of its layers -> that layer; own names go first."""
        found: dict[str, Place] = {}
        unet = unet_layers(self.channels, self.depths, cross=self.cross, linear=self.linear)
        for diffusers, original, shape in unet:
            own, other = (original, diffusers) if self.original else (diffusers, original)
            found[f"lora_unet_{own}"] = Place(shape)
            found[f"lora_unet_{other}"] = Place(shape, OTHER_UNET)
        for diffusers, original, shape in self.outside:
            found |= {f"lora_unet_{name}": Place(shape, OUTSIDE) for name in (diffusers, original)}
        for encoder in self.encoders:
            for name, shape in encoder_layers(encoder.width, encoder.layers):
                found[encoder.prefix + name] = Place(shape, encoder=encoder)
                found.setdefault(encoder.mistaken + name, Place(shape, OTHER_PREFIX, encoder))
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
    Layout(
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
    Layout(
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
    Layout(
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
