"""How a training begins: a preset for base and purpose, filled in, or another trainer's settings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lora_studio.data.scan.glance import Glance
from lora_studio.errors import RecipeError, StudioError
from lora_studio.families.original.glance import BaseGlance, glance_at_base
from lora_studio.recipe import Recipe
from lora_studio.recipe.migrate import MigrationInputs, migrate
from lora_studio.recipe.migrate.writing import HEADINGS, rows_of
from lora_studio.recipe.presets import PresetInputs, recipe_name
from lora_studio.text import with_class
from lora_studio.training import starting
from lora_studio.web.forms.draft import RecipeDraft

PURPOSES = starting.PURPOSES


@dataclass(frozen=True)
class FirstInputs:
    """What the first fields of the page say; empty: as is usual for the images."""

    images: Path
    base: str = ""
    purpose: str = ""
    name: str = ""
    trigger: str = ""
    class_words: str = ""
    preset: str = ""


@dataclass(frozen=True)
class Suggestions:
    """The same with everything filled in, and what was seen."""

    inputs: FirstInputs
    found: Glance
    base: BaseGlance
    choice: starting.PresetChoice
    fitting: tuple[str, ...]  # presets for such a base


def suggest(inputs: FirstInputs, folder: Path) -> Suggestions:
    """As `lora-studio start` would answer what is not said. Raises StudioError as it does.

    `folder`: of the project, in which a base may lie.
    """
    found = starting.look_at_folder(inputs.images)
    base = glance_at_base(inputs.base or starting.default_base(folder))
    if base.doubt:
        raise StudioError(base.doubt)
    purpose = inputs.purpose or starting.usual_purpose(found)
    starting.check_purpose(purpose)
    name, word = inputs.name or recipe_name(inputs.images), inputs.class_words
    if purpose != starting.STYLE:
        word = word or starting.usual_class(purpose, found)
    trigger = inputs.trigger or starting.usual_trigger(purpose, name, found)
    choice = starting.choose_preset(base, purpose, found, preset=inputs.preset)
    said = FirstInputs(inputs.images, base.model, purpose, name, trigger, word, choice.name)
    return Suggestions(said, found, base, choice, tuple(starting.presets_for(base)))


def asks_the_gpu(inputs: FirstInputs, folder: Path) -> bool:
    """Whether `suggest` will, which brings torch: there is a preset for less memory."""
    base = glance_at_base(inputs.base or starting.default_base(folder))
    return not inputs.preset and any(one.endswith(starting.SMALL) for one in starting.presets_for(base))


def begin(suggestions: Suggestions, folder: Path) -> RecipeDraft:
    """The preset filled in, for a recipe that will lie in `folder`. Raises RecipeError."""
    said, found = suggestions.inputs, suggestions.found
    if not found.images:
        raise RecipeError(
            f"{said.images} holds no images; put 20 to 50 there for a style, 5 to 20 for a subject."
        )
    words = with_class(said.trigger, said.class_words)
    whole = len(found.captions) == found.images
    one = "" if whole else starting.one_caption(words, of_style=not said.class_words)
    given = PresetInputs(said.images, said.trigger, said.base, said.name, said.class_words, one)
    text, _ = starting.first_recipe(suggestions.choice.name, given, found, folder=folder)
    return RecipeDraft(text, folder)


@dataclass(frozen=True)
class TakenOver:
    """A recipe of another trainer's settings, and what became of each of their keys."""

    draft: RecipeDraft
    recipe: Recipe
    rows: tuple[tuple[str, str, str], ...]  # (what became of it, what stood there, what it is here)
    notes: tuple[str, ...]


def from_settings(files: Sequence[Path], inputs: FirstInputs | None, folder: Path) -> TakenOver:
    """As `lora-studio init --from` does. Raises RecipeError."""
    said = inputs or FirstInputs(Path())
    images = said.images if inputs else None
    given = MigrationInputs(images, said.base, said.name, said.trigger, said.class_words)
    made = migrate(files, given, folder=folder)
    rows = (
        (heading, there, text)
        for fate, heading in HEADINGS.items()
        for there, text in rows_of(made.draft.fates, fate)
    )
    notes = tuple(dict.fromkeys(made.draft.notes))
    return TakenOver(RecipeDraft(made.text, folder), made.recipe, tuple(rows), notes)
