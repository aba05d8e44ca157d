"""What a part's configuration may say, looked at before anything is built from it.

Numbers have ranges, and what the header of the part's weights shows counts: a configuration that says
something else belongs to another model, or is made to take all memory.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from lora_studio.errors import BaseModelError, reason_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Shapes = Mapping[str, tuple[int, ...]]
CONDITIONER, WORDS = "text_conditioner", "t5_tokenizer"  # a part, and what makes the tokens that it knows
INDEXES = ("model_index.json", "modular_model_index.json")  # of a diffusers folder, and of a modular one
MAX_BYTES = 1_000_000  # of a configuration's file
_MOST_NUMBER = 1e6  # of any number but these
_MOST = {"rope_theta": 1e12}
_MOST_LAYERS = 100  # where there are no weights to count them in
_FEWEST_TOKENS = 3


class Bounds(NamedTuple):
    """Of a number that may be left out, unless it is `needed`."""

    least: float
    most: float
    whole: bool = False
    needed: bool = False

    def has(self, value: Any) -> bool:
        is_number = type(value) is int or (type(value) is float and not self.whole)
        return is_number and self.least <= value <= self.most

    def __str__(self) -> str:
        return f"{self.least:g} to {self.most:g} are possible"


_BETA, _NUM_BETAS = Bounds(1e-8, 0.1), Bounds(701, 10_000, whole=True)  # the probe asks for the 700th
_EPSILON, _SHARE, _FACTOR = Bounds(1e-12, 0.1), Bounds(0.0, 1.0), Bounds(1e-3, 1e3)
_GROUPS = Bounds(1, 1024, whole=True)
RANGES: Mapping[str, Mapping[str, Bounds]] = {
    "unet": {
        "sample_size": Bounds(1, 1024, whole=True, needed=True),
        "norm_num_groups": _GROUPS,
        "norm_eps": _EPSILON,
        "dropout": _SHARE,
        "mid_block_scale_factor": _FACTOR,
        "resnet_out_scale_factor": _FACTOR,
    },
    "vae": {"scaling_factor": _FACTOR, "norm_num_groups": _GROUPS},
    "text_encoder": {
        "num_attention_heads": Bounds(1, 1024, whole=True, needed=True),
        "layer_norm_eps": _EPSILON,
        "attention_dropout": _SHARE,
        **dict.fromkeys(
            ("bos_token_id", "eos_token_id", "pad_token_id"), Bounds(0, _MOST_NUMBER, whole=True)
        ),
    },
    "language_model": {
        "num_attention_heads": Bounds(1, 1024, whole=True, needed=True),
        "rms_norm_eps": _EPSILON,
        "attention_dropout": _SHARE,
    },
    "t5": {
        "num_heads": Bounds(1, 1024, whole=True, needed=True),
        "d_kv": Bounds(1, 4096, whole=True, needed=True),
        "relative_attention_num_buckets": Bounds(1, 4096, whole=True),
        "layer_norm_epsilon": _EPSILON,
        "dropout_rate": _SHARE,
    },
    "text_conditioner": {
        "num_attention_heads": Bounds(1, 1024, whole=True),
        "min_sequence_length": Bounds(0, 4096, whole=True),
    },
    "flow_scheduler": {
        "shift": _FACTOR,
        **dict.fromkeys(("base_shift", "max_shift"), Bounds(-10, 10)),
        **dict.fromkeys(("base_image_seq_len", "max_image_seq_len"), Bounds(1, _MOST_NUMBER, whole=True)),
    },
    "scheduler": {
        "num_train_timesteps": _NUM_BETAS,
        "beta_start": _BETA,
        "beta_end": _BETA,
    },
}
_ACTIVATIONS = ("silu", "swish", "gelu", "mish", "relu")  # that diffusers knows; which it is, a family says
_WORDS: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "text_encoder": {"hidden_act": ("quick_gelu", "gelu")},
    "unet": {"act_fn": _ACTIVATIONS},
    "vae": {"act_fn": _ACTIVATIONS},
}
_COUNTS = re.compile(
    r"layers_per_block|(reverse_)?transformer_layers_per_block|num_hidden_layers|num_(single_)?layers"
    r"|num_res_blocks"
    r"|n(_refiner)?_layers"
)
_NUMBER = re.compile(r"(\d{1,6})\.")
_LEVELS = re.compile(
    r"(down|up)_block_types|block_out_channels|attention_head_dim|num_attention_heads|dim_mult"
    r"|temperal_downsample"
)


def read_json(path: Path) -> dict[str, Any]:
    """A configuration's file. Raises BaseModelError if it is missing, no configuration or an absurd one."""
    name = f"{path.parent.name}/{path.name}"
    try:
        if path.stat().st_size > MAX_BYTES:
            raise BaseModelError(f"{path} is larger than a configuration is; download the base model again.")
        values = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise BaseModelError(f"the base model lacks {name}; download it again.") from None
    except (OSError, ValueError, RecursionError) as error:
        fault = f"{path} is not readable JSON ({reason_of(error)})"
        raise BaseModelError(f"{fault}; download the base model again.") from None
    if not isinstance(values, dict):
        raise BaseModelError(f"{path} does not hold a JSON object; download the base model again.")
    for key, value in _values(values):
        most = _MOST.get(key, _MOST_NUMBER)
        if isinstance(value, int | float) and not abs(value) <= most:  # which no number is not
            what = f"{path} says {key} = {value:g}, and numbers up to {most:,.0f} are possible"
            raise BaseModelError(f"{what}; download the base model again.")
    return values


def index_of(folder: Path) -> Path:
    """The file that lists a diffusers folder's parts; the usual one where there is none."""
    found = (folder / name for name in INDEXES if (folder / name).is_file())
    return next(found, folder / INDEXES[0])


def text_alone(config: Mapping[str, Any]) -> dict[str, Any]:
    """Of a model of text and images what concerns its text; all of another's."""
    own = {key: value for key, value in config.items() if key not in ("text_config", "vision_config")}
    text = config.get("text_config") if "vision_config" in config else None
    return own | (text if isinstance(text, dict) else {})


def _values(table: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """All numbers, words and the like in it, by the nearest name."""
    waiting: list[tuple[str, Any]] = list(table.items())
    while waiting:
        key, value = waiting.pop()
        if isinstance(value, dict):
            waiting += value.items()
        elif isinstance(value, list):
            waiting += [(key, one) for one in value]
        else:
            yield key, value


def fault_of(part: str, config: Mapping[str, Any], shapes: Shapes) -> str:
    """What no part of a base that is known says, or more layers than its weights can be of; else ""."""
    return next(_faults(_kind_of(part, config), config, shapes), "")


def contradiction(part: str, config: Mapping[str, Any], shapes: Shapes) -> str:
    """Where a part's configuration says something else than the shapes of its weights; else ""."""
    return next(
        (
            f"says {key} = {config[key]!r:.60}, but the weights beside it have {seen}"
            for key, seen in facts_of_shapes(part, shapes).items()
            if not _agrees(key, config.get(key), seen)
        ),
        "",
    )


def _kind(part: str) -> str:
    return "text_encoder" if part.startswith("text_encoder") else part


def _kind_of(part: str, config: Mapping[str, Any]) -> str:
    """As `_kind`, with a language model or T5 told from a CLIP; a scheduler of flow matching has no betas."""
    if part.startswith("text_encoder") and "clip" not in str(config.get("model_type", "clip")):
        return "t5" if config.get("model_type") == "t5" else "language_model"
    if part == "scheduler" and "FlowMatch" in str(config.get("_class_name")):
        return "flow_scheduler"
    return _kind(part)


def _faults(kind: str, config: Mapping[str, Any], shapes: Shapes) -> Iterator[str]:
    numbers = (int(one) for name in shapes for one in re.findall(r"\.(\d{1,6})(?=\.)", name))
    most = 1 + max(numbers, default=_MOST_LAYERS - 1)
    for key, value in _values(config):
        if _COUNTS.fullmatch(key) and isinstance(value, int) and value > most:
            yield f"says {key} = {value}, but its weights are of {most} at most"
    for key, value in config.items():
        if _LEVELS.fullmatch(key) and isinstance(value, list) and len(value) > most:
            yield f"has {len(value):,} {key}, but its weights are of {most} levels at most"
    for key, allowed in RANGES.get(kind, {}).items():
        value = config.get(key)
        if (value is not None or allowed.needed) and not allowed.has(value):
            yield f"says {key} = {value!r:.60}, but {allowed}"
    betas = config.get("trained_betas") if kind == "scheduler" else None
    if betas is not None and not (
        isinstance(betas, list) and _NUM_BETAS.has(len(betas)) and all(map(Bounds(1e-8, 0.9999).has, betas))
    ):
        yield f"says trained_betas = {betas!r:.60}, but {_NUM_BETAS} of them, between 0 and 1"
    for key, words in _WORDS.get(kind, {}).items():
        if config.get(key, words[0]) not in words:
            yield f"says {key} = {config[key]!r:.60}, but possible are: {', '.join(words)}"


def tokenizer_fault(tokenizer: PreTrainedTokenizerBase, words: int, places: int) -> str:
    """Why a text encoder that knows so many words and places cannot read what it writes; else "".

    One that says no length, or a longer one, gets the encoder's.
    """
    needed = ("bos", "eos", "pad") if type(tokenizer).__name__.startswith("CLIP") else ("eos", "pad")
    marks = [getattr(tokenizer, f"{one}_token_id", None) for one in needed]
    if not all(isinstance(one, int) and 0 <= one < words for one in marks):
        return "has no marks of begin, end and padding that the text encoder knows"
    if len(tokenizer) > words:
        return f"has {len(tokenizer):,} tokens, and the text encoder knows {words:,}"
    if 2 * len(tokenizer) < words:  # an encoder may have some to spare
        return f"has only {len(tokenizer):,} tokens, and the text encoder knows {words:,}"
    length = tokenizer.model_max_length
    if not isinstance(length, int | float) or not length > _FEWEST_TOKENS:
        return f"says model_max_length = {length!r:.60}, but more than {_FEWEST_TOKENS} are needed"
    tokenizer.model_max_length = int(min(length, places))
    return ""


def _agrees(key: str, said: Any, seen: Any) -> bool:
    """None is what is not known. A text encoder's last layer may be left out."""
    if said is None or seen is None:
        return True
    if isinstance(seen, list):
        each = said if isinstance(said, list) else [said] * len(seen)
        return len(each) == len(seen) and all(map(_agrees, [key] * len(seen), each, seen))
    return isinstance(said, list) or said == seen or (key == "num_hidden_layers" and said == seen - 1)


def facts_of_shapes(part: str, shapes: Shapes) -> dict[str, Any]:
    """Entries of a part's configuration, as far as the shapes of its weights tell (by diffusers' names)."""
    kind = _kind(part)
    if kind == "text_encoder":
        names = {name.removeprefix("text_model."): shape for name, shape in shapes.items()}
        sides: dict[str, tuple[str, int]] = {
            "vocab_size": ("embeddings.token_embedding.weight", 0),
            "hidden_size": ("embeddings.token_embedding.weight", 1),
            "max_position_embeddings": ("embeddings.position_embedding.weight", 0),
            "intermediate_size": ("encoder.layers.0.mlp.fc1.weight", 0),
            "projection_dim": ("text_projection.weight", 0),
        }
        return _read(names, sides) | _counted(names, {"num_hidden_layers": "encoder.layers"})
    if kind == "vae":
        sides = {
            "in_channels": ("encoder.conv_in.weight", 1),
            "out_channels": ("decoder.conv_out.weight", 0),
            **dict.fromkeys(("latent_channels", "z_dim"), ("decoder.conv_in.weight", 1)),
            "base_dim": ("encoder.conv_in.weight", 0),  # of a video's, with z_dim
        }
        return _read(shapes, sides) | _levels(shapes, "encoder.down_blocks")
    if kind != "unet":
        return {}
    sides = {"in_channels": ("conv_in.weight", 1), "out_channels": ("conv_out.weight", 0)}
    found = _read(shapes, sides) | _levels(shapes, "down_blocks")
    for name, shape in shapes.items():
        if name.endswith("attn2.to_k.weight") and len(shape) == 2:
            found["cross_attention_dim"] = shape[1]
        elif name.endswith("attentions.0.proj_in.weight"):
            found["use_linear_projection"] = len(shape) == 2
    return found


def _read(shapes: Shapes, sides: Mapping[str, tuple[str, int]]) -> dict[str, Any]:
    return {
        key: shapes[name][side] for key, (name, side) in sides.items() if len(shapes.get(name, ())) > side
    }


def _counted(shapes: Shapes, places: Mapping[str, str]) -> dict[str, Any]:
    """How many there are in each place, if any."""
    counts = {key: _count(shapes, place) for key, place in places.items()}
    return {key: count for key, count in counts.items() if count}


def _count(shapes: Shapes, place: str) -> int:
    begin = f"{place}."
    found = (_NUMBER.match(name, len(begin)) for name in shapes if name.startswith(begin))
    return 1 + max((int(one[1]) for one in found if one), default=-1)


def _levels(shapes: Shapes, place: str) -> dict[str, Any]:
    """Of each level its channels, residual blocks and, where it has attention, transformer blocks."""
    levels = [f"{place}.{number}" for number in range(_count(shapes, place))]
    if not levels:
        return {}
    channels = [shapes.get(f"{level}.resnets.0.conv1.weight", (None,))[0] for level in levels]
    depths = [_count(shapes, f"{level}.attentions.0.transformer_blocks") or None for level in levels]
    return {
        "block_out_channels": channels,
        "layers_per_block": [_count(shapes, f"{level}.resnets") or None for level in levels],
        "transformer_layers_per_block": depths,
    }
