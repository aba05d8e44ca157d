"""Sweeps: a recipe trained with other values, measured, compared, and one of them recommended.

Every trial is a run folder of its own and a job of a queue that lies in the sweep's folder, so it has what
jobs have: a process of its own, a place on a GPU, checkpoints to go on from, and a sentence if it failed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from lora_studio.errors import RecipeError
from lora_studio.evaluate.questions import USUAL_COUNT
from lora_studio.evaluate.result import GROUPS
from lora_studio.recipe import Recipe
from lora_studio.recipe.load import changed
from lora_studio.sweep.trials import Setting, SweepTrial, settings_of, trials_of, whole_paths
from lora_studio.sweep.varied import Varied, varied_of

By = Literal["evaluation", "validation"]


@dataclass(frozen=True)
class SweepPlan:
    """What will be trained."""

    recipe: Recipe  # as it was given, with the [sweep] that is done
    varied: tuple[Varied, ...]
    settings: tuple[Setting, ...]
    trials: tuple[SweepTrial, ...]

    @property
    def by(self) -> By:
        return self.recipe.sweep.by

    @property
    def drawn(self) -> int:
        """Images that are drawn to measure a trial; the base's as many more, once for all trials."""
        evaluate = self.recipe.evaluate
        count = USUAL_COUNT if evaluate.prompts is None else evaluate.prompts
        return 0 if self.by == "validation" else len(GROUPS) * count * evaluate.seeds

    def to_json(self) -> dict[str, Any]:
        """What is varied, and each trial's values and steps."""
        return {
            "name": self.recipe.name,
            "by": self.by,
            "varied": {one.option: one.in_words for one in self.varied},
            "settings": [dict(one) for one in self.settings],
            "trials": [
                {
                    "name": one.name,
                    "setting": one.setting,
                    "seed": one.seed,
                    "values": dict(one.values),
                    "steps": one.recipe.training.steps if one.recipe.training.epochs is None else None,
                    "epochs": one.recipe.training.epochs,
                }
                for one in self.trials
            ],
        }


def plan_sweep(recipe: Recipe, vary: Mapping[str, object] | None = None, **asked: object) -> SweepPlan:
    """All trials of a recipe's [sweep], with what is given in place of what it says.

    `vary`: as the table of that name. `asked`: trials, seeds, search_seed or by; those that are None are as
    the recipe has them. Raises RecipeError for whatever cannot be varied, drawn or trained, before anything
    begins.
    """
    given: dict[str, object] = {f"sweep.{name}": one for name, one in asked.items() if one is not None}
    if vary is not None:
        given["sweep.vary"] = dict(vary)
    recipe = whole_paths(changed(recipe, given) if given else recipe)
    config = recipe.sweep
    if config.by == "validation" and recipe.validation.off:
        raise RecipeError(
            "a sweep by validation compares losses on validation images, but the recipe has none: give "
            "validation.count, or sweep by evaluation."
        )
    varied = varied_of(config.varied)
    settings = settings_of(varied, config)
    measured = changed(recipe, {"evaluate.at_end": config.by == "evaluation"})
    trials = trials_of(measured, settings, config.seeds)
    return SweepPlan(recipe, varied, tuple(settings), tuple(trials))
