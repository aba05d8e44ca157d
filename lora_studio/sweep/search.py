"""Settings after the first ones, by what these have found: the tree-structured Parzen estimator of Optuna.

Bergstra et al., "Algorithms for Hyper-Parameter Optimization", NIPS 2011, section 4. The estimator is made
anew for each setting, of what lies in the sweep's folder, so one that was stopped goes on as it would have.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any

from lora_studio.errors import RecipeError, StudioError
from lora_studio.recipe.sweep import Value
from lora_studio.rng import python_random
from lora_studio.sweep.trials import Setting, draws
from lora_studio.sweep.varied import Varied

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

    from lora_studio.sweep import SweepPlan

MOST_ATTEMPTS = 20  # of the estimator, to find a setting that is not there yet
FIRST = 8  # settings that are drawn by chance, before there is anything to go by
INSTALL = 'pip install "lora-studio[optuna]"'
Tried = Sequence[tuple[Setting, float | None]]
"""Each setting with its score, the higher the better; None while that is not known."""


def following(plan: SweepPlan, scores: Mapping[int, float | None]) -> Setting | None:
    """The setting to try next, which is not there yet and makes a recipe; None if there is hardly one.

    `scores`: by a setting's number, None of one that is being tried; those that failed are left out.
    """
    seed, number = plan.recipe.sweep.search_seed, len(plan.settings) + 1
    tried = [(plan.settings[one - 1], score) for one, score in sorted(scores.items())]
    by_estimate = (suggested(plan.varied, tried, seed=seed, attempt=one) for one in range(MOST_ATTEMPTS))
    for found in chain(by_estimate, draws(plan.varied, seed, number)):
        if repr(found) not in map(repr, plan.settings):
            try:
                plan.with_settings([*plan.added, found])
            except RecipeError:
                continue
            return found
    return None


def check_search() -> None:
    """Raises StudioError without Optuna."""
    try:
        import optuna  # noqa: F401
    except ImportError:
        raise StudioError(
            f"--search tpe needs Optuna, which is not installed; install it with: {INSTALL}"
        ) from None


def suggested(varied: Sequence[Varied], tried: Tried, *, seed: int, attempt: int = 0) -> Setting:
    """What is to be tried next: the same for the same settings with the same scores, `seed` and `attempt`."""
    check_search()
    import optuna
    from optuna.trial import TrialState, create_trial

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    space = {one.option: _distribution(one) for one in varied}
    number = python_random(seed, len(tried), attempt).randrange(2**31)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        # of what is being tried it is supposed that it is no good, so that others are tried beside it
        sampler = optuna.samplers.TPESampler(n_startup_trials=2, constant_liar=True, seed=number)
    study = optuna.create_study(direction="maximize", sampler=sampler)
    for setting, score in tried:
        params = {one.option: _place(one, setting[one.option]) for one in varied}
        state = TrialState.RUNNING if score is None else TrialState.COMPLETE
        study.add_trial(create_trial(state=state, params=params, distributions=space, value=score))
    found = study.ask(space).params
    return {one.option: _value(one, found[one.option]) for one in varied}


def _distribution(one: Varied) -> BaseDistribution:
    """Of a list the places in it: of numbers in their order, so that neighbours are known to be alike."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if one.scale != "list":
        if one.whole:
            return IntDistribution(int(one.low), int(one.high), log=one.scale == "log")
        return FloatDistribution(one.low, one.high, log=one.scale == "log")
    if _ordered(one) is not None:
        return IntDistribution(0, len(one.values) - 1)
    return CategoricalDistribution(range(len(one.values)))


def _ordered(one: Varied) -> list[Value] | None:
    """The values of a list of numbers, the lowest first; None of other lists."""
    numbers = [each for each in one.values if isinstance(each, int | float) and not isinstance(each, bool)]
    return sorted(numbers) if len(numbers) == len(one.values) else None


def _place(one: Varied, value: Value) -> Any:
    """What the estimator knows a value as."""
    return value if one.scale != "list" else (_ordered(one) or list(one.values)).index(value)


def _value(one: Varied, place: Any) -> Value:
    if one.scale != "list":
        return one.rounded(float(place))
    return (_ordered(one) or one.values)[place]
