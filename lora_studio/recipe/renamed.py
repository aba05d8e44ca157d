"""Options that had another name in the first version: recipes, --set and run folders may have either.

Hashes in exported files are taken over the first names, so that a recipe keeps its hash.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

RENAMED = {
    "adapter.convolutions": "adapter.conv",
    "data.class_images": "data.regularization_images",
    "data.latents_on_device_gb": "data.latent_memory_gb",
    "data.more_resolutions": "data.extra_resolutions",
    "data.regularization_images.per_picture": "data.regularization_images.per_image",
    "holdout": "validation",
    "preview": "samples",
    "training.accumulation": "training.gradient_accumulation",
    "training.max_bad_steps": "training.max_skipped_steps",
    "training.schedule": "training.lr_schedule",
    "training.schedule_floor": "training.lr_schedule_floor",
}
"""Old to new, one level at a time: what stands before the last dot has its new name already."""

ROLES = {"holdout": "validation"}
"""The same for `data.sources.role`, which manifests hold, too."""

_ROLE = "data.sources.role"
_FIRST_NAMES = {new: old.rpartition(".")[2] for old, new in RENAMED.items()}
_FIRST_ROLES = {new: old for old, new in ROLES.items()}


def notice(old: str, new: str) -> str:
    """What is said of an old name."""
    return f"{old} is now {new}; the old name works in this version."


def current_name(option: str) -> str:
    """ "holdout.every" -> "validation.every"; other names as they are."""
    name = ""
    for part in option.split("."):
        dotted = f"{name}.{part}" if name else part
        name = RENAMED.get(dotted, dotted)
    return name


def old_names_in(table: Sequence[int | str]) -> dict[str, str]:
    """Old to new names of a table's options, as they stand in it; () is the recipe itself."""
    place = ".".join(part for part in table if isinstance(part, str))
    pairs = ((old.rpartition("."), new.rpartition(".")) for old, new in RENAMED.items())
    return {old[2]: new[2] for old, new in pairs if new[0] == place}


def with_current_names(
    values: Mapping[str, Any], on_old: Callable[[str, str], None]
) -> tuple[dict[str, Any], list[str]]:
    """Values under current names, and a sentence for each option with both; `on_old` hears old and new."""
    faults: list[str] = []

    def table(values: Mapping[str, Any], place: str) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in values.items():
            option = f"{place}{key}"
            name = RENAMED.get(option, option)
            last = key if name == option else name.rpartition(".")[2]  # a key may have dots of its own
            if name != option and last in values:
                faults.append(f"{option} is the old name of {name}, and both are there; keep {name}.")
                continue
            if name != option:
                on_old(option, name)
            found[last] = inner(value, name)
        return found

    def inner(value: Any, name: str) -> Any:
        if isinstance(value, dict):
            return table(value, f"{name}.")
        if isinstance(value, list):
            return [inner(one, name) for one in value]
        if name == _ROLE and isinstance(value, str) and value in ROLES:
            on_old(f'the role "{value}" of data.sources', f'"{ROLES[value]}"')
            return ROLES[value]
        return value

    return table(values, ""), faults


def with_first_names(value: Any, name: str = "") -> Any:
    """A recipe's values under the names of the first format; `name` is the option that holds them."""
    if isinstance(value, dict):
        names = {key: f"{name}.{key}" if name else str(key) for key in value}
        return {_FIRST_NAMES.get(names[key], key): with_first_names(value[key], names[key]) for key in value}
    if isinstance(value, list | tuple):
        return [with_first_names(one, name) for one in value]
    return _FIRST_ROLES.get(value, value) if name == _ROLE else value
