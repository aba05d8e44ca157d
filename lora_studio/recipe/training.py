"""The recipe's tables of how a run learns, measures and uses the machine, and what it leaves behind."""

from __future__ import annotations

import math
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, SerializerFunctionWrapHandler, field_validator, model_serializer, model_validator

from lora_studio.recipe.section import MOST_SEED, MOST_STEPS, Prompt, Section

VALIDATE_FROM = 12  # images: of fewer each one is needed more than the measurement
VALIDATION_SHARE = 0.1
MOST_VALIDATION = 12  # a measurement of so many costs about as much as eight steps of four images


class TrainingConfig(Section):
    """How long and how fast. Whether `steps` may change in a resume, the schedule decides."""

    resume_safe: ClassVar[frozenset[str]] = frozenset(
        {"max_skipped_steps", "checkpoint_every", "keep_checkpoints"}
    )

    steps: int = Field(
        1000,
        ge=1,
        le=MOST_STEPS,
        description="optimizer steps; a resume may change it where no learning rate depends on it",
    )
    epochs: float | None = Field(
        None, gt=0, le=100_000, description="in place of steps: how often all images are shown"
    )
    batch_size: int = Field(
        4, ge=1, le=4096, description="images in a micro-batch, of all processes together"
    )
    gradient_accumulation: int = Field(1, ge=1, le=4096, description="micro-batches in an optimizer step")
    loss_average: Literal["micro_batch", "image"] = Field(
        "micro_batch",
        description="what counts alike: micro-batches, also smaller ones (as in kohya's), or images",
    )
    learning_rate: float = Field(
        1e-4, gt=0, le=1, description="for AdamW with alpha = rank; lion wants a third or less, prodigy 1"
    )
    text_encoder_learning_rate: float = Field(
        1e-5, gt=0, le=1, description="with adapter.text_encoder; the same for all text encoders"
    )
    optimizer: str = Field(
        "adamw",
        description='adamw, adamw8bit, adafactor, lion, prodigy, schedule_free, or any "module:Class"',
    )
    optimizer_options: dict[str, bool | int | float | str | tuple[float, ...]] = Field(
        {}, description="further arguments of the optimizer, such as { betas = [0.9, 0.99] }"
    )
    weight_decay: float = Field(0.01, ge=0, le=100, description="the optimizer's; 0 turns it off")
    lr_schedule: str = Field("cosine", description="after warm-up: cosine to a tenth, linear to 0, constant")
    lr_schedule_floor: float | None = Field(
        None, ge=0, le=1, description="share of the learning rate at the last step, for cosine and linear"
    )
    warmup_steps: int | float = Field(
        20, ge=0, le=MOST_STEPS, description="linear warm-up: steps, or below 1 a share"
    )
    max_grad_norm: float = Field(
        1.0, gt=0, le=1_000_000, description="gradients of a larger norm are scaled down to it"
    )
    max_skipped_steps: int = Field(
        5,
        ge=1,
        le=MOST_STEPS,
        description="a step that is not finite is skipped; so many in a row end the run",
    )
    ema: float = Field(
        0.0, ge=0, lt=1, description="decay of a moving average of the weights, which is exported; 0: off"
    )
    seed: int = Field(
        1,
        ge=0,
        le=MOST_SEED,
        description="of all that is random; the same seed on the same machine gives the same file",
    )
    checkpoint_every: int = Field(100, ge=1, le=MOST_STEPS, description="steps between checkpoints")
    keep_checkpoints: int = Field(
        3,
        ge=1,
        le=MOST_STEPS,
        description="how many of the newest are kept, beside the best and the pinned ones",
    )

    @field_validator("warmup_steps")
    @classmethod
    def _steps_or_a_share(cls, value: int | float) -> int | float:
        if value > 1 and value != int(value):
            raise ValueError(
                f"training.warmup_steps is {value}: give a whole number of steps, or a share below 1."
            )
        return int(value) if value >= 1 else value

    @model_validator(mode="after")
    def _steps_or_epochs(self) -> TrainingConfig:
        if self.epochs is not None and "steps" in self.model_fields_set:
            raise ValueError("training.steps and training.epochs are both there; keep one of them.")
        return self

    @model_serializer(mode="wrap")
    def _without_the_other(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        values: dict[str, Any] = dump(self)
        if self.epochs is not None:
            values.pop("steps", None)
        return values

    @property
    def warmup(self) -> int:
        """In optimizer steps."""
        share = self.warmup_steps < 1
        return round(self.warmup_steps * self.steps) if share else int(self.warmup_steps)

    @property
    def warms_up_to_the_end(self) -> bool:
        """Whether no step comes after the warm-up; one of a single step is none. Epochs are not known yet."""
        return self.epochs is None and 1 < self.warmup >= self.steps


class ValidationConfig(Section):
    """Images that are not trained on; the loss on them says when a run has learned enough."""

    resume_safe: ClassVar[frozenset[str]] = frozenset({"every"})

    count: int | None = Field(
        None,
        ge=0,
        le=100_000,
        description="how many images; 0: none. Default: a tenth of 12 or more, if none has the role",
    )
    fraction: float | None = Field(None, ge=0, le=0.5, description="share of the images in place of count")
    every: int = Field(
        100, ge=1, le=MOST_STEPS, description="steps between measurements; one is made before the first step"
    )

    @model_validator(mode="after")
    def _one_way_to_say_how_many(self) -> ValidationConfig:
        if self.count is not None and self.fraction is not None:
            raise ValueError("validation.count and validation.fraction are both there; keep one of them.")
        return self

    @property
    def off(self) -> bool:
        """Whether nothing is measured, not even on images with the role validation."""
        return self.count == 0 or self.fraction == 0

    def to_take(self, images: int, *, given: int) -> int:
        """How many images are measured, not trained on, beside `given` ones with the role; see `count`."""
        if self.count is not None:
            return max(0, self.count - given)
        if self.fraction is not None:
            return max(0, math.ceil(self.fraction * (images + given)) - given)
        if given or images < VALIDATE_FROM:
            return 0
        return min(MOST_VALIDATION, math.ceil(VALIDATION_SHARE * images))


MOST_BLOCKS = 1000  # of a denoiser; the largest ones have about 100


class MachineConfig(Section):
    """How the run uses the machine; what is learned changes by rounding only."""

    resume_safe: ClassVar[Literal["all"]] = "all"

    device: str = Field("auto", description='"auto", "cpu", "cuda" or "cuda:1"')
    attention: Literal["sdpa", "xformers"] = Field(
        "sdpa", description="sdpa is torch's own; xformers is built for one version of torch alone"
    )
    gradient_checkpointing: bool = Field(
        False, description="keeps far less of the forward pass, and computes it again: about a third slower"
    )
    offload_blocks: Annotated[int, Field(ge=0, le=MOST_BLOCKS)] | Literal["auto"] = Field(
        0,
        description="blocks of the denoiser whose frozen weights wait in main memory and come to the GPU for "
        "use: for a base too large for it; steps may wait for them; auto: the fewest with which it fits, "
        "and of a large text encoder, too",
    )
    compile: bool | Literal["auto"] = Field(
        "auto",
        description="torch.compile, block by block: minutes at the start, then faster steps; auto does so on "
        "a GPU where it works, in runs that are long enough to win them back",
    )
    channels_last: bool = Field(
        False, description="convolutions with channels innermost: faster on some GPUs"
    )
    tf32: bool = Field(
        True, description="float32 matrices in TF32 on CUDA: far faster, 10 bits instead of 23 in products"
    )
    shard_base: bool = Field(
        False, description="spread the frozen denoiser over processes: slower, for one too large for a GPU"
    )


Share = Annotated[float, Field(ge=0, le=1)]
LEAST_RANGE = 0.01  # of all timesteps


class ObjectiveConfig(Section):
    """How an image is noised and the prediction weighted."""

    weighting: Literal["min_snr", "debiased"] = Field(
        "min_snr", description="debiased, arXiv 2310.08442: more on high noise, where the palette is set"
    )
    snr_gamma: float = Field(
        5.0, ge=0, le=1000, description="min-SNR's cap, arXiv 2303.09556; 0 turns it off"
    )
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

    density: Literal["auto", "logit_normal", "uniform", "weighted"] = Field(
        "auto",
        description="flow matching: how often sigmas are drawn; auto: logit_normal; weighted: as often as "
        "sigma_weighting says, in place of weighting their losses",
    )
    shift: Annotated[float, Field(ge=0.01, le=100)] | Literal["auto"] = Field(
        "auto",
        description="flow matching: above 1 draws more noise, below 1 less; auto: as the base's scheduler",
    )
    sigma_weighting: Literal["none", "bell", "cosmap"] = Field(
        "none", description="flow matching: what the loss counts at each sigma; both count the middle more"
    )

    @model_validator(mode="after")
    def _what_goes_together(self) -> ObjectiveConfig:
        if self.density == "weighted" and self.sigma_weighting == "none":
            raise ValueError(
                "objective.density is 'weighted', but objective.sigma_weighting gives no weight to draw by; "
                'set that to "bell" or "cosmap", or take another density.'
            )
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


class SamplesConfig(Section):
    """Previews: images that show what was learned, with the same prompts and seeds for base and LoRA."""

    resume_safe: ClassVar[Literal["all"]] = "all"

    prompts: tuple[Prompt, ...] = Field((), description="one preview for each; none: no previews")
    negative_prompt: Prompt = Field("", description="of all previews, as in any UI")
    seed: int = Field(42, ge=0, le=MOST_SEED, description="of the previews' noise")
    steps: int | None = Field(
        None,
        ge=1,
        le=1000,
        description="denoising steps of a preview; default: as is usual for the base",
    )
    guidance: float | None = Field(
        None,
        ge=1,
        le=100,
        description="classifier-free guidance; 1 turns it off; default: as for steps",
    )
    every: int = Field(0, ge=0, le=MOST_STEPS, description="steps between previews; 0: only at the end")


class ExportConfig(Section):
    """The finished file."""

    resume_safe: ClassVar[Literal["all"]] = "all"

    dtype: Literal["float16", "bfloat16", "float32"] = Field(
        "float16", description="float16 is what UIs expect"
    )
    checkpoint: Annotated[int, Field(ge=1, le=MOST_STEPS)] | Literal["auto", "best", "last"] = Field(
        "auto",
        description="what the run's file is made of: best (by best.json, else by the validation loss), last, "
        "or the checkpoint of a step; auto: best with evaluate.choose, else last",
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
