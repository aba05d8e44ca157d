"""Lumina-Image 2 in single files, and Gemma 2, which reads its text. Sizes are those of Lumina-Image-2.0."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from lora_studio.families.original import Shapes
from lora_studio.families.original.transformers import FileFacts, TextPart, TransformerKind
from lora_studio.families.original.transformers.text import TextKind, decoder

if TYPE_CHECKING:
    from lora_studio.families.original.transformers.configurations import Sizes

HEAD = 256  # of Gemma 2 with 2 or 9 billion parameters
_IN_BLOCK = """
attention.qkv = attn.to_q attn.to_k attn.to_v
attention.q_norm = attn.norm_q
attention.k_norm = attn.norm_k
attention.out = attn.to_out.0
attention_norm2 = norm2
feed_forward.w1 = feed_forward.linear_1
feed_forward.w2 = feed_forward.linear_2
feed_forward.w3 = feed_forward.linear_3
"""
_MODULATED = f"""{_IN_BLOCK}
attention_norm1 = norm1.norm
adaLN_modulation.1 = norm1.linear
"""
_LAYERS = f"""
[layers.# = layers.#]
{_MODULATED}
[noise_refiner.# = noise_refiner.#]
{_MODULATED}
[context_refiner.# = context_refiner.#]
{_IN_BLOCK}
attention_norm1 = norm1
[]
cap_embedder.0 = time_caption_embed.caption_embedder.0
cap_embedder.1 = time_caption_embed.caption_embedder.1
t_embedder.mlp.0 = time_caption_embed.timestep_embedder.linear_1
t_embedder.mlp.2 = time_caption_embed.timestep_embedder.linear_2
final_layer.adaLN_modulation.1 = norm_out.linear_1
final_layer.linear = norm_out.linear_2
"""


def _configure(read: Sizes, counts: Mapping[str, int]) -> dict[str, Any]:
    width, head = read("x_embedder.weight"), read("layers.0.attention.k_norm.weight")
    return {
        "in_channels": read("x_embedder.weight", axis=1) // 4,
        "hidden_size": width,
        "num_layers": counts.get("layers", 0),
        "num_refiner_layers": counts.get("noise_refiner", 0),
        "num_attention_heads": width // head,
        "num_kv_heads": (read("layers.0.attention.qkv.weight") - width) // (2 * head),
        "axes_dim_rope": [head // 3] * 3,
        "cap_feat_dim": read("cap_embedder.1.weight", axis=1),
    }


def _gemma2(shapes: Shapes, projects: bool) -> dict[str, Any]:
    first = "model.layers.0.self_attn."
    return decoder(shapes) | {
        "model_type": "gemma2",
        "architectures": ["Gemma2Model"],
        "hidden_act": "gelu_pytorch_tanh",
        "num_attention_heads": max(1, shapes[f"{first}q_proj.weight"][0] // HEAD),
        "num_key_value_heads": max(1, shapes[f"{first}k_proj.weight"][0] // HEAD),
        "head_dim": HEAD,
        "query_pre_attn_scalar": HEAD,
    }


GEMMA2 = TextKind(
    "Gemma 2",
    "model.layers.0.pre_feedforward_layernorm.weight",
    _gemma2,
    model_types=("gemma2",),
    class_name="Gemma2Model",
    tokenizer="GemmaTokenizerFast",
    begins=True,
    sizes={
        "model.embed_tokens.weight": (256000, 2304),
        "model.layers.0.self_attn.q_proj.weight": (2048, 2304),
        "model.layers.0.self_attn.k_proj.weight": (1024, 2304),
        "model.layers.0.mlp.gate_proj.weight": (9216, 2304),
        "model.layers.25.mlp.gate_proj.weight": (9216, 2304),
    },
)
LUMINA2 = TransformerKind(
    "Lumina-Image 2",
    "Lumina2Transformer2DModel",
    "lumina2",
    (TextPart("text_encoder", "gemma2"),),
    repository="Alpha-VLLM/Lumina-Image-2.0",
    facts=FileFacts(
        signs=("cap_embedder.1.weight", "layers.0.attention.qkv.weight"),
        lacks=("cap_pad_token", "clip_text_pooled_proj.0.weight"),  # Z-Image's, NewBie's
        first=("x_embedder.weight", 64),
        layers=_LAYERS,
        configure=_configure,
        scheduler={"shift": 6.0, "use_dynamic_shifting": False},
        depths={2304: {"layers": 26, "noise_refiner": 2, "context_refiner": 2}},
        published={"Alpha-VLLM/Lumina-Image-2.0": {"cap_feat_dim": 2304}},
        text_kinds={"gemma2": GEMMA2},
    ),
)
