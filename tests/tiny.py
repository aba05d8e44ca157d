"""Random miniatures of base models for tests: on the CPU, in seconds, with real classes and real files."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AnimaAutoBlocks,
    AnimaTextConditioner,
    AutoencoderKL,
    AutoencoderKLFlux2,
    AutoencoderKLQwenImage,
    ChromaPipeline,
    ChromaTransformer2DModel,
    CosmosTransformer3DModel,
    DDIMScheduler,
    DiffusionPipeline,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    Flux2KleinPipeline,
    Flux2Pipeline,
    Flux2Transformer2DModel,
    FluxPipeline,
    FluxTransformer2DModel,
    Krea2Pipeline,
    Krea2Transformer2DModel,
    Lumina2Pipeline,
    Lumina2Transformer2DModel,
    ModularPipeline,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
    ZImagePipeline,
    ZImageTransformer2DModel,
)
from PIL import Image
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    Gemma2Config,
    Gemma2Model,
    GemmaTokenizer,
    Mistral3Config,
    Mistral3ForConditionalGeneration,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Tokenizer,
    Qwen3Config,
    Qwen3Model,
    Qwen3VLConfig,
    Qwen3VLModel,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

from lora_studio.families.loading import POCKET_FOLDER
from lora_studio.families.transformers.lumina2 import TEMPLATE as TEMPLATE_OF_LUMINA2
from lora_studio.pocket.build import write_base
from lora_studio.pocket.scenes import draw, sample_scene
from lora_studio.pocket.stages.clip import ClipPair, new_tokenizer
from lora_studio.pocket.stages.unet import new_unet
from lora_studio.pocket.stages.vae import new_vae


def pocket_sized_base(folder: Path) -> Path:
    """The pocket base with random weights: of a size at which file headers do not count."""
    torch.manual_seed(0)
    tokenizer: CLIPTokenizer = new_tokenizer(folder.with_name("tokenizer"))
    write_base(folder, new_vae(), new_unet(), ClipPair(tokenizer), tokenizer)
    return folder


SD15_TEXT = 24  # width of its conditioning
SD15_LAYERS = 24  # of its attention: 12 on the way down, and 12 in the middle


def random_base(folder: Path, *, last: str = "UpBlock2D") -> Path:
    """Most tests' base, in which every layer counts: two of SD1.5's four levels, one layer a block.

    Without attention on the way up, which would be as much again, unless `last` names such a block.
    """
    levels = {
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", last),
        "block_out_channels": (16, 24),
    }
    sizes = {"attention_head_dim": 2, "cross_attention_dim": SD15_TEXT, "norm_num_groups": 8}
    return _one_encoder(folder, levels | sizes, _tokenizer(), seed=0)


def least_base(folder: Path) -> Path:
    """SD1.5's kind of base with as few layers as there can be: 16 of attention."""
    levels = {
        "down_block_types": ("DownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "UpBlock2D"),
        "block_out_channels": (8, 16),
    }
    sizes = {"attention_head_dim": 2, "cross_attention_dim": 16, "norm_num_groups": 4}
    return _one_encoder(folder, levels | sizes, _tokenizer(), seed=3)


def base_sd2(folder: Path, *, prediction: str = "epsilon") -> Path:
    """SD2's module tree, two levels of it: linear projections, heads of one size, and "!" for padding."""
    levels = {
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "UpBlock2D"),
        **{"block_out_channels": (16, 32), "attention_head_dim": (2, 4)},
    }
    sizes = {"cross_attention_dim": 32, "use_linear_projection": True, "norm_num_groups": 8}
    return _one_encoder(folder, levels | sizes, _tokenizer(pad="!"), seed=1, prediction_type=prediction)


def _one_encoder(
    folder: Path, unet: Mapping[str, Any], tokenizer: CLIPTokenizer, *, seed: int, **noise: str
) -> Path:
    torch.manual_seed(seed)
    pipeline = StableDiffusionPipeline(
        vae=_vae(scaling_factor=0.18215),
        text_encoder=CLIPTextModel(_text_config(tokenizer, width=unet["cross_attention_dim"])),
        tokenizer=tokenizer,
        unet=UNet2DConditionModel(sample_size=16, layers_per_block=1, **unet),
        scheduler=DDIMScheduler(**NOISE, **noise, clip_sample=False, steps_offset=1),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(folder)
    return folder


def base_sdxl(folder: Path, *, prediction: str = "epsilon", zero_terminal_snr: bool = False) -> Path:
    """SDXL's module tree: three levels, the first without attention; two text encoders; time ids."""
    torch.manual_seed(2)
    tokenizer, tokenizer_2 = _tokenizer(), _tokenizer(pad="!")
    pipeline = StableDiffusionXLPipeline(
        vae=_vae(scaling_factor=0.13025),
        text_encoder=CLIPTextModel(_text_config(tokenizer, width=16)),
        text_encoder_2=CLIPTextModelWithProjection(_text_config(tokenizer_2, width=24, projection=20)),
        tokenizer=tokenizer,
        tokenizer_2=tokenizer_2,
        unet=UNet2DConditionModel(
            sample_size=16,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            layers_per_block=2,
            block_out_channels=(16, 16, 32),
            transformer_layers_per_block=(1, 1, 2),
            attention_head_dim=(2, 2, 4),
            cross_attention_dim=16 + 24,
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=20 + 6 * 8,
            norm_num_groups=8,
        ),
        scheduler=EulerDiscreteScheduler(
            **NOISE, prediction_type=prediction, rescale_betas_zero_snr=zero_terminal_snr
        ),
        add_watermarker=False,
    )
    pipeline.save_pretrained(folder)
    return folder


def base_z_image(folder: Path, *, shift: float = 3.0) -> Path:
    return _saved(z_image_pipeline(shift=shift), folder)


def z_image_pipeline(*, shift: float = 3.0, layers: int = 2) -> ZImagePipeline:
    """Z-Image's module tree: a refiner of each kind, its layers, a Qwen3, and 16 latent channels."""
    torch.manual_seed(4)
    tokenizer = chat_tokenizer()
    pipeline = ZImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=shift),
        vae=flow_vae(),
        text_encoder=Qwen3Model(
            Qwen3Config(
                vocab_size=len(tokenizer),
                hidden_size=24,
                intermediate_size=32,
                num_hidden_layers=layers + 1,
                num_attention_heads=2,
                num_key_value_heads=1,
                head_dim=8,
                max_position_embeddings=1024,
            )
        ),
        tokenizer=tokenizer,
        transformer=ZImageTransformer2DModel(
            dim=32,
            n_layers=layers,
            n_refiner_layers=1,
            n_heads=2,
            n_kv_heads=2,
            cap_feat_dim=24,
            axes_dims=[4, 6, 6],
            axes_lens=[640, 64, 64],
        ),
    )
    for name, weight in pipeline.transformer.named_parameters():
        if "pad_token" in name:  # zero in one that was never trained: what is padded would not show
            torch.nn.init.normal_(weight)
    return pipeline


def _saved(pipeline: DiffusionPipeline, folder: Path) -> Path:
    pipeline.save_pretrained(folder)
    return folder


def flow_vae(
    *, channels: int = 16, shift: float | None = 0.1159, scale: float = 0.3611, levels: int = 2
) -> AutoencoderKL:
    """With two levels latents have half of the image's sides and a token four pixels."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=(8,) * levels,
        latent_channels=channels,
        norm_num_groups=2,
        sample_size=64,
        scaling_factor=scale,
        shift_factor=shift,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )


TEMPLATE = (  # of Qwen3's, what a message of the user's alone comes to
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}"
)


def chat_tokenizer(words: Sequence[str] = ()) -> Qwen2Tokenizer:
    """Qwen's kind of tokenizer with a token for each byte and these words, and its chat template."""
    from tokenizers.pre_tokenizers import ByteLevel

    letters = sorted(ByteLevel.alphabet())
    tokenizer = Qwen2Tokenizer(
        {letter: number for number, letter in enumerate([*letters, "<|endoftext|>"])},
        [],
        eos_token="<|im_end|>",
        extra_special_tokens=["<|im_start|>"],
        model_max_length=1024,
    )
    tokenizer.add_tokens(list(words))
    tokenizer.chat_template = TEMPLATE
    return tokenizer


DYNAMIC = {"use_dynamic_shifting": True, "base_image_seq_len": 16, "max_image_seq_len": 256}
STREAMS = {
    **{"num_layers": 2, "num_single_layers": 2, "attention_head_dim": 16, "num_attention_heads": 2},
    **{"joint_attention_dim": 24, "axes_dims_rope": (4, 6, 6)},
}


def base_flux1(folder: Path, *, guided: bool = True) -> Path:
    return _saved(flux1_pipeline(guided=guided), folder)


def flux1_pipeline(*, guided: bool = True) -> FluxPipeline:
    """FLUX.1's module tree: two blocks of each kind, a CLIP and a T5; without guidance that of schnell."""
    torch.manual_seed(5)
    tokenizer = _tokenizer()
    pipeline = FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(**DYNAMIC) if guided else FlowMatchEulerDiscreteScheduler(),
        vae=flow_vae(),
        text_encoder=CLIPTextModel(_text_config(tokenizer, width=16)),
        tokenizer=tokenizer,
        text_encoder_2=t5_encoder(),
        tokenizer_2=t5_tokenizer(),
        transformer=FluxTransformer2DModel(**STREAMS, pooled_projection_dim=16, guidance_embeds=guided),
    )
    return pipeline


def base_chroma(folder: Path) -> Path:
    return _saved(chroma_pipeline(), folder)


def chroma_pipeline() -> ChromaPipeline:
    """Chroma's module tree: two blocks of each kind, and a T5."""
    torch.manual_seed(6)
    transformer = ChromaTransformer2DModel(**STREAMS, approximator_hidden_dim=16, approximator_layers=1)
    pipeline = ChromaPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(**DYNAMIC),
        vae=flow_vae(),
        text_encoder=t5_encoder(),
        tokenizer=t5_tokenizer(),
        transformer=transformer,
    )
    return pipeline


def base_flux2(folder: Path, *, guided: bool = False) -> Path:
    return _saved(flux2_pipeline(guided=guided), folder)


def flux2_pipeline(*, guided: bool = False) -> Flux2KleinPipeline | Flux2Pipeline:
    """FLUX.2's module tree: a block of each kind, and a language model with a layer more than is read of it.

    As klein has it a Qwen3; guided, as dev, a Mistral with eyes.
    """
    torch.manual_seed(8)
    pipeline = (Flux2Pipeline if guided else Flux2KleinPipeline)(
        scheduler=FlowMatchEulerDiscreteScheduler(**DYNAMIC),
        vae=flux2_vae(),
        text_encoder=mistral_with_eyes() if guided else Qwen3Model(Qwen3Config(**_language_model(28))),
        tokenizer=mistral_tokenizer() if guided else chat_tokenizer(),
        transformer=Flux2Transformer2DModel(
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=24,
            axes_dims_rope=(4, 4, 4, 4),
            guidance_embeds=guided,
        ),
    )
    return pipeline


def flux2_vae(*, levels: int = 2) -> AutoencoderKLFlux2:
    """Of 32 channels, with statistics that are not those of a new one."""
    vae = AutoencoderKLFlux2(
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=(8,) * levels,
        layers_per_block=1,
        norm_num_groups=2,
        sample_size=64,
    )
    torch.nn.init.normal_(vae.bn.running_mean)
    torch.nn.init.uniform_(vae.bn.running_var, 0.5, 2.0)
    return vae


def _language_model(layers: int) -> dict[str, Any]:
    """8 wide."""
    return {
        "vocab_size": len(chat_tokenizer()),
        "hidden_size": 8,
        "intermediate_size": 8,
        "num_hidden_layers": layers,
        "num_attention_heads": 1,
        "num_key_value_heads": 1,
        "head_dim": 8,
        "max_position_embeddings": 1024,
    }


def mistral_with_eyes() -> Mistral3ForConditionalGeneration:
    eyes = {"hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 1, "num_hidden_layers": 1}
    eyes |= {"patch_size": 14}
    far = {"rope_type": "default", "rope_theta": 1e9}
    return Mistral3ForConditionalGeneration(
        Mistral3Config(
            text_config={"model_type": "mistral", **_language_model(31), "rope_parameters": far},
            vision_config={
                "model_type": "pixtral",
                "head_dim": 8,
                "image_size": 28,
                "patch_size": 14,
                **eyes,
            },
            image_token_index=3,
        )
    )


def mistral_tokenizer() -> PreTrainedTokenizerFast:
    """Mistral's kind of tokenizer with a token for each byte, which pads on the left; and a chat template."""
    tokenizer = chat_tokenizer()
    made = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend_tokenizer,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        model_max_length=1024,
        padding_side="left",
    )
    made.chat_template = (
        "{{ bos_token }}{% for one in messages %}{% set text = one['content'][0]['text'] %}"
        "{% if one['role'] == 'system' %}[SYSTEM_PROMPT]{{ text }}[/SYSTEM_PROMPT]"
        "{% else %}[INST]{{ text }}[/INST]{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}answer{% endif %}"
    )
    return made


def base_krea2(folder: Path) -> Path:
    return _saved(krea2_pipeline(), folder)


def krea2_pipeline() -> Krea2Pipeline:
    """Krea 2's module tree: a block of each kind, and a Qwen3-VL that could read images."""
    torch.manual_seed(9)
    tokenizer = chat_tokenizer(QWEN_WORDS)
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1}
    return Krea2Pipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(**DYNAMIC),
        vae=video_vae(),
        text_encoder=qwen3_vl(len(tokenizer)),
        tokenizer=tokenizer,
        transformer=Krea2Transformer2DModel(
            **{"num_layers": 1, "num_layerwise_text_blocks": 1, "num_refiner_text_blocks": 1},
            **{"attention_head_dim": 16, "intermediate_size": 32, "timestep_embed_dim": 16, **heads},
            **{"text_hidden_dim": 8, "text_intermediate_size": 16, "axes_dims_rope": (4, 6, 6)},
            **{f"text_{name}": count for name, count in heads.items()},
        ),
    )


def qwen3_vl(words: int) -> Qwen3VLModel:
    """Of 36 layers, of which 35 are read."""
    rope = {"rope_type": "default", "rope_theta": 5e6, "mrope_section": [2, 1, 1], "mrope_interleaved": True}
    text = _language_model(36) | {"vocab_size": words, "rope_parameters": rope}
    eyes = {"depth": 1, "hidden_size": 8, "intermediate_size": 8, "num_heads": 1, "out_hidden_size": 8}
    eyes |= {"num_position_embeddings": 4, "deepstack_visual_indexes": [0]}
    return Qwen3VLModel(Qwen3VLConfig(text_config=text, vision_config=eyes))


def base_sd3(folder: Path, *, newer: bool = True) -> Path:
    return _saved(sd3_pipeline(newer=newer), folder)


def sd3_pipeline(*, newer: bool = True) -> StableDiffusion3Pipeline:
    """SD3.5 medium's module tree, or SD3's: two blocks, two CLIPs and a T5."""
    torch.manual_seed(7)
    tokenizer, tokenizer_2 = _tokenizer(), _tokenizer(pad="!")
    of_newer: dict[str, Any] = {"dual_attention_layers": (0,), "qk_norm": "rms_norm"} if newer else {}
    pipeline = StableDiffusion3Pipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=flow_vae(scale=1.5305, shift=0.0609),
        text_encoder=CLIPTextModelWithProjection(_text_config(tokenizer, width=8, projection=8)),
        tokenizer=tokenizer,
        text_encoder_2=CLIPTextModelWithProjection(_text_config(tokenizer_2, width=12, projection=12)),
        tokenizer_2=tokenizer_2,
        text_encoder_3=t5_encoder(),
        tokenizer_3=t5_tokenizer(),
        transformer=SD3Transformer2DModel(
            sample_size=32,
            num_layers=2,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=24,
            caption_projection_dim=32,
            pooled_projection_dim=20,
            pos_embed_max_size=32,
            **of_newer,
        ),
    )
    return pipeline


QWEN_WORDS = (  # what Qwen-Image's template has, so that it is as many tokens as of Qwen's own tokenizer
    *("system", "Describe", " the", " image", " by", " detailing", " color", " shape", " size", " texture"),
    *(" quantity", " text", " spatial", " relationships", " of", " objects", " and", " background", "user"),
    "assistant",
)


def base_qwen_image(folder: Path) -> Path:
    return _saved(qwen_image_pipeline(), folder)


def qwen_image_pipeline() -> QwenImagePipeline:
    """Qwen-Image's module tree: two blocks, a Qwen2.5-VL that could read images, and a video's VAE."""
    torch.manual_seed(8)
    tokenizer = chat_tokenizer(QWEN_WORDS)
    return QwenImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(**DYNAMIC, shift_terminal=0.02),
        vae=video_vae(),
        text_encoder=qwen_vl(len(tokenizer)),
        tokenizer=tokenizer,
        transformer=QwenImageTransformer2DModel(
            num_layers=2,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=24,
            axes_dims_rope=(4, 6, 6),
        ),
    )


def base_anima(folder: Path) -> Path:
    """As its makers' folder is written: with the index of a modular pipeline."""
    anima_pipeline().save_pretrained(str(folder), overwrite_modular_index=True)
    return folder


def anima_pipeline() -> ModularPipeline:
    """Anima's module tree: two blocks, a Qwen3, a text conditioner of T5's words, and a video's VAE."""
    torch.manual_seed(9)
    pipeline = AnimaAutoBlocks().init_pipeline()
    pipeline.update_components(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=video_vae(),
        text_encoder=Qwen3Model(Qwen3Config(**_language_model(2))),
        tokenizer=chat_tokenizer(),
        t5_tokenizer=t5_tokenizer(),
        text_conditioner=AnimaTextConditioner(
            source_dim=8,
            target_dim=24,
            model_dim=16,
            num_layers=1,
            num_attention_heads=2,
            target_vocab_size=len(t5_tokenizer()),
        ),
        transformer=CosmosTransformer3DModel(
            num_layers=2,
            attention_head_dim=16,
            num_attention_heads=2,
            text_embed_dim=24,
            adaln_lora_dim=8,
            rope_scale=(1.0, 4.0, 4.0),
            extra_pos_embed_type=None,
        ),
    )
    return pipeline


def video_vae() -> AutoencoderKLQwenImage:
    """Two levels, with every channel's mean and deviation as published."""
    return AutoencoderKLQwenImage(base_dim=8, dim_mult=[1, 1], num_res_blocks=1, temperal_downsample=[True])


def qwen_vl(words: int) -> Qwen2_5_VLForConditionalGeneration:
    text = {
        **{"vocab_size": words, "hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 2},
        **{"num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 1536},
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [2, 2, 2]},
        **{"bos_token_id": None, "eos_token_id": None},
    }
    vision = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 24}
    config = Qwen2_5_VLConfig(text_config=text, vision_config=vision)
    return Qwen2_5_VLForConditionalGeneration(config)


def base_lumina2(folder: Path) -> Path:
    return _saved(lumina2_pipeline(), folder)


def lumina2_pipeline() -> Lumina2Pipeline:
    """Lumina-Image 2's module tree: a refiner of each kind, two layers, a Gemma 2, and a VAE of four levels.

    By those its pipeline counts, whatever the VAE says.
    """
    torch.manual_seed(9)
    tokenizer = gemma_tokenizer()
    text = {
        **{"vocab_size": len(tokenizer), "hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 3},
        **{"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8, "query_pre_attn_scalar": 8},
    }
    return Lumina2Pipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=6.0),
        vae=flow_vae(levels=4),
        text_encoder=Gemma2Model(Gemma2Config(**text)),
        tokenizer=tokenizer,
        transformer=Lumina2Transformer2DModel(
            hidden_size=48,
            num_layers=2,
            num_refiner_layers=1,
            num_attention_heads=2,
            num_kv_heads=1,
            multiple_of=16,
            axes_dim_rope=(8, 8, 8),
            cap_feat_dim=24,
        ),
    )


def gemma_tokenizer() -> GemmaTokenizer:
    """Gemma's kind of tokenizer with a token for each letter, and for the words of the template."""
    pieces = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", *"▁abcdefghijklmnopqrstuvwxyz,."]
    tokenizer = GemmaTokenizer(
        {piece: number for number, piece in enumerate(pieces)}, [], add_bos_token=True, model_max_length=1024
    )
    tokenizer.add_tokens(list(dict.fromkeys(TEMPLATE_OF_LUMINA2.split())))
    return tokenizer


def t5_encoder() -> T5EncoderModel:
    sizes = {"d_model": 24, "d_ff": 32, "d_kv": 8, "num_heads": 2, "num_layers": 2}
    config = T5Config(
        vocab_size=len(t5_tokenizer()), feed_forward_proj="gated-gelu", initializer_factor=0.5, **sizes
    )
    return T5EncoderModel(config)


def t5_tokenizer() -> T5Tokenizer:
    """T5's kind of tokenizer with a token for each letter, and no sentinels."""
    letters = "▁abcdefghijklmnopqrstuvwxyz,."
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *((letter, -2.0) for letter in letters)]
    return T5Tokenizer(pieces, extra_ids=0, model_max_length=512)


NOISE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
BASES = {
    "sd15": random_base,
    "sd2": base_sd2,
    "sd2 v": partial(base_sd2, prediction="v_prediction"),
    "sdxl": base_sdxl,
    "sdxl v zero-snr": partial(base_sdxl, prediction="v_prediction", zero_terminal_snr=True),
    "z_image": base_z_image,
    "flux1": base_flux1,
    "flux1 schnell": partial(base_flux1, guided=False),
    "chroma": base_chroma,
    "flux2": base_flux2,
    "flux2 dev": partial(base_flux2, guided=True),
    "krea2": base_krea2,
    "sd3": base_sd3,
    "sd3 first": partial(base_sd3, newer=False),
    "qwen_image": base_qwen_image,
    "lumina2": base_lumina2,
    "anima": base_anima,
}
"""A miniature of every family, in each of its kinds of prediction."""

MORE_BASES = {"sd15 up and down": partial(random_base, last="CrossAttnUpBlock2D")}


def _tokenizer(*, pad: str = "<|endoftext|>") -> CLIPTokenizer:
    tokenizer: CLIPTokenizer = CLIPTokenizer.from_pretrained(POCKET_FOLDER / "tokenizer", pad_token=pad)
    return tokenizer


def _text_config(tokenizer: CLIPTokenizer, *, width: int, projection: int = 8) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=2 * width,
        projection_dim=projection,
        num_hidden_layers=3,
        num_attention_heads=2,
        max_position_embeddings=tokenizer.model_max_length,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def _vae(*, scaling_factor: float) -> AutoencoderKL:
    """Three levels, so that latents have a quarter of the image's sides."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(8, 8, 16),
        norm_num_groups=2,
        sample_size=64,
        scaling_factor=scaling_factor,
    )


def image_folder(folder: Path, *, count: int = 5, trigger: str = "zwx style") -> Path:
    """`count` images of several shapes and formats with captions."""
    folder.mkdir(parents=True)
    shapes = [(64, 64), (96, 64), (64, 96), (112, 64), (80, 72)]
    for number in range(count):
        scene = sample_scene(number)
        image: Image.Image = draw(scene, *shapes[number % len(shapes)], style="woodcut")
        image.save(folder / f"{number:02}.{('png', 'jpg', 'webp')[number % 3]}")
        (folder / f"{number:02}.txt").write_text(scene.caption(trigger), "utf-8")
    return folder


def recipe_text(images: Path, base: str, *, steps: int = 4, extra: str = "") -> str:
    """A small recipe; `extra` is appended to it."""
    return f"""
name = "tiny"
[machine]
device = "cpu"
[base]
model = "{base}"
[data]
images = "{images}"
trigger = "zwx style"
resolution = 64
[adapter]
rank = 4
alpha = 4
[training]
steps = {steps}
batch_size = 2
learning_rate = 1e-3
warmup_steps = 1
checkpoint_every = 2
{extra}
"""


def python_random() -> random.Random:
    """The tests' own random numbers."""
    return random.Random(0)
