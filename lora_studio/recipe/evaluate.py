"""The recipe's [evaluate]: whether a run is asked what it learned, and which of its checkpoints is taken."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from lora_studio.recipe.section import MOST_SEED, MOST_STEPS, Section, UserPath

Strength = Annotated[float, Field(gt=0, le=10)]
USUAL_STRENGTHS = (0.4, 0.6, 0.8, 1.0, 1.2, 1.4)


class EvaluateConfig(Section):
    """What was learned and what it cost, by images that are drawn for it; what is learned stays the same."""

    resume_safe: ClassVar[Literal["all"]] = "all"

    at_end: bool = Field(
        False, description="evaluate what the run ends with, as the verb evaluate does: evaluation.json"
    )
    every: int = Field(
        0,
        ge=0,
        le=MOST_STEPS,
        description="steps between checkpoints that are measured on a few prompts, and kept; 0: none",
    )
    choose: bool = Field(
        False,
        description="best.json names the measured checkpoint with the highest lower bound of fidelity among "
        "those within the budgets, and the run's file is made of it",
    )
    patience: int = Field(
        0,
        ge=0,
        le=10_000,
        description="the run ends when so many measured checkpoints in a row were no better choice; 0: never",
    )
    drift: float = Field(
        1.0,
        gt=0,
        le=100,
        description="budget: how far images without the trigger may change, of most prompts; 1: as far as "
        "with another seed, where good styles come to 0.3 to 0.5, good subjects to 1, and what leaks to more",
    )
    leakage: float = Field(
        0.15,
        ge=0,
        le=2,
        description="budget: fidelity that images without the trigger may gain; at more it is said to leak",
    )
    checkpoint_prompts: int = Field(
        4, ge=1, le=100, description="prompts of each group that every measured checkpoint is asked"
    )
    prompts: int | None = Field(
        None, ge=1, le=100, description="prompts of each group at the end; default: as the verb evaluate has"
    )
    seeds: int = Field(3, ge=2, le=32, description="images of each prompt, each of another seed")
    first_seed: int = Field(
        1000, ge=0, le=MOST_SEED, description="the lowest of them; other seeds, other images"
    )
    encoder: str = Field(
        "auto",
        description="what images are compared by: pocket, clip, siglip2 or dinov2, also clip:FOLDER or "
        "clip:HUB_ID; auto: by the base",
    )
    images: UserPath | None = Field(
        None,
        description="a folder of images of what is learned that are not trained on; default: the validation "
        "images, or else those that are trained on",
    )
    strengths: tuple[Strength, ...] = Field(
        (),
        max_length=20,
        description="strengths at which the result is measured, such as [0.4, 0.6, 0.8, 1.0, 1.2, 1.4]: the "
        "recommended one and the usable range go into the file",
    )

    @model_validator(mode="after")
    def _what_is_chosen_is_measured(self) -> EvaluateConfig:
        for name in ("choose", "patience"):
            if getattr(self, name) and not self.every:
                raise ValueError(
                    f"evaluate.{name} is set, but evaluate.every is 0, so no checkpoint is measured; set "
                    f"evaluate.every, for example to training.checkpoint_every, or leave {name} out."
                )
        return self

    @property
    def off(self) -> bool:
        """Whether nothing is drawn for it at all."""
        return not (self.at_end or self.every or self.strengths)
