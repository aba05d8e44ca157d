"""`lora-studio assess`: how well one or more bases suit a recipe's images, before anything is trained."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from lora_studio.data.images.decode import load_image
from lora_studio.errors import RecipeError, StudioError, reason_of
from lora_studio.evaluate.assessing import BaseAssessment, TargetImage, assess_base, square
from lora_studio.evaluate.assessing.page import KIND, assessment_page
from lora_studio.evaluate.assessing.ranking import BaseRanking, rank_bases
from lora_studio.evaluate.encoders import ImageEncoder, load_encoder, usual_encoder
from lora_studio.evaluate.material import found_images
from lora_studio.families.freed import return_freed_memory
from lora_studio.files import check_ending, say_unwritable, write_atomically
from lora_studio.pages import write_page
from lora_studio.processes import default_precision, find_device
from lora_studio.recipe import Recipe
from lora_studio.recipe.base import BaseConfig
from lora_studio.recipe.load import load_recipe
from lora_studio.tools import Report
from lora_studio.training.events import Listener, Note, Progress, ignore_events
from lora_studio.training.machine import is_out_of_memory, out_of_memory
from lora_studio.training.prepare.base_model import base_of
from lora_studio.training.prepare.dataset import captions_of, examine_recipe

USUAL_IMAGES, MOST_IMAGES = 16, 200
UNKNOWN = (
    "what a gap means for rank, steps or preservation was not measured, so nothing is advised: these figures "
    "compare bases, and name the images that a base finds strange"
)


@dataclass(frozen=True)
class AssessmentRequest:
    """Which bases, and by what; what is empty is as the recipe has it."""

    bases: tuple[str, ...] = ()
    changes: tuple[str, ...] = ()  # of the recipe, as --set has them
    count: int = USUAL_IMAGES  # images, from all over the recipe's
    encoder: str = ""
    device: str = ""
    folder: Path | None = None  # None: <name of the recipe>_assessment


@dataclass(frozen=True)
class BasesAssessed(Report):
    """What was found, and where it is told."""

    assessments: tuple[BaseAssessment, ...]
    ranking: BaseRanking
    facts: dict[str, str | int]
    notes: tuple[str, ...]
    page: str

    def to_json(self) -> dict[str, Any]:
        """As `assessment.json` has it."""
        told = [one.to_json() for one in self.assessments]
        found = {"facts": self.facts, "bases": told, "ranking": self.ranking.to_json()}
        return found | {"notes": list(self.notes), "page": self.page}


def assess(recipe: Path, request: AssessmentRequest, *, on_event: Listener = ignore_events) -> BasesAssessed:
    """Measure each base on the recipe's images, and write assessment.json and assessment.html into a folder.

    One base after the other is in memory. Raises StudioError for what the user can mend, before the first is
    measured where that can be known.
    """
    if not 2 <= request.count <= MOST_IMAGES:
        raise RecipeError(f"--count is {request.count}; it must be from 2 to {MOST_IMAGES} images.")
    if (device := find_device(request.device)) is None:
        raise RecipeError(f'--device is {request.device!r}, which this machine does not have; use "cpu".')
    loaded = load_recipe(recipe, changes=request.changes)
    folder = request.folder or Path(f"{loaded.name}_assessment")
    check_ending(folder, "")
    bases = tuple(dict.fromkeys(request.bases)) or (loaded.base.model,)
    targets = targets_of(loaded, request.count)
    name, _, model = request.encoder.partition(":")
    name = name or usual_encoder(bases[0])
    encoder = load_encoder(name, model, device=device)
    try:
        found = [_assess(_with_base(loaded, one), encoder, targets, str(device), on_event) for one in bases]
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise out_of_memory(f"while a base was measured ({reason_of(error)})") from None
    ranking, images = rank_bases(found), {one.name: one.image for one in targets}
    facts: dict[str, str | int] = {"encoder": encoder.name, "encoder_sha256": encoder.digest}
    facts |= {"images": len(targets), "side": targets[0].image.width, "seed": loaded.samples.seed}
    path = folder / "assessment.html"
    result = BasesAssessed(tuple(found), ranking, facts, (UNKNOWN,), str(path))
    with say_unwritable(path):
        write_page(path, assessment_page(loaded.name, found, ranking, images, result.notes), kind=KIND)
        text = json.dumps(result.to_json(), indent=2, ensure_ascii=False)
        write_atomically(path.with_suffix(".json"), f"{text}\n".encode("utf-8", "backslashreplace"))
    return result


def targets_of(recipe: Recipe, count: int) -> list[TargetImage]:
    """`count` of the recipe's images, evenly from all over them, as squares of its resolution.

    Raises StudioError if there are fewer than two.
    """
    _, manifest = examine_recipe(recipe)
    used = [one for one in manifest.used if one.repeats]
    if len(used) > count:
        used = [used[place * len(used) // count] for place in range(count)]
    paths = found_images(used, [one.images for one in recipe.data.all_sources])
    captions, targets = captions_of(recipe, used), list[TargetImage]()
    for index, (record, path) in enumerate(zip(used, paths, strict=True)):
        if path is not None:
            image: Image.Image = load_image(path, background=recipe.data.background)
            caption = captions.variant(index, 0)
            plain = captions.plain(index) or caption
            whole = square(image, recipe.data.resolution)
            targets.append(TargetImage(record.name, record.sha256, whole, caption, plain))
    if len(targets) < 2:
        raise StudioError(f"{recipe.name} has {len(targets)} images that can be read; 2 or more are needed.")
    return targets


def _with_base(recipe: Recipe, model: str) -> Recipe:
    """Another base has none of the options that the recipe's own has."""
    if model == recipe.base.model:
        return recipe
    return recipe.model_copy(update={"base": BaseConfig(model=model)})


def _assess(
    recipe: Recipe, encoder: ImageEncoder, targets: Sequence[TargetImage], device: str, listener: Listener
) -> BaseAssessment:
    listener(Note(f"reading {recipe.base.model}"))
    place = find_device(device)
    assert place is not None
    family = base_of(recipe, dtype=default_precision(place), staged=True)
    side = targets[0].image.width
    if side % family.stride:
        raise RecipeError(
            f"data.resolution is {side}; {recipe.base.model} draws images whose sides are multiples of "
            f"{family.stride} pixels."
        )
    family.place(place, *(() if family.staged else family.parts))
    samples = recipe.samples
    told = Path(recipe.base.model).name if Path(recipe.base.model).exists() else recipe.base.model
    try:
        return assess_base(
            told,
            family,
            targets,
            encoder,
            samples,
            side=side,
            on_progress=lambda *done: listener(Progress(*done)),
        )
    finally:
        del family
        return_freed_memory()
