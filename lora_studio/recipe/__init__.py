"""The recipe: the whole configuration of a run, as pydantic models read from TOML.

Every default is written here once, with its reason.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from pydantic import Field, field_validator, model_validator

from lora_studio.recipe.adapter import NO_ADAPTER, AdapterConfig, TokenConfig, token_faults
from lora_studio.recipe.base import BaseConfig
from lora_studio.recipe.data import DataConfig
from lora_studio.recipe.evaluate import EvaluateConfig
from lora_studio.recipe.section import Section, file_name_fault
from lora_studio.recipe.sweep import SweepConfig
from lora_studio.recipe.training import (
    ExportConfig,
    MachineConfig,
    ObjectiveConfig,
    SamplesConfig,
    TrackingConfig,
    TrainingConfig,
    ValidationConfig,
)


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
    evaluate: EvaluateConfig = EvaluateConfig()
    samples: SamplesConfig = SamplesConfig()
    export: ExportConfig = ExportConfig()
    tracking: TrackingConfig = TrackingConfig()
    sweep: SweepConfig = SweepConfig()

    @field_validator("name")
    @classmethod
    def _can_name_files(cls, name: str) -> str:
        if fault := file_name_fault(name):
            raise ValueError(f"name is {name!r}, {fault}; give another, such as my_style.")
        return name

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
    def _exported_step_is_reached(self) -> Recipe:
        step, last = self.export.checkpoint, self.training.steps
        if isinstance(step, int) and self.training.epochs is None and step > last:
            raise ValueError(
                f"export.checkpoint is {step}, but the run has {last} steps; "
                'name one of them, "best" or "last".'
            )
        return self

    @model_validator(mode="after")
    def _tokens_go_together(self) -> Recipe:
        without = ["objective.preservation"] if self.objective.preservation else []
        without += self.data.regularization_sources
        steps = None if self.training.epochs else self.training.steps
        faults = token_faults(self.tokens, self.adapter, name=self.name, steps=steps, without_tokens=without)
        if faults:
            raise ValueError("\n  ".join(faults))
        return self


class RecipeChange(NamedTuple):
    """An option that differs."""

    option: str  # with dots: "training.steps"
    before: object
    after: object

    def __str__(self) -> str:
        return f"{self.option}: {self.before!r} -> {self.after!r}"

    @property
    def resume_safe(self) -> bool:
        """Whether what is learned stays the same."""
        return self.option in FREE


def changes(old: Recipe, new: Recipe) -> list[RecipeChange]:
    """Every option whose value differs, in the order of the recipe; None where one recipe has none."""
    before, after = flat_options(old), flat_options(new)
    return [
        RecipeChange(option, before.get(option), after.get(option))
        for option in dict.fromkeys([*before, *after])
        if before.get(option) != after.get(option)
    ]


def flat_options(recipe: Recipe) -> dict[str, Any]:
    """Every option's dotted name and its value as JSON has it; [sweep] is about other runs than this."""
    return _flat(recipe.model_dump(mode="json", exclude={"sweep"}))


def fields(section: type[Section] = Recipe, prefix: str = "") -> Iterator[tuple[str, type[Section], str]]:
    """Every option's dotted name, its section, and its name in that; of tables in lists none."""
    for name, field in section.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, Section):
            yield from fields(inner, f"{prefix}{name}.")
        else:
            yield prefix + name, section, name


def options() -> Iterator[tuple[str, bool]]:
    """Every option with its dotted name, and whether a resume may change it."""
    return ((option, section.is_resume_safe(name)) for option, section, name in fields())


FREE = frozenset(name for name, resume_safe in options() if resume_safe)


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return flat
