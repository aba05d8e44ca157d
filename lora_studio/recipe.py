"""The recipe: the whole configuration of a run, as pydantic models read from TOML.

Every default is written here once, with its reason. Below `training/build.py` nobody sees a recipe.
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import Field, ValidationError, ValidationInfo, field_validator, model_validator

from lora_studio.errors import RecipeError
from lora_studio.recipe_adapter import AdapterConfig
from lora_studio.recipe_base import BaseConfig
from lora_studio.recipe_data import DataConfig, Section
from lora_studio.recipe_faults import sentences
from lora_studio.recipe_machine import MachineConfig
from lora_studio.recipe_objective import ObjectiveConfig
from lora_studio.recipe_tokens import NO_ADAPTER, TokenConfig, token_faults
from lora_studio.recipe_tracking import TrackingConfig
from lora_studio.recipe_training import HoldoutConfig, TrainingConfig, idle_rates

_HERE = Path(__file__).resolve().parent
_INSTALLED = _HERE / "recipes"  # setup.py puts them there; a checkout has them beside the package
PRESET_FOLDER = _INSTALLED if _INSTALLED.is_dir() else _HERE.parent / "recipes"


class PreviewConfig(Section):
    """The pictures that show what was learned; same prompts and seeds for base and tuned."""

    free: ClassVar[frozenset[str]] = frozenset(
        {"prompts", "negative_prompt", "seed", "steps", "guidance", "every"}
    )

    prompts: tuple[str, ...] = ()
    negative_prompt: str = ""
    seed: int = Field(42, ge=0)
    steps: int = Field(25, ge=1)
    guidance: float = Field(7.5, ge=1)
    every: int = Field(0, ge=0, description="steps between previews; 0: only at the end")


class ExportConfig(Section):
    """The finished file."""

    free: ClassVar[frozenset[str]] = frozenset(
        {
            "dtype",
            "title",
            "strength",
            "sidecars",
            "tag_frequency",
            "author",
            "description",
            "license",
            "tags",
        }
    )

    dtype: Literal["float16", "bfloat16", "float32"] = Field(
        "float16", description="float16 is what UIs expect"
    )
    title: str = Field("", max_length=200, description="shown by UIs; the recipe's name if empty")
    strength: float = Field(1.0, gt=0, le=10, description="recommended, in metadata and sidecars")
    sidecars: bool = Field(
        False, description="also write a picture, what UIs show beside it, and a model card"
    )
    tag_frequency: bool = Field(
        False, description="write how often each tag stands in the captions: everyone can then read them"
    )
    author: str = Field("", max_length=200, description="named in the file, if you want to be")
    description: str = Field("", max_length=2000, description="what it is, in the file and on its card")
    license: str = Field(
        "", max_length=200, description="the hub's name of one, e.g. cc-by-4.0; yours to choose"
    )
    tags: tuple[Annotated[str, Field(max_length=100)], ...] = Field(
        (), max_length=50, description="by which the file is found, e.g. style or woodcut"
    )


HasFiles = TypeVar("HasFiles", DataConfig, BaseConfig, AdapterConfig)


class Recipe(Section):
    """The whole configuration of a run."""

    name: str = Field(
        pattern=r"^[A-Za-z0-9._-]{1,64}$",
        description="names the run folder and the file: 1 to 64 letters, digits, dots, _ and -",
    )
    base: BaseConfig
    data: DataConfig
    adapter: AdapterConfig = AdapterConfig()
    tokens: tuple[TokenConfig, ...] = Field((), description="[[tokens]]: new words that are learned")
    objective: ObjectiveConfig = ObjectiveConfig()
    training: TrainingConfig = TrainingConfig()
    machine: MachineConfig = MachineConfig()
    holdout: HoldoutConfig = HoldoutConfig()
    preview: PreviewConfig = PreviewConfig()
    export: ExportConfig = ExportConfig()
    tracking: TrackingConfig = TrackingConfig()

    @field_validator("data", "base", "adapter", mode="after")
    @classmethod
    def _files_beside_the_recipe(cls, section: HasFiles, info: ValidationInfo) -> HasFiles:
        folder = (info.context or {}).get("folder")
        return section if folder is None else section.below(folder)

    @model_validator(mode="after")
    def _rates_are_used(self) -> Recipe:
        layers = self.adapter.kind != NO_ADAPTER
        if idle := idle_rates(self.training, layers=layers, text_encoder=self.adapter.text_encoder):
            advice = "set adapter.text_encoder = true" if layers else "each of [[tokens]] has its own"
            raise ValueError(f"nothing is trained with {' and '.join(idle)}; leave it out, or {advice}.")
        return self

    @model_validator(mode="after")
    def _tokens_go_together(self) -> Recipe:
        without_tokens = ["objective.preservation"] if self.objective.preservation else []
        without_tokens += self.data.class_pictures
        faults = token_faults(
            *(self.tokens, self.adapter),
            name=self.name,
            steps=self.training.steps,
            without_tokens=without_tokens,
        )
        if faults:
            raise ValueError("\n  ".join(faults))
        return self


def load_recipe(path: Path, *, changes: tuple[str, ...] = ()) -> Recipe:
    """The recipe in the TOML file `path` with `key=value` changes (dotted keys) applied.

    Raises RecipeError that lists every fault at once: a missing file, TOML mistakes, unknown keys (with a
    suggestion) and values out of range.
    """
    try:
        text = path.read_text("utf-8-sig")
    except FileNotFoundError:
        raise RecipeError(f"there is no recipe at {path}; give the path of a .toml file.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(
            f"{path} cannot be read as UTF-8 text ({error}); give the path of a .toml file."
        ) from None
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        paths = "; write paths with / or in 'single quotes'" if "\\" in str(error) else ""
        raise RecipeError(f"{path} is not valid TOML: {error}{paths}.") from None
    for change in changes:
        _apply_change(values, change)
    return recipe_from(values, folder=path.resolve().parent, source=path.name)


def recipe_from(values: dict[str, Any], *, folder: Path, source: str = "recipe") -> Recipe:
    """A recipe from plain values; relative paths are taken from `folder`.

    Raises RecipeError with all faults.
    """
    try:
        return Recipe.model_validate(values, context={"folder": folder})
    except ValidationError as error:
        faults = sentences(error.errors(), Recipe)
        raise RecipeError(
            "\n".join([f"{source} has {len(faults)} fault(s):", *(f"  {f}" for f in faults)])
        ) from None


def _apply_change(values: dict[str, Any], change: str) -> None:
    """Put "training.steps=200" into nested values; the value is read as TOML, or as a bare string."""
    dotted, equals, text = change.partition("=")
    if not equals or not dotted.strip():
        raise RecipeError(f"--set {change!r} is not key=value; write for example --set training.steps=200.")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text
    *sections, last = dotted.strip().split(".")
    table = values
    for section in sections:
        table = table.setdefault(section, {})
        if not isinstance(table, dict):
            raise RecipeError(f"--set {change!r}: {section} is a value, not a table of the recipe.")
    table[last] = value
