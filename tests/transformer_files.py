"""Miniatures of the transformer families as the files that UIs have: one for each part, or all in one."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import AutoencoderKL, AutoencoderKLFlux2, AutoencoderKLQwenImage
from safetensors.torch import save_file
from tiny import chat_tokenizer, gemma_tokenizer, mistral_tokenizer, t5_tokenizer
from torch import Tensor, nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    Gemma2Config,
    Gemma2Model,
    MistralConfig,
    MistralModel,
    Qwen2_5_VLTextConfig,
    Qwen2_5_VLTextModel,
    Qwen3Config,
    Qwen3Model,
    Qwen3VLTextConfig,
    Qwen3VLTextModel,
    T5Config,
    T5EncoderModel,
)

from lora_studio.families.original.transformers.names import transformer_origins
from lora_studio.families.stored import shapes_of

KEYS = Path(__file__).parent / "families" / "original_keys"
PREFIX = "model.diffusion_model."
WORDS = 49_408  # of CLIP, whose vocabulary comes with the package
TEXT, POOLED = 24, 32
_STREAMS = {
    "num_layers": 2,
    "num_single_layers": 2,
    "attention_head_dim": 32,
    "num_attention_heads": 2,
    "joint_attention_dim": TEXT,
    "axes_dims_rope": (4, 14, 14),
}
_FLUX2 = {
    **{"num_layers": 1, "num_single_layers": 1, "attention_head_dim": 32, "num_attention_heads": 2},
    **{"joint_attention_dim": 3 * TEXT, "axes_dims_rope": (8, 8, 8, 8)},
}
_ANIMA = {
    **{"num_layers": 2, "attention_head_dim": 32, "num_attention_heads": 2, "text_embed_dim": 20},
    **{"adaln_lora_dim": 8, "rope_scale": (1.0, 4.0, 4.0), "extra_pos_embed_type": None},
}
TABLES = {"flux2_klein": "flux2", "flux2_dev": "flux2"}  # family -> its table of names, if not its own
TRANSFORMERS: Mapping[str, tuple[str, dict[str, Any]]] = {
    "z_image": (
        "ZImageTransformer2DModel",
        {
            **{"dim": 32, "n_layers": 2, "n_refiner_layers": 1, "n_heads": 2, "n_kv_heads": 2},
            **{"cap_feat_dim": TEXT, "axes_dims": [4, 6, 6], "axes_lens": [1536, 512, 512]},
        },
    ),
    "flux1": (
        "FluxTransformer2DModel",
        _STREAMS | {"pooled_projection_dim": POOLED, "guidance_embeds": True},
    ),
    "chroma": (
        "ChromaTransformer2DModel",
        _STREAMS | {"approximator_hidden_dim": 16, "approximator_layers": 2},
    ),
    "krea2": (
        "Krea2Transformer2DModel",
        {
            **{"num_layers": 1, "num_layerwise_text_blocks": 1, "num_refiner_text_blocks": 1},
            **{"attention_head_dim": 32, "num_attention_heads": 2, "num_key_value_heads": 1},
            **{"intermediate_size": 48, "timestep_embed_dim": 16, "text_hidden_dim": TEXT},
            **{"text_num_attention_heads": 3, "text_num_key_value_heads": 3, "text_intermediate_size": 40},
            "axes_dims_rope": (8, 12, 12),
        },
    ),
    "flux2_klein": ("Flux2Transformer2DModel", _FLUX2 | {"guidance_embeds": False}),
    "flux2_dev": ("Flux2Transformer2DModel", _FLUX2 | {"guidance_embeds": True}),
    "sd3": (
        "SD3Transformer2DModel",
        {
            **{"num_layers": 2, "num_attention_heads": 1, "caption_projection_dim": 64, "sample_size": 128},
            **{"joint_attention_dim": TEXT, "pooled_projection_dim": POOLED + 40, "pos_embed_max_size": 32},
            **{"dual_attention_layers": (0,), "qk_norm": "rms_norm"},
        },
    ),
    "lumina2": (
        "Lumina2Transformer2DModel",
        {
            **{"hidden_size": 48, "num_layers": 2, "num_refiner_layers": 1, "num_attention_heads": 2},
            **{"num_kv_heads": 1, "axes_dim_rope": [8, 8, 8], "cap_feat_dim": TEXT},
        },
    ),
    "anima": ("CosmosTransformer3DModel", _ANIMA),
    "qwen_image": (
        "QwenImageTransformer2DModel",
        {
            **{"num_layers": 2, "attention_head_dim": 32, "num_attention_heads": 2},
            **{"joint_attention_dim": TEXT, "axes_dims_rope": (4, 14, 14)},
        },
    ),
}
TEXTS = {  # part -> its name in an all-in-one file
    "z_image": {"text_encoder": "qwen3_4b"},
    "flux1": {"text_encoder": "clip_l", "text_encoder_2": "t5xxl"},
    "chroma": {"text_encoder": "t5xxl"},
    "sd3": {"text_encoder": "clip_l", "text_encoder_2": "clip_g", "text_encoder_3": "t5xxl"},
    "qwen_image": {"text_encoder": "qwen25_7b"},
    "krea2": {"text_encoder": "qwen3vl_4b"},
    "anima": {"text_encoder": "qwen3_06b"},
    "flux2_klein": {"text_encoder": "qwen3_4b"},
    "flux2_dev": {"text_encoder": "mistral_3_small"},
    "lumina2": {"text_encoder": "gemma_2_2b"},
}


def published_shapes(name: str) -> dict[str, tuple[int, ...]]:
    """Of every tensor of a published transformer in the original layout, without a prefix."""
    found: dict[str, tuple[int, ...]] = {}
    for line in (KEYS / f"{name}.txt").read_text("utf-8").splitlines():
        key, _, sides = line.partition(" ")
        shape = tuple(int(side) for side in sides.split("x"))
        blocks = re.search(r"\[(\d+)-(\d+)\]", key)
        numbers = range(int(blocks[1]), int(blocks[2]) + 1) if blocks else [None]
        for number in numbers:
            found[key if number is None else re.sub(r"\[.*?\]", str(number), key)] = shape
    return found


def new_transformer(family: str) -> nn.Module:
    """With random numbers where a new one has zeros or ones, too."""
    class_name, sizes = TRANSFORMERS[family]
    transformer: nn.Module = getattr(diffusers, class_name)(**sizes)
    with torch.no_grad():
        for weight in transformer.state_dict().values():
            weight.normal_()
    return transformer


def new_vae(family: str) -> nn.Module:
    if family in ("qwen_image", "krea2", "anima"):
        vae = AutoencoderKLQwenImage(base_dim=8)
        with torch.no_grad():
            for weight in vae.parameters():
                weight.normal_(std=0.1)
        return vae
    if family in TABLES:
        vae = AutoencoderKLFlux2(block_out_channels=(32,) * 4, layers_per_block=1)
        torch.nn.init.normal_(vae.bn.running_mean)
        torch.nn.init.uniform_(vae.bn.running_var, 0.5, 2.0)
        return vae
    scale, shift = (1.5305, 0.0609) if family == "sd3" else (0.3611, 0.1159)
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(32,) * 4,
        layers_per_block=1,
        latent_channels=16,
        sample_size=1024,
        scaling_factor=scale,
        shift_factor=shift,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )


def new_text(family: str, part: str) -> nn.Module:
    name = TEXTS[family][part]
    if name.startswith("qwen3_"):
        layers = 28 if family in TABLES else 2  # of which 27 are read
        sizes = {"hidden_size": TEXT, "intermediate_size": 32, "num_hidden_layers": layers, "head_dim": 8}
        heads = {"num_attention_heads": 2, "num_key_value_heads": 1}
        rope = {"rope_theta": 1_000_000, "rope_type": "default"}  # as in the published ones
        words = {"vocab_size": len(chat_tokenizer()), "rope_parameters": rope}
        return Qwen3Model(Qwen3Config(**words, **sizes, **heads))
    if name == "qwen3vl_4b":
        rope = {"rope_theta": 5_000_000, "rope_type": "default", "mrope_section": [2, 1, 1]}
        sizes = {"hidden_size": TEXT, "intermediate_size": 32, "num_hidden_layers": 35, "head_dim": 8}
        heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "tie_word_embeddings": True}
        words = {"vocab_size": len(chat_tokenizer()), "rope_parameters": rope | {"mrope_interleaved": True}}
        return Qwen3VLTextModel(Qwen3VLTextConfig(**words, **sizes, **heads))
    if name == "qwen25_7b":
        rope = {"rope_theta": 1_000_000, "rope_type": "default", "mrope_section": [3, 4, 5]}
        sizes = {"hidden_size": TEXT, "intermediate_size": 32, "num_hidden_layers": 2, "rms_norm_eps": 1e-6}
        heads = {"num_attention_heads": 1, "num_key_value_heads": 1}
        marks = {"bos_token_id": None, "eos_token_id": None}
        words = {"vocab_size": len(chat_tokenizer()), "rope_parameters": rope}
        return Qwen2_5_VLTextModel(Qwen2_5_VLTextConfig(**words, **sizes, **heads, **marks))
    if name == "mistral_3_small":
        sizes = {"hidden_size": TEXT, "intermediate_size": 32, "num_hidden_layers": 30, "head_dim": 128}
        rope = {"rope_theta": 1_000_000_000, "rope_type": "default"}
        words = {"vocab_size": len(mistral_tokenizer()), "rope_parameters": rope, "rms_norm_eps": 1e-5}
        heads = {"num_attention_heads": 1, "num_key_value_heads": 1, "sliding_window": None}
        return MistralModel(MistralConfig(**words, **sizes, **heads))
    if name == "gemma_2_2b":
        sizes = {"hidden_size": TEXT, "intermediate_size": 32, "num_hidden_layers": 3, "head_dim": 256}
        heads = {"num_attention_heads": 2, "num_key_value_heads": 1}
        return Gemma2Model(Gemma2Config(vocab_size=len(gemma_tokenizer()), **sizes, **heads))
    if name == "t5xxl":
        sizes = {"d_model": TEXT, "d_ff": 32, "d_kv": 8, "num_heads": 2, "num_layers": 2}
        words = {"vocab_size": len(t5_tokenizer()) + 3, "feed_forward_proj": "gated-gelu"}
        return T5EncoderModel(T5Config(**sizes, **words))
    width, projection = (POOLED, POOLED) if name == "clip_l" else (36, 40)
    layers = {"num_hidden_layers": 2, "num_attention_heads": 1, "intermediate_size": 32}
    activation = "quick_gelu" if name == "clip_l" else "gelu"
    config = CLIPTextConfig(
        vocab_size=WORDS, hidden_size=width, projection_dim=projection, hidden_act=activation, **layers
    )
    return (CLIPTextModelWithProjection if family == "sd3" else CLIPTextModel)(config)


def original_transformer(family: str, parts: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    """Without a prefix, and with a text conditioner's, which lies in the same file.

    Which layer is which is checked against diffusers' converters beside this.
    """
    transformer = parts["transformer"]
    state = transformer.state_dict()
    names = {"sd3": "sd35_medium", "flux2_klein": "flux2_klein_4b"}
    published, table = published_shapes(names.get(family, family)), TABLES.get(family, family)
    origins = transformer_origins(table, published, shapes_of(transformer), "")
    pieces: dict[str, list[tuple[int, Tensor]]] = {}
    for key, origin in origins.items():
        tensor = torch.cat(state[key].chunk(2)[::-1]) if origin.swapped else state[key]
        tensor = tensor.flatten() if origin.sides else tensor
        pieces.setdefault(origin.name, []).append((origin.rows[0] if origin.rows else 0, tensor))
    ordered = {name: sorted(own, key=lambda one: one[0]) for name, own in pieces.items()}
    found = {
        name: own[0][1] if len(own) == 1 else torch.cat([one for _, one in own])
        for name, own in ordered.items()
    }
    if "text_conditioner" in parts:
        found |= {f"llm_adapter.{key}": one for key, one in parts["text_conditioner"].state_dict().items()}
    return found


_IN_RESIDUAL = {"norm1": 0, "conv1": 2, "norm2": 3, "conv2": 6}
_OF_VIDEO = (  # a name of diffusers -> the original's, whose decoder counts its layers through
    (r"^quant_conv", "conv1"),
    (r"^post_quant_conv", "conv2"),
    (r"coder\.conv_in", "coder.conv1"),
    (r"coder\.norm_out", "coder.head.0"),
    (r"coder\.conv_out", "coder.head.2"),
    (r"mid_block\.resnets\.(\d)", lambda found: f"middle.{2 * int(found[1])}"),
    (r"mid_block\.attentions\.0", "middle.1"),
    (r"down_blocks", "downsamples"),
    (r"up_blocks\.(\d)\.resnets\.(\d)", lambda found: f"upsamples.{4 * int(found[1]) + int(found[2])}"),
    (r"up_blocks\.(\d)\.upsamplers\.0", lambda found: f"upsamples.{4 * int(found[1]) + 3}"),
    (r"conv_shortcut", "shortcut"),
    *((rf"(?<=\d)\.{own}(?=\.)", f".residual.{place}") for own, place in _IN_RESIDUAL.items()),
)


def original_vae(vae: nn.Module) -> dict[str, Tensor]:
    from original_layout import vae_name

    if isinstance(vae, AutoencoderKLQwenImage):
        found = {}
        for key, tensor in vae.state_dict().items():
            for pattern, name in _OF_VIDEO:
                key = re.sub(pattern, name, key)
            found[key] = tensor
        return found
    found = {vae_name(key, 4): tensor for key, tensor in vae.state_dict().items()}
    if isinstance(vae, AutoencoderKLFlux2):  # which has them within, and may lack a counter
        del found["bn.num_batches_tracked"]
        within = {"quant_conv": "encoder.quant_conv", "post_quant_conv": "decoder.post_quant_conv"}
        found = {re.sub(r"^\w*quant_conv", lambda m: within[m[0]], key): one for key, one in found.items()}
    return found


def original_text(module: nn.Module) -> dict[str, Tensor]:
    """As files for ComfyUI have it: a CLIP with `text_model.`, Qwen3 with `model.`, T5 with one embedding."""
    models = (Qwen3Model, Qwen2_5_VLTextModel, Qwen3VLTextModel, MistralModel, Gemma2Model)
    starts = {CLIPTextModel: "text_model.", **dict.fromkeys(models, "model.")}
    start = starts.get(type(module), "")
    state = {start + key: tensor for key, tensor in module.state_dict().items()}
    state.pop("encoder.embed_tokens.weight", None)
    if isinstance(module, MistralModel):  # FLUX.2's ends with the last layer that is read, without a norm
        state = {key: one for key, one in state.items() if key != "model.norm.weight"}
        state["tekken_model"] = torch.zeros(4, dtype=torch.uint8)
    if isinstance(module, Qwen3VLTextModel):  # as its makers and transformers name it
        state = {key.replace("model.", "model.language_model.", 1): one for key, one in state.items()}
        state["model.visual.deepstack_merger_list.0.norm.weight"] = torch.ones(4)
    if isinstance(module, Qwen2_5_VLTextModel):  # with what reads images
        state |= {"visual.merger.ln_q.weight": torch.ones(4), "lm_head.weight": torch.ones(4, 4)}
    return {key: tensor for key, tensor in state.items() if "position_ids" not in key}


def new_parts(family: str) -> dict[str, nn.Module]:
    torch.manual_seed(0)
    texts = {part: new_text(family, part) for part in TEXTS[family]}
    parts = {"transformer": new_transformer(family), "vae": new_vae(family), **texts}
    if family == "anima":
        sizes = {"source_dim": TEXT, "target_dim": 20, "model_dim": 32, "num_layers": 2, "mlp_ratio": 2.0}
        words = {"target_vocab_size": len(t5_tokenizer()) + 3, "num_attention_heads": 2}
        parts["text_conditioner"] = diffusers.AnimaTextConditioner(**sizes, **words)
    return parts


def all_in_one(family: str, parts: Mapping[str, Any]) -> dict[str, Tensor]:
    vae = "first_stage_model." if family == "sd3" else "vae."
    found = {PREFIX + key: one for key, one in original_transformer(family, parts).items()}
    found |= {vae + key: one for key, one in original_vae(parts["vae"]).items()}
    for part, name in TEXTS[family].items():
        start = f"text_encoders.{name}."
        found |= {f"{start}transformer.{key}": one for key, one in original_text(parts[part]).items()}
        if name.startswith("clip"):
            found[f"{start}logit_scale"] = torch.zeros(())
    return found


TOKENIZERS = {"mistral_3_small": mistral_tokenizer, "gemma_2_2b": gemma_tokenizer}


def tokenizer_of(name: str) -> Any:
    """Of a text encoder that is no CLIP."""
    if name in TOKENIZERS:
        return TOKENIZERS[name]()
    return chat_tokenizer() if name.startswith("qwen") else t5_tokenizer()


def write_tokenizers(family: str, folder: Path) -> Path:
    """Those that the package has not: T5's, Qwen's or Mistral's, which lost its template as it may."""
    for part, name in TEXTS[family].items():
        if not name.startswith("clip"):
            tokenizer = tokenizer_of(name)
            tokenizer.chat_template = None
            tokenizer.save_pretrained(folder / part.replace("text_encoder", "tokenizer"))
    if family == "anima":
        t5_tokenizer().save_pretrained(folder / "t5_tokenizer")
    return folder


def write(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> Path:
    save_file({key: tensor.contiguous().clone() for key, tensor in tensors.items()}, path, metadata)
    return path
