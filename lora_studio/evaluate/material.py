"""What an evaluation of a run goes by: what was taught, with which images, and to which it is compared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from lora_studio.data.images import is_image, is_junk, is_mask
from lora_studio.data.manifest import Manifest, Record
from lora_studio.errors import StudioError
from lora_studio.evaluate.questions import USUAL_COUNT, Taught, contexts_for, questions_for, taught_by
from lora_studio.evaluate.result import Question
from lora_studio.families.base import ModelFamily
from lora_studio.files import digest
from lora_studio.recipe import Recipe
from lora_studio.recipe.data import DataConfig
from lora_studio.runs import Run
from lora_studio.text import plural

FEWEST_REFERENCES = 2


@dataclass(frozen=True)
class Material:
    """What is known of what was taught."""

    taught: Taught
    training: Sequence[Path] = ()
    references: Sequence[Path] = ()  # not trained on
    notes: Sequence[str] = field(default=())

    @property
    def compared_with(self) -> tuple[Sequence[Path], bool, tuple[str, ...]]:
        """The references, whether these are training images for want of others, and what is to be said."""
        if len(self.references) >= FEWEST_REFERENCES:
            return self.references, False, tuple(self.notes)
        note = "there are no reference images; give a folder of them with --images"
        if self.training:
            note = (
                "fidelity was measured against the training images, as there are no others: it does not tell "
                "learning from copying; keep two or more for validation, or give others with --images"
            )
        return self.training, True, (*self.notes, note)


def material_of_run(manifest: Manifest, data: DataConfig, images: Path | None, *, option: str) -> Material:
    """By a run's manifest, which has no paths, and the folders that its recipe names.

    `images`: a folder of references, in place of the validation images; `option`: what it was given with.
    Raises StudioError if it holds too few.
    """
    folders = [one.images for one in data.all_sources]
    training = tuple(filter(None, found_images(manifest.used, folders)))
    references = tuple(filter(None, found_images(manifest.of_role("validation"), folders)))
    notes = list[str]()
    if lacking := len(manifest.used) - len(training):
        what = f"{plural(lacking, 'training image')} of the run were not found again, or have changed"
        notes.append(f"{what}: memorisation of them was not looked for")
    if images is not None:
        references = tuple(images_in(images, option))
    return Material(taught_by(manifest.used, data), training, references, notes)


def found_images(records: Sequence[Record], folders: Sequence[Path]) -> list[Path | None]:
    """Where images of a manifest lie, which has no paths; None of those that are not what they were."""
    found = []
    for record in records:
        places = (folder / record.name for folder in folders)
        found.append(next((one for one in places if one.is_file() and digest(one) == record.sha256), None))
    return found


def images_in(folder: Path, option: str) -> list[Path]:
    """The images of a folder of references. Raises StudioError if there are too few."""
    if not folder.is_dir():
        raise StudioError(f"{option} is {folder}; give a folder of images that were not trained on.")
    found = sorted(
        one for one in folder.iterdir() if one.is_file() and is_image(one.name) and not is_junk(one.name)
    )
    found = [one for one in found if not is_mask(one.name)]
    if len(found) < FEWEST_REFERENCES:
        few = f"with {plural(len(found))} in it; give {FEWEST_REFERENCES} or more"
        raise StudioError(f"{option} is {folder}, {few}.")
    return found


def questions_of(taught: Taught, family: ModelFamily, count: int) -> tuple[Question, ...]:
    """`count` of each group, in words that the base knows."""
    tokenizer = next(iter(family.tokenizers.values()))
    return questions_for(taught, contexts_for(tokenizer), count=count)


def asked_of(recipe: Recipe, manifest: Manifest, family: ModelFamily) -> tuple[Question, ...]:
    """All that [evaluate] has a run ask, whenever."""
    taught, config = taught_by(manifest.used, recipe.data), recipe.evaluate
    counts = {config.prompts or USUAL_COUNT} if config.at_end else set()
    counts |= {config.checkpoint_prompts} if config.every or config.strengths else set()
    return tuple(
        dict.fromkeys(one for count in sorted(counts) for one in questions_of(taught, family, count))
    )


def relative_losses(run: Run, step: int | None) -> Mapping[str, float]:
    """By validation image, of the base's, as the run measured at this step; of None the last."""
    rows = [row for row in run.measurements() if row["step"] > 0 and step in (None, row["step"])]
    return dict(rows[-1]["images"]) if rows else {}


def public_name(base: str) -> str:
    """The base's name without the folders that it lies in."""
    return Path(base).name if Path(base).exists() else base
