"""Whose names a file's keys have: each UI does something else with each."""

from __future__ import annotations

import re
from enum import StrEnum

from lora_studio.families.layer_names import PART_PATTERN, path_name
from lora_studio.families.layer_names.spellings import UNET, LayerPlace


class Spelling(StrEnum):
    """Whose names a layer has; with each the UIs do something else."""

    KOHYA = "kohya"  # `lora_te_x.lora_down.weight`
    LETTERED = "lettered"  # `lora_te_x.lora_A.weight`
    PEFT = "peft"  # `text_encoder.x.lora_A.weight`
    PEFT_MODULE = "peft_module"  # the same of a text encoder without `text_model`
    PROCESSOR = "processor"  # `unet.x.processor.to_q_lora.down.weight`, `text_encoder.x.lora_linear_layer`
    BARE_PROCESSOR = "bare_processor"  # the same without `unet.`
    COMFY = "comfy"  # `diffusion_model.x.lora_up.weight`, `text_encoders.clip_l.transformer.x.diff`
    LYCORIS = "lycoris"  # `lycoris_x.lora_down.weight`
    OTHER = "other"  # one that is understood, and was tried with no UI


_OLD_KEYS = r".+\.processor\.to_(?:[qkv]|out)_lora\.(?:down|up)\.weight|.+\.lora\.(?:down|up)\.weight"
_COMFYS_PART = r"diffusion_model|text_encoders\.clip_[lgh]\.transformer"
_SPELLINGS: tuple[tuple[Spelling, re.Pattern[str]], ...] = tuple(
    (spelling, re.compile(pattern))
    for spelling, pattern in (
        (Spelling.LYCORIS, r"lycoris_[^.]+\..+"),
        (Spelling.PEFT_MODULE, r"text_encoder(?:_2)?\.(?:encoder|final_layer_norm)\..+\.lora_[AB]\.weight"),
        (Spelling.PEFT, rf"(?:{PART_PATTERN})\.(?!.*\.processor\.).+\.lora_[AB]\.weight"),
        (Spelling.PROCESSOR, rf"unet\.(?:{_OLD_KEYS})|text_encoder(?:_2)?\..+\.lora_linear_layer\..+"),
        (Spelling.BARE_PROCESSOR, rf"(?!text_encoder|base_model)(?:{_OLD_KEYS})"),
        (Spelling.COMFY, rf"(?:{_COMFYS_PART})\..+\.(?:lora_(?:up|down)\.weight|diff|diff_b)"),
    )
)
_ORIGINAL_PATH = re.compile(r"(?:model\.)?diffusion_model\.(.+)")


def spelling_of(key: str) -> Spelling:
    """Of a key that is not kohya's own."""
    return next((one for one, like in _SPELLINGS if like.fullmatch(key)), Spelling.OTHER)


def kohyas_name(stem: str, place: LayerPlace, *, two_encoders: bool) -> str:
    """What kohya would write for a key's stem in another spelling, by the path that stands there."""
    original = _ORIGINAL_PATH.fullmatch(stem) if place.part == UNET else None
    return path_name(place.part, original[1] if original else place.path, two_encoders=two_encoders)
