"""The doctor and a recipe: before training, and on its own."""

from __future__ import annotations

from collections.abc import Callable

from lora_studio.data.buckets import assign
from lora_studio.data.captioners import CAPTIONERS
from lora_studio.data.doctor import examine
from lora_studio.data.doctor.finding import DoctorReport
from lora_studio.data.doctor.folder import read_anyway
from lora_studio.data.manifest import Manifest
from lora_studio.families.base import ModelFamily
from lora_studio.recipe import Recipe
from lora_studio.training.prepare.base_model import base_of
from lora_studio.training.prepare.captions import captions_of
from lora_studio.training.prepare.dataset import framing_of, sources_of


def examine_recipe(
    recipe: Recipe, *, on_progress: Callable[[int, int], None] = lambda done, total: None
) -> tuple[DoctorReport, Manifest]:
    """The report on the recipe's images, and what it is about; the base's weights are not read.

    Raises a StudioError if the base or a folder is missing.
    """
    CAPTIONERS.check(recipe.data.captioner)
    family = base_of(recipe, weights=False)
    manifest, faults = read_anyway(sources_of(recipe.data), CAPTIONERS[recipe.data.captioner])
    framing = framing_of(recipe.data)
    manifest = assign(manifest, resolution=recipe.data.resolution, stride=family.stride, framing=framing)
    return examine_manifest(recipe, family, manifest, faults=faults, on_progress=on_progress), manifest


def examine_manifest(
    recipe: Recipe,
    family: ModelFamily,
    manifest: Manifest,
    *,
    faults: list[str] | None = None,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> DoctorReport:
    """The report on images that were read and given buckets before."""
    captions = captions_of(recipe, [record for record in manifest.records if not record.excluded])
    return examine(
        manifest,
        resolution=recipe.data.resolution,
        stride=family.stride,
        tokenizers=family.tokenizers,
        faults=faults or [],
        written={record.name: captions.written(index) for index, record in enumerate(captions.records)},
        max_chunks=recipe.data.max_token_chunks,
        on_progress=on_progress,
    )
