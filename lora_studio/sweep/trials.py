"""The trainings of a sweep: every setting with every seed, each with its whole recipe, checked."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from math import prod
from pathlib import Path

from lora_studio.errors import RecipeError
from lora_studio.recipe import Recipe
from lora_studio.recipe.load import changed, recipe_from
from lora_studio.recipe.sweep import MOST_SETTINGS, SweepConfig, Value
from lora_studio.rng import python_random
from lora_studio.sweep.varied import Varied, shown_value

_TRIES = 1000  # to draw a setting that is not there yet
_MOST_FAULTS = 5
Setting = Mapping[str, Value]  # option -> value


@dataclass(frozen=True)
class SweepTrial:
    """One training: a setting with a seed."""

    setting: int  # its number, from 1
    seed: int
    values: Setting
    recipe: Recipe

    @property
    def name(self) -> str:
        """Of its run folder."""
        return f"trial_{self.setting:03}_seed_{self.seed}"

    @property
    def work(self) -> int:
        """Images that it is shown, which its time goes with; of epochs as many thousands."""
        training = self.recipe.training
        if training.epochs is not None:
            return round(1000 * training.epochs)
        return training.steps * training.batch_size * training.gradient_accumulation


def setting_in_words(values: Setting, *, whole: bool = False) -> str:
    """ "rank 8, learning_rate 0.0011": by the last part of each option's name, or the `whole` of it."""
    return ", ".join(
        f"{option if whole else option.rpartition('.')[2]} {shown_value(value)}"
        for option, value in values.items()
    )


def settings_of(varied: Sequence[Varied], config: SweepConfig) -> list[Setting]:
    """All that lists make, the last option changing fastest; or `trials` different ones, drawn.

    The first of more trials are those of fewer. Raises RecipeError if there are none to draw, or too many.
    """
    lists = all(one.scale == "list" for one in varied)
    number = prod(len(one.values) for one in varied) if lists else None
    if config.trials is None and number is None:
        ranges = ", ".join(one.option for one in varied if one.scale != "list")
        raise RecipeError(f"{ranges} can be any number of a range; say with --trials how many are tried.")
    if number is not None and (config.trials is None or config.trials >= number):
        if number > MOST_SETTINGS:
            raise RecipeError(
                f"the lists make {number} settings, more than {MOST_SETTINGS}; give --trials to draw some."
            )
        names = [one.option for one in varied]
        return [dict(zip(names, values, strict=True)) for values in product(*(one.values for one in varied))]
    assert config.trials is not None
    found: dict[str, Setting] = {}
    for trial in range(1, config.trials + 1):
        for one in draws(varied, config.search_seed, trial):
            if repr(one) not in found:
                found[repr(one)] = one
                break
        else:
            raise RecipeError(
                f"--trials is {config.trials}, but hardly more than {trial - 1} different settings can be "
                f"drawn; give --trials {trial - 1}, or wider ranges."
            )
    return list(found.values())


def draws(varied: Sequence[Varied], seed: int, trial: int) -> Iterator[Setting]:
    """Settings by chance, one as good as the next."""
    for attempt in range(_TRIES):
        yield {one.option: one.drawn(python_random(seed, trial, attempt, one.option)) for one in varied}


def trials_of(recipe: Recipe, settings: Sequence[Setting], seeds: int) -> list[SweepTrial]:
    """Every setting with the first seed, then with the next one. Raises RecipeError for what is refused."""
    first = recipe.training.seed
    found, faults = list[SweepTrial](), dict[str, str]()
    for seed in range(first, first + seeds):
        for number, values in enumerate(settings, start=1):
            try:
                found.append(SweepTrial(number, seed, values, with_values(recipe, values, seed)))
            except RecipeError as error:
                _, _, fault = str(error).partition("\n")
                said = " ".join((fault or str(error)).split())
                faults.setdefault(said, setting_in_words(values, whole=True))
    if faults:
        told = [f"  {where}: {fault}" for fault, where in faults.items()][:_MOST_FAULTS]
        raise RecipeError("\n".join(["not everything that is varied makes a recipe:", *told]))
    return found


def with_values(recipe: Recipe, values: Setting, seed: int) -> Recipe:
    """The recipe with other values, and without its [sweep]; paths in it are whole."""
    plain = recipe.model_copy(update={"sweep": SweepConfig()})
    made = changed(plain, {**values, "training.seed": seed})
    return whole_paths(made.model_copy(update={"sweep": SweepConfig()}))


def whole_paths(recipe: Recipe) -> Recipe:
    """The same from every folder."""
    return recipe_from(recipe.model_dump(exclude_unset=True), folder=Path.cwd(), source=recipe.name)
