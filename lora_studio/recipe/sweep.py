"""The recipe's [sweep]: what `lora-studio sweep` varies, and by what it recommends."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from lora_studio.recipe.section import MOST_SEED, Section

MOST_SETTINGS, MOST_SEEDS = 1000, 32
Value = bool | int | float | str | tuple[int | float | str, ...]
Given = str | tuple[Value, ...]
"""As people write it: a list of values, "a,b,c", "log:A..B" or "lin:A..B"."""
Table = Annotated[dict[str, Given | dict[str, Given | dict[str, Given]]], Field(max_length=20)]


class SweepConfig(Section):
    """What `lora-studio sweep` trains; the recipe alone trains as if this table was not there."""

    resume_safe: ClassVar[Literal["all"]] = "all"

    vary: Table = Field(
        {},
        description='option -> a list of values, "log:1e-5..1e-3" or "lin:0..0.5", as in '
        '{ "adapter.rank" = [4, 8], "training.learning_rate" = "log:1e-4..1e-3" }',
    )
    trials: int | None = Field(
        None,
        ge=1,
        le=MOST_SETTINGS,
        description="how many settings are drawn; default: all that lists of values make",
    )
    seeds: int = Field(
        1,
        ge=1,
        le=MOST_SEEDS,
        description="trainings of each setting, from training.seed upwards; 2 say how much a seed changes",
    )
    search_seed: int = Field(0, ge=0, le=MOST_SEED, description="of the values that are drawn")
    search: Literal["chance", "tpe"] = Field(
        "chance",
        description="how settings are drawn: by chance; or after 8 by what was found, with Optuna's tpe",
    )
    stop_early: bool = Field(
        False,
        description="end a training that after a ninth or a third of its steps is not among the best third, "
        "as measured every evaluate.every (or validation.every) steps",
    )
    by: Literal["evaluation", "validation"] = Field(
        "evaluation",
        description="evaluation: fidelity within the budgets of [evaluate]; validation: the validation loss",
    )

    @property
    def varied(self) -> dict[str, Given]:
        """By the option's whole name, however the tables were written."""
        return dict(_flat(self.vary, ""))


def _flat(table: Mapping[str, object], prefix: str) -> Iterator[tuple[str, Given]]:
    for name, given in table.items():
        if isinstance(given, dict):
            yield from _flat(given, f"{prefix}{name}.")
        elif isinstance(given, str | tuple):
            yield prefix + name, given
