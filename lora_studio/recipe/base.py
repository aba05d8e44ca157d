"""The recipe's [base]: which frozen model is adapted."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field, ValidationInfo, field_validator

from lora_studio.files import expanded
from lora_studio.pocket import EMBEDDED
from lora_studio.recipe.section import Section, UserPath, check_path, folder_of, refuse_escapes
from lora_studio.tensor_file import FILE_ENDINGS


class MergedLoraConfig(Section):
    """A finished LoRA that is part of the base for this run."""

    file: UserPath = Field(description="a LoRA .safetensors file; relative to the recipe's folder")
    strength: float = Field(1.0, ge=-10, le=10, description="factor of its change")


class BaseConfig(Section):
    """Which frozen model is adapted."""

    resume_safe: ClassVar[frozenset[str]] = frozenset({"allow_pickle"})

    model: str = Field(
        description='"pocket" or "pocket_flow" (in the package), a diffusers folder, a .safetensors file, '
        "or a hub id"
    )
    vae: str = Field(
        "",
        description="another VAE than the base's: a folder, a .safetensors file in diffusers' or the "
        "original layout, or a hub id",
    )
    text_encoder: tuple[str, ...] = Field(
        (),
        description="for a file with a transformer alone: what its text encoders are in, each a folder, a "
        ".safetensors file, or a hub id; one of a whole base has all of them",
    )
    distilled: bool | Literal["auto"] = Field(
        "auto",
        description="whether the base makes its images in a few steps (Turbo, schnell, klein without base), "
        "which its weights do not show; auto: by its name",
    )
    training_adapter: UserPath | None = Field(
        None,
        description="a LoRA file that a distilled base is trained with: it is there while it learns, and "
        "neither in previews nor in the finished file",
    )
    prediction_type: Literal["auto", "epsilon", "v_prediction"] = Field(
        "auto", description="for a base that does not say; anything but what it says is refused"
    )
    tokenizer: UserPath | None = Field(
        None,
        description="for a file: a folder with its tokenizer's files (vocab.json and merges.txt, or "
        "tokenizer.json), or with a folder of such for each text encoder; CLIP's comes with the package",
    )
    allow_pickle: bool = Field(False, description="for a .ckpt file: read it, tensors only")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto",
        description="auto: bfloat16 on a GPU, float16 on one older than Ampere, which has none; else float32",
    )
    loras: tuple[MergedLoraConfig, ...] = Field(
        (), description="LoRAs merged into the base first; whoever uses the new one needs them, too"
    )
    quantize: str = Field(
        "none",
        description="none, bnb_int8, bnb_nf4, torchao_int8 or torchao_float8: keep the denoiser's frozen "
        "linear layers in 8 or 4 bits; less memory, less exact",
    )
    vae_dtype: Literal["float32", "bfloat16"] = Field(
        "float32", description="bfloat16: images are encoded faster on a GPU, and a little less exactly"
    )

    @field_validator("text_encoder", mode="before")
    @classmethod
    def _one_or_several(cls, names: object) -> object:
        return [names] if isinstance(names, str) and names else names or []

    @field_validator("text_encoder")
    @classmethod
    def _each_beside_the_recipe(cls, names: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        return tuple(cls._beside_the_recipe(name, info) for name in names)

    @field_validator("model", "vae")
    @classmethod
    def _beside_the_recipe(cls, name: str, info: ValidationInfo) -> str:
        """A base in the recipe's folder, or else in the working directory; other names as they are."""
        check_path(Path(name))
        folder = folder_of(info)
        if folder is None or name in {"", *EMBEDDED}:
            return name
        path = expanded(name)
        there = [place for place in (folder / path, path) if place.exists()]
        if path.suffix in FILE_ENDINGS:  # of one that is missing, too, to say where it was looked for
            there.append(folder / path)
        if not there:
            refuse_escapes(name)
        return str(there[0].resolve()) if there else name
