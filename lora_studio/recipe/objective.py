"""The recipe's [objective]: how an image is noised and the prediction weighted."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from lora_studio.recipe.section import Section

Share = Annotated[float, Field(ge=0, le=1)]
LEAST_RANGE = 0.01  # of all timesteps


class ObjectiveConfig(Section):
    """How an image is noised and the prediction weighted."""

    weighting: Literal["min_snr", "debiased"] = Field(
        "min_snr", description="debiased, arXiv 2310.08442: more on high noise, where the palette is set"
    )
    snr_gamma: float = Field(5.0, ge=0, description="min-SNR's cap, arXiv 2303.09556; 0 turns it off")
    noise_offset: float = Field(0.0, ge=0, le=0.5, description="only for very dark or bright styles")
    preservation: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="share of images shown without trigger words, to keep the base's prediction",
    )
    masked_preservation: float = Field(
        0.0, ge=0, le=10, description="weight outside of loss masks of keeping the base's prediction; 0: off"
    )
    timesteps: Literal["stratified", "low_variance", "uniform"] = Field(
        "stratified",
        description="stratified: one from each part of the range in a batch; low_variance: across steps, too",
    )
    timestep_range: tuple[Share, Share] = Field(
        (0.0, 1.0), description="shares of the way to noise; [0.5, 1.0] learns layout and colours only"
    )
    timestep_bias: float = Field(
        0.0, ge=-3, le=3, description="above 0: more high noise (layout, style); below 0: more details"
    )
    multires_noise: float = Field(
        0.0, ge=0, le=0.9, description="share of each coarser noise; 0.3 learns dark and bright images"
    )
    input_perturbation: float = Field(
        0.0, ge=0, le=1, description="more noise in the input than in the target; arXiv 2301.11706 has 0.1"
    )
    loss: Literal["l2", "huber", "smooth_l1"] = Field(
        "l2", description="huber and smooth_l1 count large errors less, so outliers are learned less"
    )
    loss_delta: float = Field(
        1.0, gt=0, le=10, description="for huber and smooth_l1: the error above which it counts linearly"
    )

    @model_validator(mode="after")
    def _what_goes_together(self) -> ObjectiveConfig:
        lowest, highest = self.timestep_range
        if not highest - lowest >= LEAST_RANGE:
            raise ValueError(
                f"objective.timestep_range is {[lowest, highest]}; the second share must be at least "
                f"{LEAST_RANGE} above the first, as in [0.0, 0.5]."
            )
        if self.loss == "l2" and self.loss_delta != type(self).model_fields["loss_delta"].default:
            raise ValueError(
                f"objective.loss_delta is {self.loss_delta}, which the loss 'l2' does not use; set "
                'objective.loss = "huber" or "smooth_l1", or leave loss_delta out.'
            )
        return self
