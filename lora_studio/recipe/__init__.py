"""The recipe: the whole configuration of a run, as pydantic models read from TOML.

Every default is written here once, with its reason.
"""

from __future__ import annotations

from pydantic import Field, model_validator

from lora_studio.recipe.adapter import AdapterConfig
from lora_studio.recipe.base import BaseConfig
from lora_studio.recipe.data import DataConfig
from lora_studio.recipe.objective import ObjectiveConfig
from lora_studio.recipe.output import ExportConfig, SamplesConfig, TrackingConfig
from lora_studio.recipe.section import Section
from lora_studio.recipe.tokens import NO_ADAPTER, TokenConfig, token_faults
from lora_studio.recipe.training import MachineConfig, TrainingConfig, ValidationConfig


class Recipe(Section):
    """The whole configuration of a run."""

    name: str = Field(
        pattern=r"^[A-Za-z0-9._-]{1,64}$",
        description="names the run folder and the file: 1 to 64 letters, digits, dots, _ and -",
    )
    base: BaseConfig
    data: DataConfig
    adapter: AdapterConfig = AdapterConfig()
    tokens: tuple[TokenConfig, ...] = Field((), description="new words that the text encoders learn")
    objective: ObjectiveConfig = ObjectiveConfig()
    training: TrainingConfig = TrainingConfig()
    machine: MachineConfig = MachineConfig()
    validation: ValidationConfig = ValidationConfig()
    samples: SamplesConfig = SamplesConfig()
    export: ExportConfig = ExportConfig()
    tracking: TrackingConfig = TrackingConfig()

    @model_validator(mode="after")
    def _rates_are_used(self) -> Recipe:
        layers = self.adapter.kind != NO_ADAPTER
        used = {"learning_rate": layers, "text_encoder_learning_rate": layers and self.adapter.text_encoder}
        usual = TrainingConfig()
        given = [key for key in used if getattr(self.training, key) != getattr(usual, key)]
        if idle := [f"training.{key}" for key in given if not used[key]]:
            advice = "set adapter.text_encoder = true" if layers else "each of [[tokens]] has its own"
            raise ValueError(f"nothing is trained with {' and '.join(idle)}; leave it out, or {advice}.")
        return self

    @model_validator(mode="after")
    def _tokens_go_together(self) -> Recipe:
        without_tokens = ["objective.preservation"] if self.objective.preservation else []
        without_tokens += self.data.regularization_sources
        faults = token_faults(
            *(self.tokens, self.adapter),
            name=self.name,
            steps=None if self.training.epochs else self.training.steps,
            without_tokens=without_tokens,
        )
        if faults:
            raise ValueError("\n  ".join(faults))
        return self
