"""Which kind of base a checkpoint in the original layout is, told from tensor names and shapes alone."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

from lora_studio.errors import BaseModelError

Shapes = Mapping[str, tuple[int, ...]]

UNET_PREFIX = "model.diffusion_model."
VAE_PREFIX = "first_stage_model."
FIRST_LAYER = f"{UNET_PREFIX}input_blocks.0.0.weight"
ALLOWED = "give a whole Stable Diffusion 1.x, 2.x or XL checkpoint for text to image, or a diffusers folder."


@dataclass(frozen=True)
class TextEncoder:
    """A text encoder by its name in diffusers, and how the original layout spells it."""

    part: str
    prefix: str
    open_clip: bool  # OpenCLIP's names, q, k and v in one tensor; else transformers' names
    width: int  # of the published one
    layers: int  # that the published one's output comes from
    pad_token: str
    projects: bool = False  # its pooled output conditions the UNet, too
    drops_last: bool = False  # the file has a last layer that the base never asks


@dataclass(frozen=True)
class BaseKind:
    """What bases of one kind share and no shape shows. Sources: the published configurations."""

    title: str
    text_encoders: tuple[TextEncoder, ...]
    channels: tuple[int, ...]  # of the published UNet's levels
    depths: tuple[int, ...]  # transformer blocks of each level; 0: no attention
    num_heads: int | None  # of every attention; None: 64 channels a head
    linear_projection: bool
    latent_scale: float
    sides: Mapping[str, int]  # prediction -> pixels that it was trained with
    sized: bool = False  # pooled text and image sizes are inputs of the UNet
    marks_prediction: bool = False  # a file that predicts v says so in a tensor named v_pred

    def has_unet(self, configuration: Mapping[str, object]) -> bool:
        """Whether a UNet with that diffusers configuration, if of any of these kinds, is of this one."""
        added = configuration.get("addition_embed_type")
        linear = bool(configuration.get("use_linear_projection"))
        return added == "text_time" if self.sized else not added and linear == self.linear_projection


_CLIP_L, _CLIP_END = (768, 12), "<|endoftext|>"
SD1 = BaseKind(
    title="Stable Diffusion 1.x",
    text_encoders=(TextEncoder("text_encoder", "cond_stage_model.transformer.", False, *_CLIP_L, _CLIP_END),),
    channels=(320, 640, 1280, 1280),
    depths=(1, 1, 1, 0),
    num_heads=8,
    linear_projection=False,
    latent_scale=0.18215,
    sides={"epsilon": 512, "v_prediction": 512},
)
_OPEN_CLIP_H = TextEncoder("text_encoder", "cond_stage_model.model.", True, 1024, 23, "!", drops_last=True)
SD2 = replace(
    SD1,
    title="Stable Diffusion 2.x",
    text_encoders=(_OPEN_CLIP_H,),
    num_heads=None,
    linear_projection=True,
    sides={"epsilon": 512, "v_prediction": 768},
)
SDXL = BaseKind(
    title="Stable Diffusion XL",
    text_encoders=(
        TextEncoder("text_encoder", "conditioner.embedders.0.transformer.", False, *_CLIP_L, _CLIP_END),
        TextEncoder("text_encoder_2", "conditioner.embedders.1.model.", True, 1280, 32, "!", projects=True),
    ),
    channels=(320, 640, 1280),
    depths=(0, 2, 10),
    num_heads=None,
    linear_projection=True,
    latent_scale=0.13025,
    sides={"epsilon": 1024, "v_prediction": 1024},
    sized=True,
    marks_prediction=True,
)
KINDS = (SD1, SD2, SDXL)

_REFINER_TEXT = "conditioner.embedders.0.model."
_ADAPTER = re.compile(r"\.(lora_(up|down|A|B|mid)\b|hada_w|lokr_w|oft_|glora|dora_scale)|^lora_|_lora[._]")
_INPUTS = {5: "a depth model", 7: "an upscaler", 8: "an InstructPix2Pix model", 9: "an inpainting model"}
# What a file is that is no whole base, by a piece of a tensor's name. The first that fits counts.
_STRANGERS = (
    (re.compile(r"(^|\.)joint_blocks\."), "a Stable Diffusion 3 model"),
    (re.compile(r"(^|\.)double_blocks\."), "a Flux model"),
    (re.compile(r"^(control_model|controlnet_\w+)\."), "a ControlNet"),
    (re.compile(r"^(string_to_param|emb_params|clip_[lg]$)"), "an embedding (textual inversion)"),
    (re.compile(r"^((encoder|decoder)\.(down|up|conv_in|mid)|quant_conv\.)"), "a VAE alone"),
    (re.compile(r"^(input_blocks|down_blocks|output_blocks)\."), "a UNet alone"),
    (re.compile(r"^(text_model|transformer\.resblocks|encoder\.layers)\."), "a text encoder alone"),
)


def detect(name: str, shapes: Shapes) -> BaseKind:
    """The kind of the checkpoint called `name`. Raises BaseModelError that says what it is instead."""
    if any(_ADAPTER.search(key) for key in shapes):
        raise _refusal(name, "a LoRA file, not a base")
    kind = next((kind for kind in KINDS if all(_has(shapes, t.prefix) for t in kind.text_encoders)), None)
    if kind is None or not _has(shapes, UNET_PREFIX) or not _has(shapes, VAE_PREFIX):
        raise _refusal(name, _stranger(shapes, kind))
    if "edm_mean" in shapes or "edm_vpred.sigma_max" in shapes:
        raise _refusal(name, "an EDM model (Playground, CosXL), whose noise schedule is another")
    first = shapes.get(FIRST_LAYER, ())
    channels = first[1] if len(first) == 4 else 4  # a missing layer is told with the others
    if channels != 4:
        what = _INPUTS.get(channels, "of an unknown kind")
        raise _refusal(name, f"{what}: its UNet takes {channels} channels, not 4")
    if not kind.sized and _has(shapes, f"{UNET_PREFIX}label_emb."):
        raise _refusal(name, "an unCLIP model, whose UNet also takes an image's embedding")
    _check_context(name, kind, shapes)
    return kind


def _has(shapes: Shapes, prefix: str) -> bool:
    return any(key.startswith(prefix) for key in shapes)


def _check_context(name: str, kind: BaseKind, shapes: Shapes) -> None:
    """The UNet's cross-attention is as wide as its text encoders together: 768, 1024 or 768 + 1280."""
    wide = _widths(shapes, UNET_PREFIX, "attn2.to_k.weight", 1)
    text = [_widths(shapes, encoder.prefix, "token_embedding.weight", 1) for encoder in kind.text_encoders]
    if wide and all(text) and wide != {sum(max(widths) for widths in text)}:
        found = " + ".join(str(max(widths)) for widths in text)
        parts = f"its UNet reads text {max(wide)} wide, its text is {found} wide"
        raise _refusal(name, f"put together from two kinds: {parts}")


def _widths(shapes: Shapes, prefix: str, ending: str, axis: int) -> set[int]:
    return {
        shape[axis]
        for key, shape in shapes.items()
        if key.startswith(prefix) and key.endswith(ending) and len(shape) > axis
    }


def _stranger(shapes: Shapes, kind: BaseKind | None) -> str:
    """What a file is that lacks a part of every known kind."""
    if not shapes:
        return "without a single tensor"
    for pattern, what in _STRANGERS:
        if any(pattern.search(key) for key in shapes):
            return what
    if kind is None and _has(shapes, _REFINER_TEXT) and _has(shapes, UNET_PREFIX):
        return "the refiner of Stable Diffusion XL, which only finishes images"
    parts = {"UNet": _has(shapes, UNET_PREFIX), "VAE": _has(shapes, VAE_PREFIX)}
    text = next((key for key in shapes if key.startswith(("cond_stage_model.", "conditioner."))), None)
    parts["text encoder"] = kind is not None or text is not None
    there, lacking = ([part for part, found in parts.items() if found is wanted] for wanted in (True, False))
    if not there:
        return f"unknown: its first tensor is {next(iter(shapes))}"
    if len(there) == 1:
        return f"a {there[0]} alone"
    if lacking:
        return f"not whole: it has no {' and no '.join(lacking)}"
    return f"unknown: its text encoder is {text}"


def _refusal(name: str, what: str) -> BaseModelError:
    return BaseModelError(f"{name} is {what}; {ALLOWED}")
