"""Settings of other trainers as recipes. None of their code is imported: their keys are facts, in tables.

Each trainer has a file with a table of its keys, and a function for what needs more than a table. What became
of every key is told: taken over exactly, taken over with another meaning, not supported, or unknown.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lora_studio.errors import RecipeError
from lora_studio.recipe import Recipe
from lora_studio.recipe.load import recipe_from
from lora_studio.recipe.migrate import (
    ai_toolkit,
    diffusers_scripts,
    kohya_gui,
    one_trainer,
    sd_scripts,
    simple_tuner,
)
from lora_studio.recipe.migrate.draft import Draft
from lora_studio.recipe.migrate.folders import Places
from lora_studio.recipe.migrate.one_trainer.concepts import is_concepts
from lora_studio.recipe.migrate.reading import Content, TrainingCommand, read_settings
from lora_studio.recipe.migrate.simple_tuner.backends import is_backends
from lora_studio.recipe.migrate.writing import text_of
from lora_studio.recipe.presets import recipe_name

TRAINERS = {
    "sd-scripts": sd_scripts.TITLE,
    "kohya_ss": kohya_gui.TITLE,
    "onetrainer": one_trainer.TITLE,
    "ai-toolkit": ai_toolkit.TITLE,
    "simpletuner": simple_tuner.TITLE,
    "diffusers": diffusers_scripts.TITLE,
}
_SIGNS = {  # keys that one trainer alone has
    "kohya_ss": {"LoRA_type", "LyCORIS_preset", "max_resolution", "sdxl_no_half_vae", "train_on_input"},
    "onetrainer": {"training_method", "base_model_name", "concept_file_name", "aspect_ratio_bucketing"},
    "simpletuner": {"model_family", "data_backend_config", "lora_type", "base_model_precision"},
    "sd-scripts": {"network_module", "network_args", "dataset_config", "datasets", "general", "subsets"},
}
_SHARED = {
    "pretrained_model_name_or_path",
    "train_batch_size",
    "learning_rate",
    "network_dim",
    "max_train_steps",
}
_FROM_NOISE = "noise is where flow matching starts from, so it has no such option"
_FOR_FLOW = {
    "objective.noise_offset": _FROM_NOISE,
    "objective.multires_noise": _FROM_NOISE,
    "objective.snr_gamma": "flow matching has no SNR to weigh by: objective.sigma_weighting",
    "objective.weighting": "flow matching has no SNR to weigh by: objective.sigma_weighting",
}


@dataclass(frozen=True)
class MigrationInputs:
    """What the settings do not say, or say of another machine. Empty: as they have it."""

    images: Path | None = None
    base: str = ""
    name: str = ""
    trigger: str = ""
    class_words: str = ""
    trainer: str = ""  # one of TRAINERS; empty: told from the files


@dataclass(frozen=True)
class Migrated:
    """A recipe and how it came about."""

    text: str
    recipe: Recipe
    trainer: str
    draft: Draft


@dataclass
class _Sorted:
    """Files by what they are: settings, and what goes with them."""

    settings: Content | None = None
    source: Path = Path()
    data: list[Content] = field(default_factory=list)


def migrate(files: Sequence[Path], inputs: MigrationInputs, *, folder: Path) -> Migrated:
    """The recipe that another trainer's settings amount to, for a file in `folder`.

    `files`: the settings; with them files that they name and that are not where they say (a dataset
    configuration, concepts, data backends). Raises RecipeError with one sentence: for a file that is none of
    the known trainers', values of the wrong kind, folders that are nowhere, and what no recipe can hold.
    """
    if inputs.images is not None and not inputs.images.is_dir():
        raise RecipeError(f"there is no folder {inputs.images}; give --images a folder of images.")
    contents = [(path, read_settings(path)) for path in files]
    trainer = inputs.trainer or _told(contents)
    if trainer not in TRAINERS:
        raise RecipeError(f"--trainer is {trainer!r}; it must be one of {', '.join(TRAINERS)}.")
    found = _sorted(contents, trainer)
    draft = Draft()
    places = Places(found.source.resolve().parent, folder, inputs.images)
    _take(trainer, draft, places, found)
    _finish(draft, inputs, places)
    values = draft.nested()
    try:
        recipe = recipe_from(values, folder=folder.resolve(), source=f"the recipe from {found.source.name}")
    except RecipeError as error:
        raise RecipeError(f"{error}\nMend that in {found.source}, or write the recipe by hand.") from None
    text = text_of(draft, source=found.source, title=TRAINERS[trainer])
    return Migrated(text, recipe, trainer, draft)


def _told(contents: Sequence[tuple[Path, Content]]) -> str:
    """Which trainer the files are of. Raises RecipeError if that cannot be told, or is not one alone."""
    names: dict[str, Path] = {}
    for path, content in contents:
        for name in _names_of(path, content):
            names.setdefault(name, path)
    if len(names) == 1:
        return next(iter(names))
    path = contents[0][0]
    if not names:
        raise RecipeError(
            f"{path} is of no trainer that is known here ({', '.join(TRAINERS)}); say which with --trainer."
        )
    raise RecipeError(f"{path} may be of {' or '.join(names)}; say which with --trainer.")


def _names_of(path: Path, content: Content) -> list[str]:
    if isinstance(content, TrainingCommand):
        return [_of_script(path, content)]
    if isinstance(content, list):
        if is_concepts(content):
            return ["onetrainer"]
        return ["simpletuner"] if is_backends(content) else []
    if ai_toolkit.is_job(content):
        return ["ai-toolkit"]
    if isinstance(content.get("base"), dict) and isinstance(content.get("data"), dict):
        raise RecipeError(f"{path} is a recipe already; train it with lora-studio train {path}.")
    keys = {key.lstrip("-") for key in content}
    keys |= {inner for one in content.values() if isinstance(one, dict) for inner in one}
    found = [name for name, signs in _SIGNS.items() if signs & keys]
    if "kohya_ss" in found and "sd-scripts" in found and isinstance(content.get("LoRA_type"), str):
        found.remove("sd-scripts")
    if not found and keys & _SHARED:
        return ["sd-scripts"] if path.suffix.lower() == ".toml" else ["kohya_ss", "simpletuner"]
    return found


def _of_script(path: Path, command: TrainingCommand) -> str:
    script = command.script
    if script in sd_scripts.SCRIPTS:
        return "sd-scripts"
    if script in diffusers_scripts.SCRIPTS:
        return "diffusers"
    if script == "train.py" and {"model_family", "data_backend_config"} & command.arguments.keys():
        return "simpletuner"
    known = ", ".join([*sd_scripts.SCRIPTS, *diffusers_scripts.SCRIPTS])
    raise RecipeError(f"{path} calls {script}, which is not known here; known are {known}.")


def _sorted(contents: Sequence[tuple[Path, Content]], trainer: str) -> _Sorted:
    """The settings first, whatever the order on the command line."""
    found = _Sorted()
    for path, content in contents:
        is_data = isinstance(content, list) or (
            trainer == "sd-scripts" and isinstance(content, dict) and sd_scripts.is_dataset(content)
        )
        if is_data:
            found.data.append(content)
        elif found.settings is None:
            found.settings, found.source = content, path
        else:
            raise RecipeError(f"{found.source} and {path} are both settings; give one of them.")
    if found.settings is None:
        found.source = contents[0][0]
    return found


def _take(trainer: str, draft: Draft, places: Places, found: _Sorted) -> None:
    data, source = next(iter(found.data), None), found.source.name
    settings = found.settings
    if settings is None and trainer != "sd-scripts":
        raise RecipeError(f"{found.source} says what is trained on, not how; give the settings with it.")
    options: Mapping[str, Any] = (
        settings.arguments if isinstance(settings, TrainingCommand) else dict(settings or {})
    )
    if isinstance(settings, TrainingCommand) and settings.unset:
        draft.notes.append(f"not set: {', '.join(settings.unset)}")
    if trainer == "sd-scripts":
        sd_scripts.take_all(draft, places, settings, data, source=source)
    elif trainer == "kohya_ss":
        kohya_gui.take(draft, places, options, source=source)
    elif trainer == "onetrainer":
        one_trainer.take(draft, places, options, data, source=source)
    elif trainer == "ai-toolkit":
        ai_toolkit.take(draft, places, options, source=source)
    elif trainer == "simpletuner":
        simple_tuner.take(draft, places, options, data, source=source)
    elif isinstance(settings, TrainingCommand):
        diffusers_scripts.take(draft, places, settings, source=source)
    else:
        raise RecipeError(f"{found.source} holds no command of diffusers' scripts.")


def _finish(draft: Draft, inputs: MigrationInputs, places: Places) -> None:
    """What was asked for beside the settings, and what only another base can have."""
    values = draft.values
    for option, said in (
        ("base.model", inputs.base),
        ("name", inputs.name),
        ("data.trigger", inputs.trigger),
    ):
        if said:
            draft.overrule(option, f"--{option.rpartition('.')[2].replace('model', 'base')} comes first")
    if inputs.base:
        values["base.model"] = places.file(inputs.base)[0]
    if not values.get("base.model"):
        raise RecipeError("the settings name no base model; give --base.")
    if inputs.trigger:
        values["data.trigger"] = inputs.trigger
    if inputs.class_words:
        values["data.class_words"] = inputs.class_words
    if inputs.name or not values.get("name"):
        values["name"] = inputs.name or _name(values, places)
    if draft.is_flow:
        for option, why in _FOR_FLOW.items():
            if values.get(option):
                draft.drop(option, why)
            values.pop(option, None)
    else:
        for option in ("objective.density", "objective.shift", "objective.sigma_weighting"):
            if option in values:
                draft.drop(option, "for bases with flow matching")


def _name(values: Mapping[str, Any], places: Places) -> str:
    images = values.get("data.images") or next((one["images"] for one in values.get("data.sources", [])), "")
    return recipe_name(places.recipe / str(images))
