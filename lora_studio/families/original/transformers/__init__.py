"""Which transformer a file in the original layout holds, told from tensor names and shapes alone.

The rules are those of ComfyUI's model detection, tried in this order. A family says all of it in a file of
its own beside this one (`FileFacts`), which `SINGLE_FILES` lists.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

from lora_studio.errors import BaseModelError
from lora_studio.families import SINGLE_FILES
from lora_studio.families.configuration import WORDS
from lora_studio.families.original import Shapes

if TYPE_CHECKING:
    from lora_studio.families.original.transformers.configurations import Sizes
    from lora_studio.families.original.transformers.text import TextKind

PREFIXES = ("model.diffusion_model.", "diffusion_model.", "net.", "")  # the longest first
GUIDANCE = "guidance_in.in_layer.weight"  # that one has which is told how strong its guidance is
ADAPTER = "llm_adapter."  # how a text conditioner's names begin in a transformer's file
TEXT_PREFIX = "text_encoders."  # of an all-in-one file, followed by a name and `transformer.`


class TextPart(NamedTuple):
    """A text encoder by its name in diffusers, and of which kind it is (`text.KINDS`)."""

    part: str
    kind: str
    projects: bool = False  # its projected pooled output is used
    layers: int = 1  # of how many the states are read, side by side


OF_WORDS = TextPart(WORDS, "t5")  # of whose tokens a text conditioner has vectors of its own


@dataclass(frozen=True)
class FileFacts:
    """What a family knows of its transformer's single files and of its published bases."""

    signs: tuple[str, ...]  # tensors that every file of it has
    first: tuple[str, int]  # the layer that reads the latents, as wide as the transformer, and its columns
    layers: str  # which tensor is which of diffusers', as in `names.py`
    configure: Callable[[Sizes, Mapping[str, int]], dict[str, Any]]  # from sizes and numbers of blocks
    scheduler: Mapping[str, object]
    lacks: tuple[str, ...] = ()  # tensors that a relative has beside the signs
    depths: Mapping[int, Mapping[str, int]] = field(default_factory=dict)  # width -> blocks of the published
    # Id on the hub -> what of the transformer's configuration is not as its class has it by itself.
    published: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    text_kinds: Mapping[str, TextKind] = field(default_factory=dict)  # that no other family reads


@dataclass(frozen=True)
class TransformerKind:
    """What all bases of one family share. A depth is only checked of those as wide as the published."""

    title: str
    class_name: str  # of the transformer in diffusers
    names: str  # the table of `names.py`
    text: tuple[TextPart, ...] = ()
    vae: str = "AutoencoderKL"  # its class in diffusers
    latents: tuple[float, float] = (0.3611, 0.1159)  # the VAE's scale and shift
    side: int = 1024  # pixels of the square images that the published ones were made for
    conditioner: str = ""  # the class in diffusers of a text conditioner that lies in the transformer's file
    guided: bool | None = None  # whether it is told how strong its guidance is, if that tells it from others
    repository: str = ""  # the id of a published one on the hub, for whoever lacks a part
    facts: FileFacts | None = None  # None: they stand in the tables of the modules here


Z_IMAGE = TransformerKind(
    "Z-Image",
    "ZImageTransformer2DModel",
    "z_image",
    (TextPart("text_encoder", "qwen3"),),
    repository="Tongyi-MAI/Z-Image",
)
FLUX1 = TransformerKind(
    "FLUX.1",
    "FluxTransformer2DModel",
    "flux1",
    (TextPart("text_encoder", "clip_l"), TextPart("text_encoder_2", "t5")),
    repository="black-forest-labs/FLUX.1-dev",
)
CHROMA = TransformerKind(
    "Chroma",
    "ChromaTransformer2DModel",
    "chroma",
    (TextPart("text_encoder", "t5"),),
    repository="lodestones/Chroma1-HD",
)
SD3 = TransformerKind(
    "Stable Diffusion 3",
    "SD3Transformer2DModel",
    "sd3",
    (
        TextPart("text_encoder", "clip_l", projects=True),
        TextPart("text_encoder_2", "clip_g", projects=True),
        TextPart("text_encoder_3", "t5"),
    ),
    latents=(1.5305, 0.0609),
    repository="stabilityai/stable-diffusion-3.5-medium",
)
QWEN_IMAGE = TransformerKind(
    "Qwen-Image",
    "QwenImageTransformer2DModel",
    "qwen_image",
    (TextPart("text_encoder", "qwen2_5_vl"),),
    vae="AutoencoderKLQwenImage",
    repository="Qwen/Qwen-Image",
)
FLUX2_KLEIN = TransformerKind(
    "FLUX.2 klein",
    "Flux2Transformer2DModel",
    "flux2",
    (TextPart("text_encoder", "qwen3", layers=3),),
    vae="AutoencoderKLFlux2",
    guided=False,
    repository="black-forest-labs/FLUX.2-klein-base-4B",
)
FLUX2_DEV = TransformerKind(
    "FLUX.2 dev",
    "Flux2Transformer2DModel",
    "flux2",
    (TextPart("text_encoder", "mistral", layers=3),),
    vae="AutoencoderKLFlux2",
    guided=True,
    repository="black-forest-labs/FLUX.2-dev",
)
KREA2 = TransformerKind(
    "Krea 2",
    "Krea2Transformer2DModel",
    "krea2",
    (TextPart("text_encoder", "qwen3_vl"),),
    vae="AutoencoderKLQwenImage",
    repository="krea/Krea-2-Raw",
)
ANIMA = TransformerKind(
    "Anima",
    "CosmosTransformer3DModel",
    "anima",
    (TextPart("text_encoder", "qwen3"),),
    vae="AutoencoderKLQwenImage",
    conditioner="AnimaTextConditioner",
    repository="circlestone-labs/Anima-Base-v1.0-Diffusers",
)
TRAINED = (Z_IMAGE, FLUX1, CHROMA, SD3, QWEN_IMAGE, FLUX2_KLEIN, FLUX2_DEV, KREA2, ANIMA)


@cache
def trained() -> tuple[TransformerKind, ...]:
    return (*TRAINED, *(SINGLE_FILES[name] for name in SINGLE_FILES.names()))


def facts_of(names: str) -> FileFacts | None:
    """Of the family with that table of names, if it says them itself."""
    return SINGLE_FILES[names].facts if names in SINGLE_FILES.names() else None


def supported() -> str:
    return ", ".join(kind.title for kind in trained())


class Found(NamedTuple):
    """A transformer in a file."""

    kind: TransformerKind
    prefix: str  # of its tensors
    shapes: Shapes  # without the prefix


def find_transformer(name: str, shapes: Shapes) -> Found | None:
    """The transformer in the file called `name`; None for a file without one.

    Raises BaseModelError that names it for one that cannot be trained: of another family, a variant with
    other inputs, or a piece of a diffusers folder.
    """
    for prefix in PREFIXES:
        own = {key.removeprefix(prefix): shape for key, shape in shapes.items() if key.startswith(prefix)}
        kind = _kind(own)
        if kind is not None:
            if variant := _variant(kind, own):
                raise BaseModelError(f"{name} is {variant}")
            return Found(kind, prefix, own)
        if what := _of_diffusers(own):
            raise BaseModelError(
                f"{name} is the transformer of {what} in diffusers' layout, a piece of a folder; give the "
                "whole folder (it holds model_index.json), its id on the hub, or the file that UIs use."
            )
        if stranger := next((what for sign, what in _STRANGERS if sign in own), ""):
            raise _unsupported(name, stranger)
    return None


def _has(shapes: Shapes, *names: str) -> bool:
    """A norm's numbers are called `scale`, and `weight` where ComfyUI saved them."""
    return all(one in shapes or re.sub(r"\.scale$", ".weight", one) in shapes for one in names)


def _kind(shapes: Shapes) -> TransformerKind | None:
    for kind in trained():
        if (own := kind.facts) and _has(shapes, *own.signs) and not any(one in shapes for one in own.lacks):
            return kind
    if _has(shapes, "joint_blocks.0.context_block.attn.qkv.weight", "x_embedder.proj.weight"):
        return SD3
    if _has(shapes, "double_blocks.0.img_attn.norm.key_norm.scale") and not _has(shapes, _HUNYUAN):
        if _has(shapes, "double_stream_modulation_img.lin.weight"):
            return FLUX2_DEV if _has(shapes, GUIDANCE) else FLUX2_KLEIN
        return CHROMA if _has(shapes, "distilled_guidance_layer.norms.0.scale") else FLUX1
    if _has(shapes, "cap_embedder.1.weight", "layers.0.attention.qkv.weight", "cap_pad_token"):
        return Z_IMAGE
    if _has(shapes, "txtfusion.projector.weight"):
        return KREA2
    if _has(shapes, "transformer_blocks.0.attn.add_q_proj.weight", "txt_norm.weight"):
        return QWEN_IMAGE
    if _has(shapes, "blocks.0.mlp.layer1.weight", "llm_adapter.blocks.0.cross_attn.q_proj.weight"):
        return ANIMA
    return None


_HUNYUAN = "txt_in.individual_token_refiner.blocks.0.norm1.weight"
_STRANGERS = (  # a tensor that no other model has -> the model
    (_HUNYUAN, "HunyuanVideo"),
    ("double_stream_blocks.0.block.attn1.to_q.weight", "HiDream"),
    ("double_layers.0.attn.w1q.weight", "AuraFlow"),
    ("blocks.0.cross_attn.norm_k.weight", "Wan, which makes videos"),
    ("transformer_blocks.0.attn2.k_norm.weight", "LTX-Video"),
    ("t5_yproj.weight", "Mochi"),
    ("blocks.0.mlp.layer1.weight", "Cosmos"),
    ("clip_text_pooled_proj.0.weight", "NewBie"),
    ("y_embedder.y_proj.fc1.weight", "PixArt"),
    ("txt_in.text_norm.weight", "Qwen-Image 2.1"),
)
_DIFFUSERS = (  # how layers are called in diffusers' layout alone
    ("Z-Image", ("all_x_embedder.2-1.weight",)),
    ("Chroma", ("single_transformer_blocks.0.attn.to_q.weight", "distilled_guidance_layer.in_proj.weight")),
    ("FLUX.2", ("single_transformer_blocks.0.attn.to_qkv_mlp_proj.weight",)),
    ("FLUX.1", ("single_transformer_blocks.0.attn.to_q.weight",)),
    ("Stable Diffusion 3", ("transformer_blocks.0.attn.add_q_proj.weight", "pos_embed.proj.weight")),
    ("Krea 2", ("text_fusion.projector.weight",)),
    ("Anima or Cosmos", ("transformer_blocks.0.attn2.to_q.weight", "time_embed.t_embedder.linear_1.weight")),
    ("Lumina-Image 2", ("time_caption_embed.caption_embedder.1.weight",)),
)


def _of_diffusers(shapes: Shapes) -> str:
    return next((title for title, signs in _DIFFUSERS if all(one in shapes for one in signs)), "")


def _variant(kind: TransformerKind, shapes: Shapes) -> str:
    """What it is instead of the family's model for text to image, and what to do; else ""."""
    title = kind.title
    for pattern, of, what, advice in _VARIANTS:
        if of in ("", title) and any(re.match(pattern, key) for key in shapes):
            return f"{what.format(title)}; {advice}."
    name, per_token = kind.facts.first if kind.facts else _FIRST[kind.names]
    first = shapes.get(name, ())
    columns = first[1] if len(first) > 1 else per_token
    if columns != per_token:
        what = _MORE_COLUMNS.get((title, columns), "a variant with further inputs")
        return (
            f"{what}: its first layer reads {columns} numbers a token, not {per_token}; train on the plain "
            f"{title}, a LoRA for that works in both."
        )
    return ""


_FIRST = {  # the layer that reads the latents, and its columns
    "z_image": ("x_embedder.weight", 64),
    "flux1": ("img_in.weight", 64),
    "chroma": ("img_in.weight", 64),
    "flux2": ("img_in.weight", 128),
    "krea2": ("first.weight", 64),
    "sd3": ("x_embedder.proj.weight", 16),
    "qwen_image": ("img_in.weight", 64),
    "anima": ("x_embedder.proj.1.weight", 68),
}
_MORE_COLUMNS = {
    ("FLUX.1", 384): "FLUX.1 Fill",
    ("FLUX.1", 128): "FLUX.1 Canny or Depth (control)",
    ("FLUX.1", 448): "FLUX.1 Fill with control",
    ("Stable Diffusion 3", 33): "an inpainting model of Stable Diffusion 3",
}
_PLAIN = "train on the plain model of that family"
_VARIANTS = (  # tensors, whose, what it is, what to do
    (r"nerf_(blocks|image_embedder|final_layer)", "Chroma", "Chroma Radiance, which makes pixels", _PLAIN),
    (r"dec_net\.", "Z-Image", "a Z-Image that makes pixels", _PLAIN),
    (r"siglip_(embedder|refiner)", "Z-Image", "Z-Image Omni or Edit, which also reads images", _PLAIN),
    (
        r"controlnet_|control_(layers|noise_refiner|all_x_embedder|img_in|transformer_blocks)"
        r"|input_hint_block|pos_embed_input",
        "",
        "a ControlNet of {}, which steers a base and is none",
        "give the base itself",
    ),
    (
        r"time_text_embed\.addition_t_embedding",
        "Qwen-Image",
        "Qwen-Image Layered, whose images have layers",
        _PLAIN,
    ),
    (
        r"__index_timestep_zero__",
        "Qwen-Image",
        "Qwen-Image Edit, which edits an image",
        _PLAIN,
    ),
)


def _unsupported(name: str, title: str) -> BaseModelError:
    return BaseModelError(f"{name} is {title}, which cannot be trained; supported: {supported()}.")


def block_counts(shapes: Iterable[str]) -> dict[str, int]:
    """Block list -> how many blocks it has, by the highest number, such as double_blocks -> 19."""
    found: dict[str, int] = {}
    for name in shapes:
        if match := re.match(r"(?:distilled_guidance_layer\.|txtfusion\.)?(\w+)\.(\d{1,4})\.", name):
            found[match[1]] = max(found.get(match[1], 0), int(match[2]) + 1)
    return found
