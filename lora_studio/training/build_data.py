"""The recipe's pictures and captions -> what a step is fed with: found, looked at, drawn, encoded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch

from lora_studio.data.batches import Plan, plan
from lora_studio.data.cache import Latent, LatentCache, TextCache
from lora_studio.data.captions.shown import ShownCaptions
from lora_studio.data.class_rows import class_rows, place_beside
from lora_studio.data.doctor.finding import Report
from lora_studio.data.housekeeping import cache_folder
from lora_studio.data.latents import Latents
from lora_studio.data.manifest import Manifest, Record
from lora_studio.data.views import each_view, entries
from lora_studio.export.provenance import MANIFEST
from lora_studio.export.write import DTYPES
from lora_studio.families.base import ModelFamily
from lora_studio.families.fingerprints import drawing_fingerprint, text_fingerprint
from lora_studio.processes import Processes
from lora_studio.recipe import Recipe
from lora_studio.run import Run
from lora_studio.training.build_holdout import held_captions, held_views
from lora_studio.training.caches import encode_pictures, latent_cache
from lora_studio.training.captions import (
    Foreseen,
    Texts,
    foresee,
    prepare_texts,
    refuse_unused_tokens,
    shown_captions,
)
from lora_studio.training.checkup import examine_manifest
from lora_studio.training.class_images import draw_class_images, with_shown_captions
from lora_studio.training.dataset import loss_masks, read_dataset
from lora_studio.training.events import Listener, progress
from lora_studio.training.feed import Feed, FeedOptions
from lora_studio.training.machine import Machine
from lora_studio.training.resume_pictures import refuse_other_pictures


@dataclass
class Site:
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
    whole_base: str = field(init=False)  # its fingerprint, if class images are drawn with it

    def __post_init__(self) -> None:
        family, draws = self.family, self.recipe.data.class_images.count
        self.latent_cache = latent_cache(family, self.vae_dtype, self.machine.device)
        text_key = f"{text_fingerprint(family)} in {self.machine.dtype}"  # what the encoders compute in
        self.text_cache = TextCache(cache_folder() / "text", text_key)
        self.whole_base = drawing_fingerprint(family) if draws else ""

    @property
    def vae_dtype(self) -> torch.dtype:
        """What pictures are encoded in."""
        return DTYPES[self.recipe.base.vae_dtype]


@dataclass(frozen=True)
class Found:
    """The pictures of a run and their captions."""

    manifest: Manifest
    report: Report  # the doctor's, on the pictures
    captions: ShownCaptions
    shown: list[Record]  # an entry for each time that an epoch shows it
    drawn: list[Record] = field(default_factory=list)  # class images, which are shown beside them

    @property
    def records(self) -> list[Record]:
        """Instance and class images, in the order in which a feed knows them."""
        return [*self.shown, *self.drawn]


@dataclass(frozen=True)
class Encoded:
    """What the caches hold of a run, and in which batches it is shown."""

    views: list[Record]  # of `Found.records`
    held: list[Record]  # out of training
    latents: Latents  # of the views, then of the held-out pictures
    texts: Texts | None  # none if captions are encoded while it trains
    foreseen: Foreseen
    batches: Plan

    @property
    def held_latents(self) -> list[Latent]:
        """Of the held-out pictures."""
        return self.latents[len(self.views) :]

    @property
    def encodes_captions(self) -> bool:
        """Whether some are encoded while it trains."""
        return self.texts is None or not self.foreseen.complete


def find_pictures(site: Site, *, resumes: bool = False) -> Found:
    """Scan the folders, and let the doctor look at what they hold; both are written down.

    Raises RecipeError if a run that goes on began with other pictures.
    """
    recipe, family, processes = site.recipe, site.family, site.processes
    ready = site.latent_cache.ready
    manifest = processes.from_main(lambda: read_dataset(recipe, family.stride, ready))
    if resumes:
        processes.from_main(lambda: refuse_other_pictures(site.run, manifest))
    site.run.text(MANIFEST, manifest.to_jsonl())
    shown = entries(manifest.used)
    captions = shown_captions(recipe, shown)
    refuse_unused_tokens(recipe, captions)
    looking = progress(site.listener, "looking at pictures")
    report = processes.from_main(lambda: examine_manifest(recipe, family, manifest, on_progress=looking))
    site.run.json("doctor.json", report.to_json())
    return Found(manifest, report, captions, shown)


def with_class_images(site: Site, found: Found) -> Found:
    """Those that the frozen base draws, or drew for an earlier run, are among them."""
    family, listener, processes = site.family, site.listener, site.processes
    family.place(site.machine.device, *(family.parts if site.whole_base else ()))
    drawing = draw_class_images(site.recipe, found.manifest, family, site.whole_base, listener, processes)
    manifest = Manifest(found.manifest.records + tuple(drawing.records))
    site.run.text(MANIFEST, manifest.to_jsonl())
    class_pictures = with_shown_captions(site.recipe, manifest)
    return replace(found, manifest=manifest, drawn=place_beside(class_pictures, found.shown))


def encode(site: Site, found: Found) -> Encoded:
    """Latents and texts, from the caches or computed once by the parts of the base."""
    recipe, family, device = site.recipe, site.family, site.machine.device
    views, held = each_view(found.records), held_views(recipe, found.manifest)
    family.place(device, "vae")
    latents = encode_pictures(
        site.latent_cache,
        [*views, *held],
        family,
        site.vae_dtype,
        memory_gb=recipe.data.latents_on_device_gb,
        listener=site.listener,
        processes=site.processes,
    )
    batches = batches_of(recipe, found.shown)
    foreseen = foresee(found.captions, batches, recipe.training.steps)
    family.place(device, *family.text_encoders)
    also = [record.caption for record in found.drawn] + held_captions(recipe, held)
    texts = _texts(site, foreseen, also)
    return Encoded(views, held, latents, texts, foreseen, batches)


def make_feed(site: Site, found: Found, encoded: Encoded) -> Feed:
    """What hands out every step's micro-batches."""
    recipe, records = site.recipe, found.records
    seed = recipe.training.seed
    per_picture = recipe.data.class_images.per_picture
    return Feed(
        records,
        found.captions,
        encoded.latents,
        encoded.texts,
        encoded.batches,
        FeedOptions(seed, site.machine.device, recipe.objective.masked_preservation),
        masks=loss_masks(encoded.views, encoded.latents),
        class_rows=class_rows(records, first=len(found.shown), per_picture=per_picture, seed=seed),
    )


def _texts(site: Site, foreseen: Foreseen, also: Sequence[str]) -> Texts | None:
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


def batches_of(recipe: Recipe, records: Sequence[Record]) -> Plan:
    """Which pictures are seen at which step; `records` has an entry for each view."""
    training = recipe.training
    return plan(
        records, batch_size=training.batch_size, accumulation=training.accumulation, seed=training.seed
    )
