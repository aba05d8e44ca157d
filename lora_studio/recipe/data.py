"""The recipe's [data]: which images and captions are learned."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from lora_studio.recipe.section import (
    MOST_SEED,
    Section,
    UserPath,
    Words,
)

MOST_REPEATS, MOST_RESOLUTION = 1000, 4096
MOST_CHUNKS = 10  # windows of the text encoders that a caption may fill


class SourceConfig(Section):
    """One of several folders of images. What it leaves out, [data] says."""

    images: UserPath = Field(description="a folder of images; relative to the recipe's folder")
    role: Literal["instance", "prior", "validation"] = Field(
        "instance", description="instance: trained on; prior: regularization; validation: only measured"
    )
    repeats: int | None = Field(
        None, ge=1, le=MOST_REPEATS, description="how often an epoch shows each image"
    )
    weight: float = Field(1.0, gt=0, le=100, description="factor of the loss on its images")
    trigger: Words | None = Field(None, description="the trigger words of what this source shows")
    class_words: Words | None = Field(None, description="what the trigger words are an instance of")
    instance_prompt: Words | None = Field(None, description="the caption of images without one")
    recursive: bool | None = Field(None, description="also search all subfolders")
    masks: UserPath | None = Field(None, description="a folder of loss masks for its images")


class RegularizationImagesConfig(Section):
    """Prior preservation: images of the class without the trigger words, so that it stays what it was."""

    count: int = Field(0, ge=0, le=100_000, description="how many the frozen base draws")
    images: UserPath | None = Field(None, description="a folder of such images instead of count")
    prompt: Words = Field(
        "",
        description="what they show, or the caption of a folder's images that have none; empty: every "
        "caption without its trigger words, or the folder's captions",
    )
    weight: float = Field(1.0, gt=0, le=100, description="factor of the loss on them; arXiv 2208.12242 has 1")
    per_image: float = Field(1.0, gt=0, le=16, description="how many are added for each image of a batch")
    steps: int = Field(25, ge=1, le=1000, description="denoising steps of an image; for count only")
    guidance: float = Field(7.5, ge=1, le=100, description="classifier-free guidance; for count only")
    seed: int = Field(0, ge=0, le=MOST_SEED, description="of their noise; for count only")


class DataConfig(Section):
    """Which images and captions are learned."""

    resume_safe: ClassVar[frozenset[str]] = frozenset({"latent_memory_gb"})

    images: UserPath | None = Field(None, description="a folder of images; relative to the recipe's folder")
    sources: tuple[SourceConfig, ...] = Field((), description="several folders, each with its own settings")
    recursive: bool = Field(
        False, description="also search all subfolders; without it only those named <repeats>_<name>"
    )
    masks: UserPath | None = Field(
        None, description="a folder of loss masks, named like the images: white is learned, black is not"
    )
    exclude: UserPath | None = Field(
        None, description="a text file with names or relative paths of files to leave out, one a line"
    )
    background: str = Field(
        "white",
        pattern=r"^(white|black|grey|#[0-9a-fA-F]{6})$",
        description='the colour of transparent parts: white, black, grey or "#rrggbb"',
    )
    transparency: Literal["background", "mask"] = Field(
        "background", description="background: transparent parts are learned in that colour; mask: not at all"
    )
    trigger: Words = Field(
        "", description="trigger words: they call what is learned, and every caption should hold them"
    )
    class_words: Words = Field(
        "", description='what the trigger words are an instance of: "robot" for "vkq robot"; for preservation'
    )
    captioner: str = Field("sidecar", description="where captions come from; sidecar: the .txt beside it")
    instance_prompt: Words = Field("", description="the caption of images without one")
    resolution: int = Field(
        512, ge=16, le=MOST_RESOLUTION, description="side in pixels of a square of a bucket's area"
    )
    extra_resolutions: tuple[Annotated[int, Field(ge=16, le=MOST_RESOLUTION)], ...] = Field(
        (),
        max_length=16,
        description="further resolutions: every epoch also shows each image at these",
    )
    area_tolerance: float = Field(
        0.16, ge=0, le=0.5, description="how much smaller a bucket's area may be, so that less is cropped"
    )
    max_upscale: float = Field(
        1.5, ge=1, le=16, description="largest factor of enlarging; beyond it the bucket is smaller"
    )
    crop: Literal["centre", "random", "focus"] = Field(
        "centre", description="focus: around the middle of the mask, or the point in the image's metadata"
    )
    crops: int = Field(4, ge=1, le=64, description='crops of each image with crop = "random"')
    flip: float = Field(
        0.0,
        ge=0,
        le=1,
        description="share of mirrored views; true is 0.5. Not for captions with left or right",
    )
    repeats: int = Field(1, ge=1, le=MOST_REPEATS, description="how often an epoch shows each image")
    caption_dropout: float = Field(
        0.05, ge=0, lt=1, description="share of captions replaced by an empty one; keeps guidance working"
    )
    caption_lines: Literal["choose", "join"] = Field(
        "choose", description="choose: draw one line of a caption file each time; join: all lines are one"
    )
    wildcards: bool = Field(False, description="in captions, draw one of the words in {a|b} each time")
    shuffle_tags: bool = Field(False, description="shuffle what is between commas each time")
    keep_tags: int = Field(
        0, ge=0, le=1000, description="the first tags that are neither shuffled nor left out"
    )
    tag_dropout: float = Field(
        0.0, ge=0, lt=1, description="share of tags left out each time; never one with the trigger words"
    )
    caption_prefix: Words = Field(
        "",
        description="added before every caption but those of a folder of regularization images; may hold "
        "{trigger} and {class}",
    )
    caption_suffix: Words = Field("", description="added behind the same captions, likewise")
    max_token_chunks: int = Field(
        1, ge=1, le=MOST_CHUNKS, description="windows of 75 tokens (CLIP) for long captions, as in web UIs"
    )
    regularization_images: RegularizationImagesConfig = Field(
        RegularizationImagesConfig(), description="images of the class, so that it stays what it was"
    )
    latent_memory_gb: float = Field(
        2.0,
        ge=0,
        le=10_000,
        description="GB of latents kept on the device; more is read from the disk, a step ahead",
    )

    @field_validator("flip", mode="before")
    @classmethod
    def _half_of_them(cls, flip: object) -> object:
        return (0.5 if flip else 0.0) if isinstance(flip, bool) else flip

    @model_validator(mode="after")
    def _one_way_to_name_images(self) -> DataConfig:
        if self.images is None and not self.sources:
            raise ValueError("data.images is missing; set it to a folder of images.")
        if self.images is not None and self.sources:
            raise ValueError("data.images and data.sources are both there; keep one of them.")
        if self.sources and self.masks is not None:
            raise ValueError("data.masks belongs to data.images; set masks in a table of data.sources.")
        if self.sources and not any(source.role == "instance" for source in self.sources):
            raise ValueError('data.sources has nothing to train on; give one of them role = "instance".')
        return self

    @model_validator(mode="after")
    def _kept_tags_could_change(self) -> DataConfig:
        if self.keep_tags and not (self.shuffle_tags or self.tag_dropout):
            raise ValueError(
                f"data.keep_tags is {self.keep_tags}, but no tags are shuffled or left out; set "
                "data.shuffle_tags or data.tag_dropout, or leave data.keep_tags out."
            )
        return self

    @model_validator(mode="after")
    def _regularization_images_come_from_somewhere(self) -> DataConfig:
        wanted = self.regularization_images
        if wanted.count and wanted.images is not None:
            raise ValueError("data.regularization_images has both count and images; keep one of them.")
        drawing, usual = ("steps", "guidance", "seed"), RegularizationImagesConfig()
        given = [name for name in drawing if getattr(wanted, name) != getattr(usual, name)]
        idle = [f"{name} = {getattr(wanted, name)}" for name in given]
        if wanted.images is not None and idle:
            raise ValueError(
                f"data.regularization_images has images, which are not drawn, so {', '.join(idle)} would "
                "change nothing; leave that out, or set count in place of images."
            )
        if wanted == usual or wanted.count or wanted.images is not None:
            return self
        only_ratio = wanted == RegularizationImagesConfig(per_image=wanted.per_image)
        if not (only_ratio and any(source.role == "prior" for source in self.sources)):
            raise ValueError(
                "data.regularization_images has neither count nor images; set count, and the base draws so "
                "many, or images to a folder of them."
            )
        return self

    @property
    def all_sources(self) -> tuple[SourceConfig, ...]:
        """The sources, or data.images as the only one; then the folder of regularization images."""
        sources, own = self.sources, self.regularization_images
        if self.images is not None:
            sources = (SourceConfig(images=self.images, masks=self.masks),)
        if own.images is None:
            return sources
        prior = SourceConfig(images=own.images, role="prior", repeats=1, weight=own.weight)
        return (*sources, prior.model_copy(update={"instance_prompt": own.prompt or None}))

    @property
    def regularization_sources(self) -> list[str]:
        """The options that give regularization images."""
        found = {
            "data.regularization_images.count": bool(self.regularization_images.count),
            "data.regularization_images.images": self.regularization_images.images is not None,
            'role = "prior" in data.sources': any(one.role == "prior" for one in self.sources),
        }
        return [words for words, is_there in found.items() if is_there]

    @property
    def all_resolutions(self) -> tuple[int, ...]:
        return (self.resolution, *self.extra_resolutions)


def one_more_chunk(chunks: int, most: int = MOST_CHUNKS) -> str:
    """The setting that allows one window more than `chunks`; empty if `most` are allowed already."""
    return f"data.max_token_chunks = {chunks + 1}" if chunks < most else ""
