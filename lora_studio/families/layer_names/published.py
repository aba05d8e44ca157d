"""The layers of the published bases as LoRA files name them, and the shapes of their weights.

From lists, which tests/published_names.py writes: what names the layers of a run has no part in them, so that
a fault there cannot hide itself from `verify`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib.resources import files

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
    quirks: frozenset[str] = frozenset()  # rows of the table of UIs that are true of this base

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


_INSIDE = ("down_blocks_", "mid_block_", "up_blocks_")
PUBLISHED = (
    PublishedBase(
        title="SD1",
        key_list="sd1.txt",
        version="sd_v1",
        original=False,
        encoders={"text_encoder": Encoder("lora_te_", "lora_te1_", "emb_params", 768, joined=False)},
        quirks=frozenset({"lokr_unidentified"}),
    ),
    PublishedBase(
        title="SD2",
        key_list="sd2.txt",
        version="sd_v2",
        original=False,
        encoders={"text_encoder": Encoder("lora_te_", "lora_te1_", "emb_params", 1024, joined=True)},
        quirks=frozenset({"attention_unused", "either_projection"}),
    ),
    PublishedBase(
        title="SDXL",
        key_list="sdxl.txt",
        version="sdxl_",
        original=True,
        encoders={
            "text_encoder": Encoder("lora_te1_", "lora_te_", "clip_l", 768, joined=False),
            "text_encoder_2": Encoder("lora_te2_", "lora_te3_", "clip_g", 1280, joined=True),
        },
        quirks=frozenset({"encoder_alone", "two_encoders"}),
    ),
)
