"""The recipe's [adapter]: what is trained inside the base, and where."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from lora_studio.recipe.section import Section, UserPath, from_folder


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
    """One of [[adapter.layers]]: what is different for some layers. The last one of each option wins."""

    pattern: str = Field(
        min_length=1,
        description='of <part>.<path> or the path, with * and ?: "text_encoder_2.*", "*.to_v"',
    )
    rank: int | None = Field(None, ge=1, le=4096, description="without alpha, the scale stays as it was")
    alpha: float | None = Field(None, gt=0)
    learning_rate: float | None = Field(None, gt=0, le=1)
    train: bool | None = Field(
        None, description="false: these stay as the base has them; true takes an earlier false back"
    )

    @model_validator(mode="after")
    def _says_something(self) -> LayersConfig:
        wishes = (self.rank, self.alpha, self.learning_rate, self.stop_at)
        if self.train is None and wishes == (None,) * len(wishes):
            raise ValueError(
                f"adapter.layers: {self.pattern!r} changes nothing; "
                "give a rank, alpha, learning_rate, stop_at or train."
            )
        if self.train is False and wishes != (None,) * len(wishes):
            raise ValueError(
                f"adapter.layers: {self.pattern!r} has train = false and other options; keep one of both."
            )
        return self


class AdapterConfig(Section):
    """What is trained inside the base."""

    kind: str = "lora"
    rank: int = Field(16, ge=1, le=4096, description="4 to 64 are common; of oft the size of a block")
    alpha: float = Field(16.0, gt=0, description="the update is scaled by alpha / rank; alpha = rank is 1")
    rslora: bool = Field(
        False, description="scale by alpha / sqrt(rank), arXiv 2312.03732: a large rank is not slowed down"
    )
    conv: bool = Field(
        False,
        description="those of the residual blocks, too, as locon always has; no gain in spacepxl's ablation",
    )
    conv_rank: int | None = Field(
        None, ge=1, le=4096, description="of convolutions larger than 1 x 1; as the others if left out"
    )
    conv_alpha: float | None = Field(None, gt=0, description="if left out, the scale is as the others'")
    text_encoder: bool = Field(
        False, description="off: a controlled ablation found no gain (spacepxl, SD1.5)"
    )
    blocks: str = Field(
        "all", description="content or style: only that block of the denoiser, as B-LoRA, arXiv 2403.14572"
    )
    layers: tuple[LayersConfig, ...] = Field(
        (), description="[[adapter.layers]]: other wishes for some layers"
    )
    init_from: UserPath | None = Field(
        None, description="a LoRA file whose numbers are the first ones of a new run; relative to the recipe"
    )
    start: Literal["default", "pissa"] = Field(
        "default",
        description="pissa, arXiv 2404.02948: at the weights' main directions; a file of twice the rank",
    )
    lora_plus_ratio: float = Field(
        1.0,
        ge=1,
        le=100,
        description="LoRA+, arXiv 2402.12354: how much faster `up` learns; 4 to 16, 1 is off",
    )
    rank_dropout: float = Field(0.0, ge=0, le=0.5, description="share of ranks left out of a micro-batch")
    module_dropout: float = Field(0.0, ge=0, le=0.5, description="share of layers left out of a micro-batch")
    max_norm: float = Field(0.0, ge=0, description="most that a layer's change may be, as a norm; 0: any")

    def below(self, folder: Path) -> AdapterConfig:
        """The same with relative paths taken from `folder`."""
        if self.init_from is None:
            return self
        return self.model_copy(update={"init_from": from_folder(folder, self.init_from)})
