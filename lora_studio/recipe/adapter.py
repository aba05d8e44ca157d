"""The recipe's [adapter]: what is trained inside the base, and where."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from lora_studio.recipe.section import Section, UserPath


class Stopping(Section):
    """What is trained, and may stop before the end."""

    stop_at: float | None = Field(
        None, gt=0, description="not trained after this step; up to 1: this share of the steps"
    )

    def last_step(self, steps: int) -> int | None:
        """The last one that it is trained in; None: it is trained to the end."""
        if self.stop_at is None:
            return None
        return max(1, round(self.stop_at * steps if self.stop_at <= 1 else self.stop_at))


class LayersConfig(Stopping):
    """Other settings for some layers. Of several tables for a layer, the last one of each option wins."""

    pattern: str = Field(
        min_length=1,
        description="the layers: <part>.<path> or the path alone, with * and ?, "
        'such as "text_encoder_2.*" or "*.to_v"',
    )
    rank: int | None = Field(None, ge=1, le=4096, description="their rank; without alpha, the scale stays")
    alpha: float | None = Field(None, gt=0, description="their alpha")
    learning_rate: float | None = Field(None, gt=0, le=1, description="their learning rate")
    train: bool | None = Field(
        None, description="false: they stay as the base has them; true takes an earlier false back"
    )

    @model_validator(mode="after")
    def _says_something(self) -> LayersConfig:
        settings = (self.rank, self.alpha, self.learning_rate, self.stop_at)
        if self.train is None and settings == (None,) * len(settings):
            raise ValueError(
                f"adapter.layers: {self.pattern!r} changes nothing; "
                "give a rank, alpha, learning_rate, stop_at or train."
            )
        if self.train is False and settings != (None,) * len(settings):
            raise ValueError(
                f"adapter.layers: {self.pattern!r} has train = false and other options; keep one of both."
            )
        return self


class AdapterConfig(Section):
    """What is trained inside the base."""

    kind: str = Field(
        "lora",
        description="lora, locon, dora, loha, lokr, oft; full: the base's own layers; none: [[tokens]] alone",
    )
    rank: int = Field(16, ge=1, le=4096, description="4 to 64 are common; for oft the size of a block")
    alpha: float = Field(16.0, gt=0, description="the update is scaled by alpha / rank; alpha = rank is 1")
    rslora: bool = Field(
        False, description="scale by alpha / sqrt(rank), arXiv 2312.03732: a large rank is not slowed down"
    )
    conv: bool = Field(
        False,
        description="also adapt the residual blocks' convolutions, as locon does; an ablation found no gain",
    )
    conv_rank: int | None = Field(
        None, ge=1, le=4096, description="of convolutions larger than 1 x 1; rank if left out"
    )
    conv_alpha: float | None = Field(
        None, gt=0, description="of the same convolutions; if left out, the scale is that of other layers"
    )
    text_encoder: bool = Field(
        False, description="train the text encoders, too; an ablation found no gain (spacepxl, SD1.5)"
    )
    blocks: str = Field(
        "all", description="content or style: only that block of the denoiser, as in B-LoRA, arXiv 2403.14572"
    )
    layers: tuple[LayersConfig, ...] = Field((), description="other settings for some layers")
    init_from: UserPath | None = Field(
        None, description="a LoRA file whose weights a new run begins with; relative to the recipe's folder"
    )
    start: Literal["default", "pissa"] = Field(
        "default",
        description="pissa, arXiv 2404.02948: along the weights' main directions; a file of twice the rank",
    )
    lora_plus_ratio: float = Field(
        1.0, ge=1, le=100, description="LoRA+, arXiv 2402.12354: how much faster `up` learns; 4 to 16; 1: off"
    )
    rank_dropout: float = Field(0.0, ge=0, le=0.5, description="share of ranks left out of each micro-batch")
    module_dropout: float = Field(0.0, ge=0, le=0.5, description="share of layers left out of a micro-batch")
    max_norm: float = Field(0.0, ge=0, description="largest norm of a layer's update; 0: no limit")
