"""The recipe's images and captions -> what a step is fed with: found, looked at, drawn, encoded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch

from lora_studio.data.batches import Plan, plan
from lora_studio.data.cache.encode import LatentCache, TextCache
from lora_studio.data.cache.latents import Latent, Latents
from lora_studio.data.captions.shown import ShownCaptions
from lora_studio.data.conditioning import CaptionSet, ConditioningCache, foresee, prepare_texts
from lora_studio.data.doctor.finding import DoctorReport
from lora_studio.data.feed import Feed, FeedOptions
from lora_studio.data.manifest import Manifest, Record
from lora_studio.data.regularization_images.rows import class_rows, place_beside
from lora_studio.data.views import each_view, entries
from lora_studio.errors import RecipeError
from lora_studio.families.base import ModelFamily
from lora_studio.files import cache_folder
from lora_studio.lora_file.write import DTYPES
from lora_studio.metadata.provenance import MANIFEST
from lora_studio.processes import Processes
from lora_studio.recipe import Recipe
from lora_studio.recipe.load import with_steps
from lora_studio.runs.folder import Run
from lora_studio.training.events import Listener, progress
from lora_studio.training.machine import Machine
from lora_studio.training.prepare.captions import refuse_unused_tokens, shown_captions
from lora_studio.training.prepare.checks import schedule_faults
from lora_studio.training.prepare.dataset import loss_masks, read_dataset
from lora_studio.training.prepare.doctor import examine_manifest
from lora_studio.training.prepare.encode import encode_images, latent_cache
from lora_studio.training.prepare.regularization_images import draw_regularization_images, with_shown_captions
from lora_studio.training.prepare.resume import refuse_other_images
from lora_studio.training.prepare.validation import held_captions, held_views


@dataclass
class BuildContext:
    """Where a run is made ready: what every part of that needs.

    Made while the base is as it was loaded: caches are named after what computes them.
    """

    recipe: Recipe
    run: Run
    machine: Machine
    family: ModelFamily
    listener: Listener
    processes: Processes
    latent_cache: LatentCache = field(init=False)
    text_cache: TextCache = field(init=False)
    whole_base: str = field(init=False)  # its fingerprint, if regularization images are drawn with it

    def __post_init__(self) -> None:
        family, draws = self.family, self.recipe.data.regularization_images.count
        self.latent_cache = latent_cache(family, self.vae_dtype, self.machine.device)
        text_key = f"{family.text_fingerprint()} in {self.machine.dtype}"  # what the encoders compute in
        self.text_cache = TextCache(cache_folder() / "text", text_key)
        self.whole_base = family.drawing_fingerprint() if draws else ""

    @property
    def vae_dtype(self) -> torch.dtype:
        """What images are encoded in."""
        return DTYPES[self.recipe.base.vae_dtype]


@dataclass(frozen=True)
class ImageSet:
    """The images of a run and their captions."""

    manifest: Manifest
    report: DoctorReport  # the doctor's, on the images
    captions: ShownCaptions
    shown: list[Record]  # an entry for each time that an epoch shows it
    drawn: list[Record] = field(default_factory=list)  # regularization images, which are shown beside them

    @property
    def records(self) -> list[Record]:
        """Instance and regularization images, in the order in which a feed knows them."""
        return [*self.shown, *self.drawn]


@dataclass(frozen=True)
class EncodedSet:
    """What the caches hold of a run, and in which batches it is shown."""

    views: list[Record]  # of `Found.records`
    held: list[Record]  # out of training
    latents: Latents  # of the views, then of the validation images
    texts: ConditioningCache | None  # none if captions are encoded while it trains
    foreseen: CaptionSet
    batches: Plan

    @property
    def held_latents(self) -> list[Latent]:
        """Of the validation images."""
        return self.latents[len(self.views) :]

    @property
    def encodes_captions(self) -> bool:
        """Whether some are encoded while it trains."""
        return self.texts is None or not self.foreseen.complete


def find_images(site: BuildContext, *, resumes: bool = False) -> ImageSet:
    """Scan the folders, and let the doctor look at what they hold; both are written down.

    Raises RecipeError if a run that goes on began with other images.
    """
    recipe, family, processes = site.recipe, site.family, site.processes
    ready = site.latent_cache.ready
    manifest = processes.from_main(lambda: read_dataset(recipe, family.stride, ready))
    if resumes:
        processes.from_main(lambda: refuse_other_images(site.run, manifest))
    site.run.text(MANIFEST, manifest.to_jsonl())
    shown = entries(manifest.used)
    captions = shown_captions(recipe, shown)
    refuse_unused_tokens(recipe, captions)
    looking = progress(site.listener, "looking at images")
    report = processes.from_main(lambda: examine_manifest(recipe, family, manifest, on_progress=looking))
    site.run.json("doctor.json", report.to_json())
    site.recipe = in_steps(recipe, shown)
    return ImageSet(manifest, report, captions, shown)


def with_regularization_images(site: BuildContext, found: ImageSet) -> ImageSet:
    """Those that the frozen base draws, or drew for an earlier run, are among them."""
    family, listener, processes = site.family, site.listener, site.processes
    family.place(site.machine.device, *(family.parts if site.whole_base else ()))
    drawing = draw_regularization_images(
        site.recipe, found.manifest, family, site.whole_base, listener, processes
    )
    manifest = Manifest(found.manifest.records + tuple(drawing.records))
    site.run.text(MANIFEST, manifest.to_jsonl())
    regularization_sources = with_shown_captions(site.recipe, manifest)
    return replace(found, manifest=manifest, drawn=place_beside(regularization_sources, found.shown))


def encode(site: BuildContext, found: ImageSet) -> EncodedSet:
    """Latents and texts, from the caches or computed once by the parts of the base."""
    recipe, family, device = site.recipe, site.family, site.machine.device
    views, held = each_view(found.records), held_views(recipe, found.manifest)
    family.place(device, "vae")
    latents = encode_images(
        site.latent_cache,
        [*views, *held],
        family,
        site.vae_dtype,
        memory_gb=recipe.data.latent_memory_gb,
        listener=site.listener,
        processes=site.processes,
    )
    batches = batches_of(recipe, found.shown)
    foreseen = foresee(found.captions, batches, recipe.training.steps)
    family.place(device, *family.text_encoders)
    also = [record.caption for record in found.drawn] + held_captions(recipe, held)
    texts = _texts(site, foreseen, also)
    return EncodedSet(views, held, latents, texts, foreseen, batches)


def make_feed(site: BuildContext, found: ImageSet, encoded: EncodedSet) -> Feed:
    """What hands out every step's micro-batches."""
    recipe, records = site.recipe, found.records
    seed = recipe.training.seed
    per_image = recipe.data.regularization_images.per_image
    return Feed(
        records,
        found.captions,
        encoded.latents,
        encoded.texts,
        encoded.batches,
        FeedOptions(seed, site.machine.device, recipe.objective.masked_preservation),
        masks=loss_masks(encoded.views, encoded.latents),
        class_rows=class_rows(records, first=len(found.shown), per_image=per_image, seed=seed),
    )


def _texts(site: BuildContext, foreseen: CaptionSet, also: Sequence[str]) -> ConditioningCache | None:
    """None if text encoders learn, or tokens: those that have stopped are encoded while it trains, too."""
    if site.recipe.adapter.text_encoder or site.recipe.tokens:
        return None
    on_progress = progress(site.listener, "captions")
    return prepare_texts(
        site.text_cache,
        foreseen,
        site.family,
        also=also,
        on_progress=on_progress,
        processes=site.processes,
    )


def in_steps(recipe: Recipe, records: Sequence[Record]) -> Recipe:
    """The recipe with steps in place of epochs of these records, which has an entry for each view.

    Raises RecipeError for what does not go with so few steps.
    """
    epochs = recipe.training.epochs
    if epochs is None:
        return recipe
    recipe = with_steps(recipe, batches_of(recipe, records).steps_of(epochs))
    if faults := schedule_faults(recipe.training):
        raise RecipeError("\n".join(faults))
    return recipe


def manifest_of(run: Run) -> Manifest:
    """What a run began with."""
    return Manifest(tuple(Record.from_json(line) for line in run.lines(MANIFEST)))


def batches_of(recipe: Recipe, records: Sequence[Record]) -> Plan:
    """Which images are seen at which step; `records` has an entry for each view."""
    training = recipe.training
    return plan(
        records,
        batch_size=training.batch_size,
        gradient_accumulation=training.gradient_accumulation,
        seed=training.seed,
    )
