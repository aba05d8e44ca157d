"""Sweeps: a recipe trained with other values, measured, compared, and one of them recommended.

Every trial is a run folder of its own and a job of a queue that lies in the sweep's folder, so it has what
jobs have: a process of its own, a place on a GPU, checkpoints to go on from, and a sentence if it failed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from lora_studio.errors import RecipeError
from lora_studio.evaluate.choosing import Budget
from lora_studio.evaluate.questions import USUAL_COUNT
from lora_studio.evaluate.result import GROUPS
from lora_studio.recipe import Recipe
from lora_studio.recipe.load import changed
from lora_studio.recipe.sweep import SweepConfig
from lora_studio.sweep.search import FIRST, check_search
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
    first: int  # settings that it began with; others were added by what these had found

    @property
    def added(self) -> tuple[Setting, ...]:
        return self.settings[self.first :]

    @property
    def total(self) -> int:
        """Trials that there will be in the end, if so many settings differ."""
        asked = self.recipe.sweep
        return len(self.trials) if asked.search == "chance" else max(len(self.trials), asked.trials or 0)

    def with_settings(self, added: Sequence[Setting]) -> SweepPlan:
        """These behind those that it began with. Raises RecipeError for what makes no recipe."""
        settings = (*self.settings[: self.first], *added)
        trials = trials_of(_measured(self.recipe), settings, self.recipe.sweep.seeds)
        return replace(self, settings=settings, trials=tuple(trials))

    @property
    def by(self) -> By:
        return self.recipe.sweep.by

    @property
    def budget(self) -> Budget:
        return Budget(self.recipe.evaluate.drift, self.recipe.evaluate.leakage)

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
            "search": self.recipe.sweep.search,
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

    `vary`: as the table of that name. `asked`: trials, seeds, search, search_seed, stop_early or by; those
    that are None are as the recipe has them. Raises RecipeError for whatever cannot be varied, drawn or
    trained, before anything begins.
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
    if config.stop_early and config.by == "evaluation" and not recipe.evaluate.every:
        raise RecipeError(
            "trainings are ended early by what was measured meanwhile, but evaluate.every is 0: set it, for "
            "example to training.checkpoint_every, or sweep by validation."
        )
    varied = varied_of(config.varied)
    settings = _first_settings(varied, config)
    trials = trials_of(_measured(recipe), settings, config.seeds)
    return SweepPlan(recipe, varied, tuple(settings), tuple(trials), len(settings))


def _measured(recipe: Recipe) -> Recipe:
    return changed(recipe, {"evaluate.at_end": recipe.sweep.by == "evaluation"})


def _first_settings(varied: Sequence[Varied], config: SweepConfig) -> list[Setting]:
    if config.search == "chance":
        return settings_of(varied, config)
    check_search()
    if config.trials is None:
        raise RecipeError("a search by tpe goes on for as long as it is let: say with --trials how far.")
    if config.seeds > 1:
        raise RecipeError(
            f"a search by tpe trains each setting once, not with {config.seeds} seeds: leave --seeds out, "
            "and sweep the best settings again, with several."
        )
    return settings_of(varied, config.model_copy(update={"trials": min(config.trials, FIRST)}))
