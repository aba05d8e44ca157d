"""The recipe's [samples], [export] and [tracking]: what a run shows and leaves behind."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from lora_studio.recipe.section import Section


class SamplesConfig(Section):
    """Previews: images that show what was learned, with the same prompts and seeds for base and LoRA."""

    resume_safe: ClassVar[Literal["all"]] = "all"

    prompts: tuple[str, ...] = Field((), description="one preview for each; none: no previews")
    negative_prompt: str = Field("", description="of all previews, as in any UI")
    seed: int = Field(42, ge=0, description="of the previews' noise")
    steps: int = Field(25, ge=1, description="denoising steps of a preview")
    guidance: float = Field(7.5, ge=1, description="classifier-free guidance; 1 turns it off")
    every: int = Field(0, ge=0, description="steps between previews; 0: only at the end")


class ExportConfig(Section):
    """The finished file."""

    resume_safe: ClassVar[Literal["all"]] = "all"

    dtype: Literal["float16", "bfloat16", "float32"] = Field(
        "float16", description="float16 is what UIs expect"
    )
    title: str = Field("", max_length=200, description="shown by UIs; the recipe's name if empty")
    strength: float = Field(1.0, gt=0, le=10, description="recommended, in metadata and sidecars")
    sidecars: bool = Field(
        False, description="also write a preview image, what UIs show beside it, and a model card"
    )
    tag_frequency: bool = Field(
        False, description="write how often each tag is in the captions: everyone can then read them"
    )
    author: str = Field("", max_length=200, description="named in the file, if you want to be")
    description: str = Field("", max_length=2000, description="what it is, in the file and on its card")
    license: str = Field("", max_length=200, description="the hub's name of one, e.g. cc-by-4.0; your choice")
    tags: tuple[Annotated[str, Field(max_length=100)], ...] = Field(
        (), max_length=50, description="by which the file is found, such as style or woodcut"
    )


class TrackingConfig(Section):
    """Which services get losses, learning rates and previews; none by default."""

    resume_safe: ClassVar[Literal["all"]] = "all"

    to: tuple[str, ...] = Field((), description='any of "tensorboard", "wandb" and "trackio"')
    project: str = Field(
        "lora-studio",
        pattern=r"^[A-Za-z0-9_][A-Za-z0-9._-]{0,63}$",
        description="what the runs are listed under: 1 to 64 letters, digits, dots, _ and -",
    )
    run_name: str = Field("", max_length=128, description="of this run there; the recipe's name if empty")
    words: bool = Field(
        False, description="also send trigger words and the previews' prompts, not numbers and images only"
    )
