"""The published transformer bases by their ids on the hub: configurations that need no file of theirs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from lora_studio.families.configuration import CONDITIONER
from lora_studio.families.original import Shapes
from lora_studio.families.original.transformers import (
    ANIMA,
    CHROMA,
    FLUX1,
    FLUX2_DEV,
    FLUX2_KLEIN,
    GUIDANCE,
    KREA2,
    QWEN_IMAGE,
    SD3,
    Z_IMAGE,
    Found,
    TransformerKind,
    trained,
)
from lora_studio.families.original.transformers.configurations import (
    ANIMA_PLACES,
    scheduler_configuration,
    vae_configuration,
)
from lora_studio.families.original.transformers.text import FoundText, text_configuration, text_kinds

Configuration = dict[str, Any]
_SD3_SIZES: dict[str, Any] = {"caption_projection_dim": 1536, "num_layers": 24, "num_attention_heads": 24}
_SD3 = {"sample_size": 128, "joint_attention_dim": 4096, "pooled_projection_dim": 2048, **_SD3_SIZES}
_SD3 |= {"pos_embed_max_size": 192, "dual_attention_layers": (), "qk_norm": None}
_SD35_MEDIUM = _SD3 | {
    **{"pos_embed_max_size": 384, "qk_norm": "rms_norm", "dual_attention_layers": tuple(range(13))}
}
_SD35_LARGE = _SD3 | {
    **{"caption_projection_dim": 2432, "num_layers": 38, "num_attention_heads": 38, "qk_norm": "rms_norm"}
}
_GUIDED = {"guidance_embeds": True}
_KLEIN = {"num_layers": 5, "num_single_layers": 20, "num_attention_heads": 24, "guidance_embeds": False}
_KLEIN_4B = _KLEIN | {"joint_attention_dim": 7680}
_KLEIN_9B = _KLEIN | {
    **{"num_layers": 8, "num_single_layers": 24, "num_attention_heads": 32, "joint_attention_dim": 12288}
}
_QWEN_8B, _QWEN_VL = {"qwen3": "qwen3_8b"}, {"qwen3_vl": "qwen3"}  # whose layers are as large
_QWEN_06B = {"qwen3": "qwen3_06b"}
_ANIMA = {"num_attention_heads": 16, **ANIMA_PLACES}


class KnownTransformer(NamedTuple):
    kind: TransformerKind
    sizes: Mapping[str, Any] = {}  # beside those that its class in diffusers has by itself
    distilled: bool = False
    texts: Mapping[str, str] = {}  # kind of a text encoder -> its key in `_TEXT`, if another


PUBLISHED_TRANSFORMERS: Mapping[str, KnownTransformer] = {
    "Tongyi-MAI/Z-Image": KnownTransformer(Z_IMAGE),
    "Tongyi-MAI/Z-Image-Turbo": KnownTransformer(Z_IMAGE, distilled=True),
    "black-forest-labs/FLUX.1-dev": KnownTransformer(FLUX1, _GUIDED),
    "black-forest-labs/FLUX.1-Krea-dev": KnownTransformer(FLUX1, _GUIDED),
    "black-forest-labs/FLUX.1-schnell": KnownTransformer(FLUX1, distilled=True),
    "lodestones/Chroma1-HD": KnownTransformer(CHROMA),
    "lodestones/Chroma1-Base": KnownTransformer(CHROMA),
    "stabilityai/stable-diffusion-3-medium-diffusers": KnownTransformer(SD3, _SD3),
    "stabilityai/stable-diffusion-3.5-medium": KnownTransformer(SD3, _SD35_MEDIUM),
    "stabilityai/stable-diffusion-3.5-large": KnownTransformer(SD3, _SD35_LARGE),
    "black-forest-labs/FLUX.2-klein-base-4B": KnownTransformer(FLUX2_KLEIN, _KLEIN_4B),
    "black-forest-labs/FLUX.2-klein-4B": KnownTransformer(FLUX2_KLEIN, _KLEIN_4B, distilled=True),
    "black-forest-labs/FLUX.2-klein-base-9B": KnownTransformer(FLUX2_KLEIN, _KLEIN_9B, texts=_QWEN_8B),
    "black-forest-labs/FLUX.2-klein-9B": KnownTransformer(FLUX2_KLEIN, _KLEIN_9B, True, _QWEN_8B),
    "black-forest-labs/FLUX.2-dev": KnownTransformer(FLUX2_DEV, _GUIDED),
    "krea/Krea-2-Raw": KnownTransformer(KREA2, texts=_QWEN_VL),
    "krea/Krea-2-Turbo": KnownTransformer(KREA2, distilled=True, texts=_QWEN_VL),
    "Qwen/Qwen-Image": KnownTransformer(QWEN_IMAGE),
    "Qwen/Qwen-Image-2512": KnownTransformer(QWEN_IMAGE),
    "circlestone-labs/Anima-Base-v1.0-Diffusers": KnownTransformer(ANIMA, _ANIMA, texts=_QWEN_06B),
}
_CLIP = "text_model.encoder.layers."
_T5 = "encoder.block."
_TEXT: Mapping[str, Shapes] = {  # the tensors that sizes are read from
    "clip_l": {
        "text_model.embeddings.token_embedding.weight": (49408, 768),
        "text_model.embeddings.position_embedding.weight": (77, 768),
        f"{_CLIP}0.mlp.fc1.weight": (3072, 768),
        f"{_CLIP}11.mlp.fc1.weight": (3072, 768),
    },
    "clip_g": {
        "text_model.embeddings.token_embedding.weight": (49408, 1280),
        "text_model.embeddings.position_embedding.weight": (77, 1280),
        f"{_CLIP}0.mlp.fc1.weight": (5120, 1280),
        f"{_CLIP}31.mlp.fc1.weight": (5120, 1280),
    },
    "t5": {
        "shared.weight": (32128, 4096),
        f"{_T5}0.layer.0.SelfAttention.relative_attention_bias.weight": (32, 64),
        f"{_T5}0.layer.0.SelfAttention.q.weight": (4096, 4096),
        f"{_T5}0.layer.1.DenseReluDense.wi_0.weight": (10240, 4096),
        f"{_T5}23.layer.0.layer_norm.weight": (4096,),
    },
    "qwen3": {
        "model.embed_tokens.weight": (151936, 2560),
        "model.layers.0.self_attn.q_norm.weight": (128,),
        "model.layers.0.self_attn.q_proj.weight": (4096, 2560),
        "model.layers.0.self_attn.k_proj.weight": (1024, 2560),
        "model.layers.0.mlp.gate_proj.weight": (9728, 2560),
        "model.layers.35.mlp.gate_proj.weight": (9728, 2560),
    },
    "qwen3_06b": {
        "model.embed_tokens.weight": (151936, 1024),
        "model.layers.0.self_attn.q_norm.weight": (128,),
        "model.layers.0.self_attn.q_proj.weight": (2048, 1024),
        "model.layers.0.self_attn.k_proj.weight": (1024, 1024),
        "model.layers.0.mlp.gate_proj.weight": (3072, 1024),
        "model.layers.27.mlp.gate_proj.weight": (3072, 1024),
    },
    "qwen3_8b": {
        "model.embed_tokens.weight": (151936, 4096),
        "model.layers.0.self_attn.q_norm.weight": (128,),
        "model.layers.0.self_attn.q_proj.weight": (4096, 4096),
        "model.layers.0.self_attn.k_proj.weight": (1024, 4096),
        "model.layers.0.mlp.gate_proj.weight": (12288, 4096),
        "model.layers.35.mlp.gate_proj.weight": (12288, 4096),
    },
    "mistral": {
        "model.embed_tokens.weight": (131072, 5120),
        "model.layers.0.self_attn.q_proj.weight": (4096, 5120),
        "model.layers.0.self_attn.k_proj.weight": (1024, 5120),
        "model.layers.0.mlp.gate_proj.weight": (32768, 5120),
        "model.layers.39.mlp.gate_proj.weight": (32768, 5120),
    },
    "qwen2_5_vl": {
        "model.embed_tokens.weight": (152064, 3584),
        "model.layers.0.self_attn.k_proj.weight": (512, 3584),
        "model.layers.0.mlp.gate_proj.weight": (18944, 3584),
        "model.layers.27.mlp.gate_proj.weight": (18944, 3584),
    },
}


def known_transformer(model: str) -> KnownTransformer | None:
    """The published base with that id on the hub."""
    own = {
        name: KnownTransformer(kind, sizes)
        for kind in trained()
        if kind.facts
        for name, sizes in kind.facts.published.items()
    }
    return PUBLISHED_TRANSFORMERS.get(model) or own.get(model)


def published_transformer(base: KnownTransformer) -> dict[str, Configuration]:
    """Part -> configuration, and "scheduler", as of the folder of such a base."""
    kind = base.kind
    guided: Shapes = {GUIDANCE: (1, 1)} if base.sizes.get("guidance_embeds") else {}
    texts = {
        one.part: text_configuration(
            kind.title,
            FoundText(
                one.kind, "", text_kinds()[one.kind].sizes or _TEXT[base.texts.get(one.kind, one.kind)]
            ),
            projects=one.projects,
        )
        for one in kind.text
    }
    return {
        "transformer": {"_class_name": kind.class_name, **base.sizes},
        "vae": vae_configuration(kind, None),
        **texts,
        **({CONDITIONER: {"_class_name": kind.conditioner}} if kind.conditioner else {}),
        **{one.part.replace("text_encoder", "tokenizer"): {} for one in kind.text},
        "scheduler": scheduler_configuration(Found(kind, "", guided), distilled=base.distilled),
    }
