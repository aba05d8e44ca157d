"""Bases without numbers, made where tensors are fake: a miniature of every family, and two published ones."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from diffusers import AutoencoderKL, DiffusionPipeline, ModularPipeline, UNet2DConditionModel
from tiny import (
    anima_pipeline,
    chroma_pipeline,
    flux1_pipeline,
    flux2_pipeline,
    krea2_pipeline,
    lumina2_pipeline,
    qwen_image_pipeline,
    sd3_pipeline,
    z_image_pipeline,
)
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from lora_studio.families.base import ModelFamily
from lora_studio.families.loading import POCKET_FOLDER
from lora_studio.families.noise_schedule import STABLE_DIFFUSION
from lora_studio.families.original.configurations import clip_merges, clip_vocabulary
from lora_studio.families.transformers.anima import Anima
from lora_studio.families.transformers.chroma import Chroma
from lora_studio.families.transformers.flux1 import Flux1
from lora_studio.families.transformers.flux2 import Flux2Klein
from lora_studio.families.transformers.krea2 import Krea2
from lora_studio.families.transformers.lumina2 import Lumina2
from lora_studio.families.transformers.qwen_image import QwenImage
from lora_studio.families.transformers.sd3 import StableDiffusion3
from lora_studio.families.transformers.z_image import ZImage
from lora_studio.families.unet import StableDiffusion2, StableDiffusion15
from lora_studio.families.unet.sdxl import StableDiffusionXL

Sizes = Mapping[str, Any]
V_PREDICTION = {"prediction_type": "v_prediction"}
ZERO_SNR = {**V_PREDICTION, "rescale_betas_zero_snr": True}


def make_base(name: str) -> ModelFamily:
    """One of `BASES`; to be called where tensors are fake."""
    return BASES[name]()


def _miniature(family: type[ModelFamily], sizes: Sizes, noise: Sizes, *, encoders: int = 1) -> ModelFamily:
    tokenizer = CLIPTokenizer.from_pretrained(POCKET_FOLDER / "tokenizer")
    levels: dict[str, Any] = {"block_out_channels": (16,), "layers_per_block": 1, "norm_num_groups": 8}
    levels |= {"down_block_types": ("CrossAttnDownBlock2D",), "up_block_types": ("UpBlock2D",)}
    levels |= {"mid_block_type": None}  # a run takes a second, in which every operation counts
    parts: dict[str, nn.Module] = {
        "unet": UNet2DConditionModel(sample_size=16, attention_head_dim=2, **levels | dict(sizes)),
        "vae": AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            block_out_channels=(8, 8),
            norm_num_groups=2,
            sample_size=64,
        ),
        "text_encoder": CLIPTextModel(_clip(16, encoders, 2, vocabulary=len(tokenizer))),
    }
    if encoders == 2:
        second = _clip(24, 2, 2, projection=20, vocabulary=len(tokenizer))
        parts["text_encoder_2"] = CLIPTextModelWithProjection(second)
    return _family(family, parts, tokenizer, noise)


def _family(
    family: type[ModelFamily], parts: dict[str, nn.Module], tokenizer: CLIPTokenizer, noise: Sizes
) -> ModelFamily:
    encoders = [name for name in parts if name.startswith("text_encoder")]
    tokenizers = {name.replace("text_encoder", "tokenizer"): tokenizer for name in encoders}
    return family(parts, tokenizers, source="", scheduler={**STABLE_DIFFUSION, **noise})


def _clip(
    width: int, layers: int, heads: int, *, projection: int = 512, vocabulary: int = 49408
) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        projection_dim=projection,
    )


def _published(family: type[ModelFamily], unet: Sizes, side: int, *, encoders: int = 1) -> ModelFamily:
    """stable-diffusion-v1-5 or stable-diffusion-xl-base-1.0, by their configurations."""
    marks = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>"}
    tokenizer = CLIPTokenizer(
        clip_vocabulary(), clip_merges(), pad_token="<|endoftext|>", model_max_length=77, **marks
    )
    parts: dict[str, nn.Module] = {
        "unet": UNet2DConditionModel(sample_size=side // 8, **unet),
        "vae": AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            block_out_channels=(128, 256, 512, 512),
            layers_per_block=2,
            sample_size=side,
        ),
        "text_encoder": CLIPTextModel(_clip(768, 12, 12)),
    }
    if encoders == 2:
        parts["text_encoder_2"] = CLIPTextModelWithProjection(_clip(1280, 32, 20, projection=1280))
    return _family(family, parts, tokenizer, {})


_SDXL_LEVELS = {
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
}
_SDXL_SIZES = {
    **_SDXL_LEVELS,
    "block_out_channels": (320, 640, 1280),
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "cross_attention_dim": 2048,
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
_SDXL_MINIATURE = {
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "cross_attention_dim": 16 + 24,
    "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 20 + 6 * 8,
}


def _of_flow(family: type[ModelFamily], pipeline: DiffusionPipeline | ModularPipeline) -> ModelFamily:
    parts = {name: one for name, one in pipeline.components.items() if isinstance(one, nn.Module)}
    _leave_one_of_each(parts["transformer"])
    if "text_encoder" in parts:
        _let_through(getattr(parts["text_encoder"], "layers", ()))
    tokenizers = {name: one for name, one in pipeline.components.items() if "tokenizer" in name}
    scheduler = {**pipeline.scheduler.config, "_class_name": type(pipeline.scheduler).__name__}
    return family(parts, tokenizers, source="", scheduler=scheduler)


def _leave_one_of_each(denoiser: nn.Module) -> None:
    """Of blocks in a row that are alike the first: what is right in it is right in the others."""
    for blocks in [one for one in denoiser.children() if isinstance(one, nn.ModuleList)]:
        sizes = [[weight.shape for weight in block.parameters()] for block in blocks]
        while len(blocks) > 1 and sizes.pop() == sizes[-1]:
            del blocks[-1]


def _let_through(layers: Iterable[nn.Module]) -> None:
    """All but the first two of a frozen encoder's do nothing: it must have as many as a published one."""
    for layer in [*layers][2:]:
        layer.__class__ = type(
            type(layer).__name__, (type(layer),), {"forward": lambda _, states, **__: states}
        )
        for name, _ in [*layer.named_children()]:
            delattr(layer, name)


def _qwen_image() -> ModelFamily:
    """With what reads text alone, as it is loaded."""
    pipeline = qwen_image_pipeline()
    pipeline.text_encoder = pipeline.text_encoder.model.language_model
    return _of_flow(QwenImage, pipeline)


def _krea2() -> ModelFamily:
    """Likewise."""
    pipeline = krea2_pipeline()
    pipeline.text_encoder = pipeline.text_encoder.language_model
    return _of_flow(Krea2, pipeline)


_SD2 = {"cross_attention_dim": 16, "use_linear_projection": True}
BASES: dict[str, Callable[[], ModelFamily]] = {
    "sd15": lambda: _miniature(StableDiffusion15, {"cross_attention_dim": 16}, {}),
    "sd2": lambda: _miniature(StableDiffusion2, _SD2, V_PREDICTION),
    "sdxl": lambda: _miniature(StableDiffusionXL, _SDXL_MINIATURE, ZERO_SNR, encoders=2),
    "z_image": lambda: _of_flow(ZImage, z_image_pipeline(layers=1)),
    "flux1": lambda: _of_flow(Flux1, flux1_pipeline()),
    "chroma": lambda: _of_flow(Chroma, chroma_pipeline()),
    "sd3": lambda: _of_flow(StableDiffusion3, sd3_pipeline()),
    "flux2": lambda: _of_flow(Flux2Klein, flux2_pipeline()),
    "krea2": _krea2,
    "qwen_image": _qwen_image,
    "lumina2": lambda: _of_flow(Lumina2, lumina2_pipeline()),
    "anima": lambda: _of_flow(Anima, anima_pipeline()),
    "SD1.5": lambda: _published(
        StableDiffusion15, {"cross_attention_dim": 768, "attention_head_dim": 8}, 512
    ),
    "SDXL": lambda: _published(StableDiffusionXL, _SDXL_SIZES, 1024, encoders=2),
}
