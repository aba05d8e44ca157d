"""The configurations, in diffusers' words, that tensors fit: shapes say sizes, the kind says the rest.

A part as wide as the published one has to be built like it, so that missing layers are found; one of another
width, such as a miniature, is read off its tensors' names. Of tokenizers the file holds none: they are CLIP's
in the package, or a folder's.
"""

from __future__ import annotations

import gzip
import re
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_studio.errors import BaseModelError, reason_of
from lora_studio.families.noise_schedule import STABLE_DIFFUSION, drawing_options
from lora_studio.families.original import UNET_PREFIX, VAE_PREFIX, BaseKind, Shapes, TextEncoder

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Configuration = dict[str, Any]

_VAE_CHANNELS = (128, 256, 512, 512)  # the published VAE, the same for all kinds
_BLOCKS = 2  # resnets in a level of every published UNet and VAE
_HEAD_CHANNELS = 64
_TIME_IDS, _TIME_ID_CHANNELS = 6, 256  # what SDXL is told of sizes and crops


def configurations_of(
    kind: BaseKind, shapes: Shapes, *, prediction: str, zero_snr: bool
) -> dict[str, Configuration]:
    """Part -> configuration as a diffusers folder's, and "scheduler"; BaseModelError if a size is missing."""
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
            fault = f"the base lacks the tensor {name}, or it has no size"
            raise BaseModelError(f"{fault}; download the file again.")
        return shape[axis]

    def count(self, pattern: str) -> int:
        """How many numbers stand in the place of `#` in tensors' names, from 0 on."""
        place = re.compile(re.escape(pattern).replace(r"\#", r"(\d+)"))
        return len({int(match[1]) for name in self.shapes if (match := place.match(name))})


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
        **{"_class_name": "AutoencoderKL", "in_channels": 3, "out_channels": 3},
        "latent_channels": reading.size(f"{VAE_PREFIX}post_quant_conv.weight", 0),
        "block_out_channels": channels,
        "down_block_types": ("DownEncoderBlock2D",) * len(channels),
        "up_block_types": ("UpDecoderBlock2D",) * len(channels),
        "layers_per_block": blocks,
        "sample_size": side,
        "scaling_factor": kind.latent_scale,
    }


def _vae_levels(reading: _Reading) -> tuple[tuple[int, ...], int]:
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
        **{"bos_token_id": words - 2, "eos_token_id": words - 1},
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
    return {
        "_class_name": "DDIMScheduler",
        **STABLE_DIFFUSION,
        "prediction_type": prediction,
        "rescale_betas_zero_snr": zero_snr,
        **drawing_options(zero_terminal_snr=zero_snr),
    }


FILES = ("vocab.json", "merges.txt")
WHOLE = "tokenizer.json"


def tokenizers_for(
    kind: BaseKind, configurations: dict[str, dict[str, Any]], folder: Path | None = None
) -> dict[str, PreTrainedTokenizerBase]:
    """A tokenizer for each text encoder, as long as it reads.

    `folder` holds the files of one tokenizer, or subfolders tokenizer and tokenizer_2 as a diffusers folder.
    Raises BaseModelError that names the files that are missing, or a vocabulary of another size.
    """
    found = {}
    for encoder in kind.text_encoders:
        name = encoder.part.replace("text_encoder", "tokenizer")
        facts = configurations[encoder.part]
        length = facts["max_position_embeddings"]
        choices = (folder / name, folder / "tokenizer") if folder else ()
        place = next((choice for choice in choices if choice.is_dir()), folder)
        tokenizer = clip_tokenizer(place, encoder.pad_token, length)
        if len(tokenizer) != facts["vocab_size"]:
            whose = "base.tokenizer" if folder else "CLIP's vocabulary in the package"
            raise BaseModelError(
                f"{whose} has {len(tokenizer):,} tokens, the base's {encoder.part} {facts['vocab_size']:,}; "
                "set base.tokenizer to a folder with the base's own tokenizer."
            )
        found[name] = tokenizer
    return found


def lacking_files(folder: Path) -> list[str]:
    """Of a CLIP tokenizer's, which may also be one file."""
    return [] if (folder / WHOLE).is_file() else [name for name in FILES if not (folder / name).is_file()]


def clip_tokenizer(folder: Path | None, pad_token: str, length: int) -> PreTrainedTokenizerBase:
    """A folder's, or the one in the package. Raises BaseModelError that names files that are missing."""
    from transformers import CLIPTokenizer

    if folder is None:
        marks = {"bos_token": BEGIN, "eos_token": END, "unk_token": END, "pad_token": pad_token}
        return CLIPTokenizer(clip_vocabulary(), clip_merges(), **marks, model_max_length=length)
    if missing := lacking_files(folder):
        raise BaseModelError(
            f"base.tokenizer: {folder} has no {' and no '.join(missing)}; put {' and '.join(FILES)} (or "
            f"{WHOLE}) of the base's tokenizer there, or leave base.tokenizer out to use CLIP's vocabulary."
        )
    try:
        return CLIPTokenizer.from_pretrained(
            folder, local_files_only=True, pad_token=pad_token, model_max_length=length
        )
    except (OSError, ValueError, RuntimeError, TypeError, KeyError) as error:
        raise BaseModelError(
            f"base.tokenizer: the files in {folder} cannot be loaded: {reason_of(error)}."
        ) from None


BEGIN, END = "<|startoftext|>", "<|endoftext|>"
END_OF_WORD = "</w>"


@cache
def clip_merges() -> list[tuple[str, str]]:
    """The pairs that are joined to one token, the most common first."""
    lines = gzip.decompress(files(__package__).joinpath("clip_merges.txt.gz").read_bytes()).decode("utf-8")
    return [(first, second) for first, _, second in (line.partition(" ") for line in lines.split("\n"))]


def clip_vocabulary() -> dict[str, int]:
    """Token -> number, 49,408 of them."""
    letters = _letters()
    endings = (letter + END_OF_WORD for letter in letters)
    words = [*letters, *endings, *map("".join, clip_merges()), BEGIN, END]
    return {word: place for place, word in enumerate(words)}


def _letters() -> list[str]:
    """A printable letter for each of the 256 bytes, in the order of CLIP's vocabulary."""
    printable = [number for ends in ("!~", "¡¬", "®ÿ") for number in range(ord(ends[0]), ord(ends[1]) + 1)]
    others = (chr(256 + place) for place in range(256 - len(printable)))
    return [*map(chr, printable), *others]
