"""Text encoders in files of their own or in all-in-one files: which one it is, its configuration and names.

Their tensors have transformers' names, behind nothing, `text_encoders.<name>.transformer.` or the like.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any, NamedTuple

from lora_studio.errors import BaseModelError
from lora_studio.families.original import Shapes
from lora_studio.families.original.names import TensorOrigin
from lora_studio.families.original.transformers import TransformerKind, trained

Configuration = dict[str, Any]
_PREFIX = re.compile(r"^(?:text_encoders\.\w+\.)?(?:transformer\.)?")
_NESTED = (
    (re.compile(r"^(?:model\.)?language_model\."), "model."),
    (re.compile(r"^model\.visual\."), "visual."),
)


class FoundText(NamedTuple):
    """A text encoder in a file."""

    kind: str  # of `KINDS`
    prefix: str
    shapes: Shapes  # without the prefix, of one that can read images as of one that cannot
    spelled: Mapping[str, str] = {}  # how the file has these names, behind the prefix, if not so


@dataclass(frozen=True)
class TextKind:
    title: str
    sign: str  # a tensor that only such a text encoder has
    configure: Callable[[Shapes, bool], Configuration]
    # Of those that a family brings; of the others in the tables of `loading/`:
    model_types: tuple[str, ...] = ()  # as its configuration says
    class_name: str = ""  # in transformers
    tokenizer: str = ""  # likewise
    marks: str = ""  # a regular expression, from "|" on, of what is a token beside words and marks
    begins: bool = False  # its tokenizer puts a mark in front of every caption
    sizes: Shapes = field(default_factory=dict)  # of the published: the tensors that `configure` reads


def _clip(shapes: Shapes, projects: bool) -> Configuration:
    """CLIP-L, or CLIP-G but for its activation; heads are 64 wide."""
    words, width = shapes["text_model.embeddings.token_embedding.weight"]
    projection = shapes.get("text_projection.weight", (width, width))
    return {
        "model_type": "clip_text_model",
        "architectures": ["CLIPTextModelWithProjection" if projects else "CLIPTextModel"],
        "vocab_size": words,
        "hidden_size": width,
        "intermediate_size": shapes["text_model.encoder.layers.0.mlp.fc1.weight"][0],
        "num_hidden_layers": _count(shapes, "text_model.encoder.layers."),
        "num_attention_heads": max(1, width // 64),
        "max_position_embeddings": shapes["text_model.embeddings.position_embedding.weight"][0],
        "projection_dim": projection[0],
        "hidden_act": "quick_gelu",
        **{"bos_token_id": words - 2, "eos_token_id": words - 1, "pad_token_id": words - 1},
    }


def _t5(shapes: Shapes, projects: bool) -> Configuration:
    """The encoder of T5 1.1."""
    words, width = shapes.get("shared.weight") or shapes["encoder.embed_tokens.weight"]
    first = "encoder.block.0.layer."
    buckets, heads = shapes[f"{first}0.SelfAttention.relative_attention_bias.weight"]
    return {
        "model_type": "t5",
        "architectures": ["T5EncoderModel"],
        "vocab_size": words,
        "d_model": width,
        "d_kv": shapes[f"{first}0.SelfAttention.q.weight"][0] // heads,
        "d_ff": shapes[f"{first}1.DenseReluDense.wi_0.weight"][0],
        "num_layers": _count(shapes, "encoder.block."),
        "num_heads": heads,
        "relative_attention_num_buckets": buckets,
        "relative_attention_max_distance": 128,
        "feed_forward_proj": "gated-gelu",
        "layer_norm_epsilon": 1e-6,
        "tie_word_embeddings": True,  # of its two names for one table; there is no head
        **{"pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 0},
    }


def decoder(shapes: Shapes) -> Configuration:
    """What language models have in common, such as Qwen and Mistral."""
    words, width = shapes["model.embed_tokens.weight"]
    return {
        "vocab_size": words,
        "hidden_size": width,
        "intermediate_size": shapes["model.layers.0.mlp.gate_proj.weight"][0],
        "num_hidden_layers": _count(shapes, "model.layers."),
        "hidden_act": "silu",
    }


def _qwen3(shapes: Shapes, projects: bool) -> Configuration:
    words = shapes["model.embed_tokens.weight"][0]
    first = "model.layers.0."
    (head,) = shapes[f"{first}self_attn.q_norm.weight"]
    return {
        "model_type": "qwen3",
        "architectures": ["Qwen3Model"],
        **decoder(shapes),
        "num_attention_heads": shapes[f"{first}self_attn.q_proj.weight"][0] // head,
        "num_key_value_heads": shapes[f"{first}self_attn.k_proj.weight"][0] // head,
        "head_dim": head,
        "max_position_embeddings": 40960,
        "rms_norm_eps": 1e-6,
        "rope_parameters": {"rope_theta": 1_000_000, "rope_type": "default"},
        "tie_word_embeddings": True,
        **({"bos_token_id": 151643, "eos_token_id": 151645} if words > 151645 else {}),
    }


def _qwen3_vl(shapes: Shapes, projects: bool) -> Configuration:
    """What reads text in Qwen3-VL: a Qwen3 with three axes of places."""
    found = _qwen3(shapes, projects)
    half = found["head_dim"] // 2
    side = half * 5 // 16
    rope = {"rope_theta": 5_000_000, "rope_type": "default", "mrope_interleaved": True}
    return found | {
        "model_type": "qwen3_vl_text",
        "architectures": ["Qwen3VLTextModel"],
        "max_position_embeddings": 262144,
        "rope_parameters": rope | {"mrope_section": [half - 2 * side, side, side]},
    }


def _qwen2_5_vl(shapes: Shapes, projects: bool) -> Configuration:
    """What reads text in Qwen2.5-VL, whose heads are 128 wide and have three axes of places."""
    words, width = shapes["model.embed_tokens.weight"]
    first = "model.layers.0."
    heads = max(1, width // 128)
    half = width // heads // 2
    return {
        "model_type": "qwen2_5_vl_text",
        "architectures": ["Qwen2_5_VLTextModel"],
        **decoder(shapes),
        "num_attention_heads": heads,
        "num_key_value_heads": max(1, shapes[f"{first}self_attn.k_proj.weight"][0] * heads // width),
        "max_position_embeddings": 128000,
        "rms_norm_eps": 1e-6,
        "rope_parameters": {
            **{"rope_theta": 1_000_000, "rope_type": "default"},
            "mrope_section": [half // 4, half * 3 // 8, half - half // 4 - half * 3 // 8],
        },
        **({"bos_token_id": 151643, "eos_token_id": 151645} if words > 151645 else {}),
    }


def _mistral(shapes: Shapes, projects: bool) -> Configuration:
    """Mistral-Small 3, whose heads are 128 wide; a file of it may end with the last layer FLUX.2 reads."""
    first, head = "model.layers.0.", 128
    return {
        "model_type": "mistral",
        "architectures": ["MistralModel"],
        **decoder(shapes),
        "num_attention_heads": max(1, shapes[f"{first}self_attn.q_proj.weight"][0] // head),
        "num_key_value_heads": max(1, shapes[f"{first}self_attn.k_proj.weight"][0] // head),
        "head_dim": head,
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-5,
        "rope_parameters": {"rope_theta": 1_000_000_000, "rope_type": "default"},
        "sliding_window": None,
        "tie_word_embeddings": False,
    }


_CLIP_G = 1280
_TOKENS = "text_model.embeddings.token_embedding.weight"
KINDS: Mapping[str, TextKind] = {
    "clip_l": TextKind("CLIP-L", _TOKENS, _clip),
    "clip_g": TextKind("CLIP-G", _TOKENS, _clip),
    "t5": TextKind("T5-XXL", "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight", _t5),
    "qwen3_vl": TextKind("Qwen3-VL", "visual.deepstack_merger_list.0.norm.weight", _qwen3_vl),
    "qwen3": TextKind("Qwen3", "model.layers.0.self_attn.q_norm.weight", _qwen3),
    "qwen2_5_vl": TextKind("Qwen2.5-VL", "model.layers.0.self_attn.q_proj.bias", _qwen2_5_vl),
    # Which the two before it have, too.
    "mistral": TextKind("Mistral-Small", "model.layers.0.self_attn.q_proj.weight", _mistral),
}


@cache
def text_kinds() -> dict[str, TextKind]:
    """All that a family reads; those that families bring come first, as Mistral's sign is in many."""
    own = (kind.facts.text_kinds for kind in trained() if kind.facts)
    return {key: one for kinds in (*own, KINDS) for key, one in kinds.items()}


def title_of(kind: str) -> str:
    return text_kinds()[kind].title


def _titles(kind: TransformerKind) -> str:
    return " and ".join(title_of(one.kind) for one in kind.text)


_STRANGERS = (  # tensors, what has them
    (r"(model\.)?visual\.blocks\.0\.mlp\.fc1\.", "a Qwen2-VL"),
    (r"encoder\.block\.1\.layer\.0\.SelfAttention\.relative_attention_bias", "UMT5 (Wan's)"),
    (r"transformer\.resblocks|text_model\.transformer\.resblocks", "a CLIP in OpenCLIP's layout"),
    (r"vision_model\.", "a CLIP with its image encoder"),
)


def _plain(name: str) -> str:
    """Of a tensor of a model that can read images, as one that cannot has it."""
    for pattern, instead in _NESTED:
        name = pattern.sub(instead, name)
    return name


def find_text(name: str, shapes: Shapes, *, wide: int = _CLIP_G) -> list[FoundText]:
    """All text encoders in the file called `name`; a CLIP at least `wide` is CLIP-G.

    Raises BaseModelError that names one that no family here reads.
    """
    groups: dict[str, dict[str, str]] = {}  # prefix -> plain name -> the one in the file, behind the prefix
    for key in shapes:
        match = _PREFIX.match(key)
        prefix = match[0] if match else ""
        behind = key.removeprefix(prefix)
        groups.setdefault(prefix, {})[_plain(behind)] = behind
    found = []
    for prefix, spelled in groups.items():
        own = {plain: shapes[prefix + behind] for plain, behind in spelled.items()}
        for pattern, what in _STRANGERS:
            if any(re.match(pattern, key) for key in own):
                read = ", ".join(f"{kind.title} reads {_titles(kind)}" for kind in trained())
                raise BaseModelError(f"{name} holds {what}; {read}.")
        if kind := _kind_of(own, prefix, wide):
            found.append(FoundText(kind, prefix, own, spelled))
    return found


def _kind_of(shapes: Shapes, prefix: str, wide: int) -> str:
    if _TOKENS in shapes:
        named = next((one for one in ("clip_l", "clip_g") if f".{one}." in prefix), "")
        return named or ("clip_g" if shapes[_TOKENS][1] >= wide else "clip_l")
    kinds = text_kinds().items()
    return next((key for key, one in kinds if not key.startswith("clip") and one.sign in shapes), "")


def text_configuration(name: str, found: FoundText, *, projects: bool) -> Configuration:
    """Raises BaseModelError for one that is not whole."""
    try:
        values = text_kinds()[found.kind].configure(found.shapes, projects)
        return values | {"hidden_act": "gelu"} if found.kind == "clip_g" else values
    except (KeyError, ValueError, IndexError, ZeroDivisionError):
        title = title_of(found.kind)
        raise BaseModelError(
            f"{name} lacks tensors of {title} that say its size; download the file again."
        ) from None


def text_origins(found: FoundText, wanted: Shapes) -> dict[str, TensorOrigin]:
    """Every tensor of `wanted` -> where it lies; a name that the file lacks leads to none of it."""
    origins = {}
    for key in wanted:
        spelled = [key, f"text_model.{key}", f"model.{key}"]
        spelled += [
            key.replace("encoder.embed_tokens", "shared"),
            key.replace("shared", "encoder.embed_tokens"),
        ]
        own = next((one for one in spelled if one in found.shapes), key)
        origins[key] = TensorOrigin(found.prefix + found.spelled.get(own, own))
    return origins


def _count(shapes: Shapes, start: str) -> int:
    found = (re.match(rf"{re.escape(start)}(\d{{1,4}})\.", key) for key in shapes)
    return 1 + max((int(one[1]) for one in found if one), default=-1)
