"""The configurations, in diffusers' words, that tensors fit: shapes say sizes, the kind says the rest.

A part as wide as the published one has to be built like it, so that missing layers are found; one of another
width, such as a miniature, is read off its tensors' names.
"""

from __future__ import annotations

import re
from typing import Any

from lora_studio.errors import BaseModelError
from lora_studio.families.original import UNET_PREFIX, VAE_PREFIX, BaseKind, Shapes, TextEncoder

Configuration = dict[str, Any]

_VAE_CHANNELS = (128, 256, 512, 512)  # the published VAE, the same for all kinds
_BLOCKS = 2  # resnets in a level of every published UNet and VAE
_HEAD_CHANNELS = 64
_TIME_IDS, _TIME_ID_CHANNELS = 6, 256  # what SDXL is told of sizes and crops


def configurations_of(
    kind: BaseKind, shapes: Shapes, *, prediction: str, zero_snr: bool
) -> dict[str, Configuration]:
    """Part -> configuration, as a diffusers folder of the same base has it, plus "scheduler".

    Raises BaseModelError when a tensor is missing that says a size.
    """
    reading = _Reading(shapes)
    side = kind.sides[prediction]
    texts = {encoder.part: _text(reading, encoder) for encoder in kind.text_encoders}
    return {
        "unet": _unet(reading, kind, texts, side),
        "vae": _vae(reading, kind, side),
        **texts,
        **{encoder.part.replace("text_encoder", "tokenizer"): {} for encoder in kind.text_encoders},
        "scheduler": _scheduler(prediction, zero_snr=zero_snr),
    }


class _Reading:
    """Sizes read from shapes, with a sentence for what is missing."""

    def __init__(self, shapes: Shapes) -> None:
        self.shapes = shapes

    def size(self, name: str, axis: int) -> int:
        shape = self.shapes.get(name, ())
        if len(shape) <= axis:
            raise BaseModelError(
                f"the base lacks the tensor {name}, or it has no size; download the file again."
            )
        return shape[axis]

    def count(self, pattern: str) -> int:
        """How many numbers stand in the place of `#` in tensors' names, from 0 on."""
        place = re.compile(re.escape(pattern).replace(r"\#", r"(\d+)"))
        found = {int(match[1]) for name in self.shapes if (match := place.match(name))}
        return len(found)


def _unet(reading: _Reading, kind: BaseKind, texts: dict[str, Configuration], side: int) -> Configuration:
    width = reading.size(f"{UNET_PREFIX}input_blocks.0.0.weight", 0)
    channels, depths, blocks = kind.channels, kind.depths, _BLOCKS
    if width != channels[0]:
        channels, depths, blocks = _unet_levels(reading)
    crossed = ["CrossAttnDownBlock2D" if depth else "DownBlock2D" for depth in depths]
    values: Configuration = {
        "_class_name": "UNet2DConditionModel",
        "sample_size": side // 2 ** (len(_vae_levels(reading)[0]) - 1),
        "in_channels": reading.size(f"{UNET_PREFIX}input_blocks.0.0.weight", 1),
        "out_channels": reading.size(f"{UNET_PREFIX}out.2.weight", 0),
        "layers_per_block": blocks,
        "block_out_channels": channels,
        "down_block_types": tuple(crossed),
        "up_block_types": tuple(name.replace("Down", "Up") for name in reversed(crossed)),
        "cross_attention_dim": sum(text["hidden_size"] for text in texts.values()),
        # the number of heads, in spite of its name: diffusers never mended that slip
        "attention_head_dim": kind.num_heads or tuple(wide // _HEAD_CHANNELS for wide in channels),
        "use_linear_projection": kind.linear_projection,
        "addition_embed_type": None,
    }
    if kind.sized:
        pooled = max(text["projection_dim"] for name, text in texts.items() if name != "text_encoder")
        values |= {
            "transformer_layers_per_block": tuple(depth or 1 for depth in depths),
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": _TIME_ID_CHANNELS,
            "projection_class_embeddings_input_dim": pooled + _TIME_IDS * _TIME_ID_CHANNELS,
        }
    return values


def _unet_levels(reading: _Reading) -> tuple[tuple[int, ...], tuple[int, ...], int]:
    """Channels and transformer blocks of each level, and resnets in a level, by the input blocks' names."""
    levels: list[list[tuple[int, int]]] = [[]]
    for number in range(1, reading.count(f"{UNET_PREFIX}input_blocks.#.")):
        block = f"{UNET_PREFIX}input_blocks.{number}."
        if f"{block}0.op.weight" in reading.shapes:
            levels.append([])
        else:
            depth = reading.count(f"{block}1.transformer_blocks.#.")
            levels[-1].append((reading.size(f"{block}0.out_layers.3.weight", 0), depth))
    filled = [level for level in levels if level]
    channels, depths = zip(*(level[0] for level in filled), strict=True)
    return channels, depths, len(filled[0])


def _vae(reading: _Reading, kind: BaseKind, side: int) -> Configuration:
    channels, blocks = _vae_levels(reading)
    return {
        "_class_name": "AutoencoderKL",
        "in_channels": 3,
        "out_channels": 3,
        "latent_channels": reading.size(f"{VAE_PREFIX}post_quant_conv.weight", 0),
        "block_out_channels": channels,
        "down_block_types": ("DownEncoderBlock2D",) * len(channels),
        "up_block_types": ("UpDecoderBlock2D",) * len(channels),
        "layers_per_block": blocks,
        "sample_size": side,
        "scaling_factor": kind.latent_scale,
    }


def _vae_levels(reading: _Reading) -> tuple[tuple[int, ...], int]:
    """Channels of each level, and resnets in a level."""
    if reading.size(f"{VAE_PREFIX}encoder.conv_in.weight", 0) == _VAE_CHANNELS[0]:
        return _VAE_CHANNELS, _BLOCKS
    down = f"{VAE_PREFIX}encoder.down."
    levels = range(reading.count(f"{down}#."))
    channels = tuple(reading.size(f"{down}{level}.block.0.conv1.weight", 0) for level in levels)
    return channels, reading.count(f"{down}0.block.#.")


def _text(reading: _Reading, encoder: TextEncoder) -> Configuration:
    prefix = encoder.prefix
    if encoder.open_clip:
        tokens, places = f"{prefix}token_embedding.weight", f"{prefix}positional_embedding"
        first = f"{prefix}transformer.resblocks.0.mlp.c_fc.weight"
    else:
        # files of before transformers 4.0 have no text_model.
        old = f"{prefix}embeddings.token_embedding.weight" in reading.shapes
        tree = prefix if old else f"{prefix}text_model."
        tokens = f"{tree}embeddings.token_embedding.weight"
        places = f"{tree}embeddings.position_embedding.weight"
        first = f"{tree}encoder.layers.0.mlp.fc1.weight"
    width = reading.size(tokens, 1)
    layers = encoder.layers if width == encoder.width else num_layers(reading.shapes, encoder)
    words = reading.size(tokens, 0)
    projection = reading.size(f"{prefix}text_projection", 1) if encoder.projects else width
    return {
        "model_type": "clip_text_model",
        "architectures": ["CLIPTextModelWithProjection" if encoder.projects else "CLIPTextModel"],
        "vocab_size": words,
        "hidden_size": width,
        "intermediate_size": reading.size(first, 0),
        "num_hidden_layers": layers,
        "num_attention_heads": width // _HEAD_CHANNELS,
        "max_position_embeddings": reading.size(places, 0),
        "projection_dim": projection,
        "hidden_act": "gelu" if encoder.open_clip else "quick_gelu",
        "bos_token_id": words - 2,
        "eos_token_id": words - 1,
        "pad_token_id": words - 1 if encoder.pad_token.startswith("<") else 0,
    }


def num_layers(shapes: Shapes, encoder: TextEncoder) -> int:
    """The layers of a text encoder that are asked: those in the file without a last one that is dropped.

    Converters write the layers that are asked alone, and no text_projection.
    """
    if not encoder.open_clip:
        reading = _Reading(shapes)
        return max(reading.count(f"{encoder.prefix}{tree}encoder.layers.#.") for tree in ("", "text_model."))
    found = _Reading(shapes).count(f"{encoder.prefix}transformer.resblocks.#.")
    whole = f"{encoder.prefix}text_projection" in shapes or found == encoder.layers + 1
    return found - 1 if encoder.drops_last and whole else found


def _scheduler(prediction: str, *, zero_snr: bool) -> Configuration:
    """The noise schedule that all three kinds were trained with (scaled linear betas)."""
    return {
        "_class_name": "DDIMScheduler",
        "num_train_timesteps": 1000,
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "prediction_type": prediction,
        "rescale_betas_zero_snr": zero_snr,
        "timestep_spacing": "trailing" if zero_snr else "leading",
        "clip_sample": False,
        "set_alpha_to_one": False,
        "steps_offset": 1,
    }
