"""The recipe's images and captions -> what a step is fed with: found, looked at, drawn, encoded."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from torch import Tensor

from lora_studio.data.batches import BatchPlan, each_view, entries
from lora_studio.data.cache.encode import ImageEncoder
from lora_studio.data.cache.store import Latents
from lora_studio.data.captions.shown import ShownCaptions
from lora_studio.data.conditioning import (
    CaptionSet,
    ConditioningCache,
    captions_of_run,
    encode_in_turn,
    prepare_texts,
)
from lora_studio.data.doctor.finding import DoctorReport
from lora_studio.data.doctor.look import Looks
from lora_studio.data.feed import Feed
from lora_studio.data.manifest import Manifest, Record
from lora_studio.data.regularization_images import place_beside, regularization_rows
from lora_studio.errors import RecipeError, preview_names, reason_of
from lora_studio.evaluate.artist import Brush
from lora_studio.evaluate.material import asked_of
from lora_studio.evaluate.previews import keep_prompts
from lora_studio.families.base import ModelFamily
from lora_studio.metadata.provenance import MANIFEST
from lora_studio.recipe import Recipe
from lora_studio.recipe.load import with_steps
from lora_studio.runs import Run
from lora_studio.runs.reading import damaged, inputs_before, read_bytes
from lora_studio.training.events import Note, progress
from lora_studio.training.machine import exact_products
from lora_studio.training.prepare.base_model import BuildContext
from lora_studio.training.prepare.checks import schedule_faults
from lora_studio.training.prepare.dataset import (
    examine_manifest,
    loss_masks,
    read_dataset,
    shown_captions,
    validation_captions,
    validation_views,
)
from lora_studio.training.prepare.regularization_images import draw_regularization_images, with_shown_captions
from lora_studio.training.prepare.resume import refuse_other_images
from lora_studio.verify.trained import CAPTION

GIGABYTE = 10**9
MOST_VIEWS = 10_000_000  # of all images in an epoch: a plan has an entry for each


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

    views: list[Record]  # of `ImageSet.records`
    validation: list[Record]
    latents: Latents  # of the views, then of the validation images
    texts: ConditioningCache | None  # none if captions are encoded while it trains
    caption_set: CaptionSet
    batches: BatchPlan


def find_images(context: BuildContext) -> ImageSet:
    """Scan the folders, and let the doctor look at what they hold; both are written down.

    Raises RecipeError if a run that goes on began with other images.
    """
    recipe, family, processes = context.recipe, context.family, context.processes
    ready, looks = context.latent_cache.ready, Looks(recipe.data, family.stride)  # of the main process
    looking = progress(context.listener, "looking at images")
    manifest = processes.from_main(
        lambda: read_dataset(recipe, family.stride, ready, looks, on_progress=looking)
    )
    if context.resumes:
        processes.from_main(lambda: refuse_other_images(context.run, manifest))
    if (views := sum(record.repeats for record in manifest.usable)) > MOST_VIEWS:
        raise RecipeError(
            f"an epoch would show {views:,} images; at most {MOST_VIEWS:,} are possible: lower data.repeats, "
            "or the repeats of folders and single images."
        )
    _write_manifest(context, manifest)
    shown = entries(manifest.used)
    context.recipe = recipe = in_steps(recipe, shown)
    captions = shown_captions(recipe, shown)
    report = processes.from_main(lambda: examine_manifest(recipe, family, manifest, looks))
    context.run.json("doctor.json", report.to_json())
    return ImageSet(manifest, report, captions, shown)


def with_regularization_images(context: BuildContext, found: ImageSet) -> ImageSet:
    """Those that the frozen base draws, or drew for an earlier run, are among them."""
    recipe = context.recipe
    at_once = recipe.data.regularization_images.count and not context.family.staged
    context.family.place(context.machine.device, *(context.family.parts if at_once else ()))
    drawing = draw_regularization_images(context, found.manifest)
    manifest = Manifest(found.manifest.records + tuple(drawing.records))
    _write_manifest(context, manifest)
    drawn = place_beside(with_shown_captions(context.recipe, manifest), found.shown)
    return replace(found, manifest=manifest, drawn=drawn)


def encode(context: BuildContext, found: ImageSet) -> EncodedSet:
    """Latents and texts, from the caches or computed once by the parts of the base."""
    recipe, family, device = context.recipe, context.family, context.machine.device
    views, validation = each_view(found.records), validation_views(recipe, found.manifest)
    family.place(device, "vae")
    with exact_products():
        latents = _latents(context, [*views, *validation])
    batches = batches_of(recipe, found.shown)
    beside = [record.caption for record in found.drawn] + validation_captions(recipe, validation)
    caption_set = captions_of_run(found.captions, batches, recipe.training.steps, beside)
    family.place(device, *(() if family.staged else family.text_encoders))  # else when they are asked
    texts = None
    if not recipe.adapter.text_encoder and not recipe.tokens:  # one that has stopped learning is asked, too
        told = progress(context.listener, "captions")
        cache, processes = context.text_cache, context.processes
        with exact_products():
            texts = prepare_texts(cache, caption_set, family, on_progress=told, processes=processes)
    with torch.no_grad():
        keep_prompts(family, recipe.samples)
        if family.staged and not recipe.evaluate.off:
            brush = Brush.like_previews(family, recipe.samples, recipe.data.resolution, context.whole_base)
            brush.keep_texts(asked_of(recipe, found.manifest, family))
        if family.staged:  # what the finished file is probed with
            encode_caption = partial(encode_in_turn, family)
            family.kept_texts |= context.text_cache.load_or_encode([CAPTION], encode_caption)
    return EncodedSet(views, validation, latents, texts, caption_set, batches)


def make_feed(context: BuildContext, found: ImageSet, encoded: EncodedSet) -> Feed:
    """What hands out every step's micro-batches."""
    recipe, records, seed = context.recipe, found.records, context.recipe.training.seed
    first, per_image = len(found.shown), recipe.data.regularization_images.per_image
    return Feed(
        records=records,
        captions=found.captions,
        latents=encoded.latents,
        texts=encoded.texts,
        plan=encoded.batches,
        seed=seed,
        device=context.machine.device,
        masks=loss_masks(encoded.views, encoded.latents),
        masked_preservation=recipe.objective.masked_preservation,
        regularization_rows=regularization_rows(records, first=first, per_image=per_image, seed=seed),
        weighs_images_alike=recipe.training.loss_average == "image",
    )


def batches_of(recipe: Recipe, records: Sequence[Record]) -> BatchPlan:
    """Which images are seen at which step; `records` has an entry for each view."""
    training = recipe.training
    rows, accumulation = training.batch_size, training.gradient_accumulation
    return BatchPlan(records, batch_size=rows, gradient_accumulation=accumulation, seed=training.seed)


def in_steps(recipe: Recipe, records: Sequence[Record]) -> Recipe:
    """The recipe with steps in place of epochs of these views; raises RecipeError if they are too few."""
    if (epochs := recipe.training.epochs) is None:
        return recipe
    recipe = with_steps(recipe, batches_of(recipe, records).steps_of(epochs))
    if faults := schedule_faults(recipe.training):
        raise RecipeError("\n".join(faults))
    return recipe


def _write_manifest(context: BuildContext, manifest: Manifest) -> None:
    """Unless the run has one with a digest, which stays what it began with."""
    run = context.run
    if not (context.resumes and context.processes.from_main(lambda: MANIFEST in inputs_before(run.folder))):
        run.text(MANIFEST, manifest.to_jsonl())


def manifest_of(run: Run) -> Manifest:
    """What a run began with. Raises CheckpointError if it is not what was written down then."""
    path, before = run.folder / MANIFEST, inputs_before(run.folder)
    if MANIFEST in before and hashlib.sha256(read_bytes(path)).hexdigest() != before[MANIFEST]:
        raise damaged(path, "its digest is another")
    try:
        return Manifest(tuple(Record.from_json(line) for line in run.lines(MANIFEST)))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise damaged(path, f"{type(error).__name__}: {reason_of(error)}") from None


def _latents(context: BuildContext, records: Sequence[Record]) -> Latents:
    """Of the records; those that needed float32 are named in a note.

    Of several processes each encodes some. What it then does not find, because the others are on another
    machine with a cache of its own, it encodes, too.
    """
    cache, processes, dtype = context.latent_cache, context.processes, context.vae_dtype
    encode, in_float32 = image_encoders(context.family, dtype)
    on_progress = progress(context.listener, "latents")

    def load_or_encode(some: Sequence[Record], memory_bytes: int) -> Latents:
        return cache.load_or_encode(
            some, encode, in_float32=in_float32, memory_bytes=memory_bytes, on_progress=on_progress
        )

    if processes.count > 1:
        processes.each(lambda: len(load_or_encode(records[processes.rank :: processes.count], 0)))
    latents = load_or_encode(records, round(context.recipe.data.latent_memory_gb * GIGABYTE))
    retried = processes.each(lambda: cache.retried)
    if found := list(dict.fromkeys(name for names in retried for name in names)):
        names, precision = preview_names(found), str(dtype).removeprefix("torch.")
        context.listener(Note(f"the VAE gave NaN in {precision} for {names}: encoded again in float32"))
    return latents


def image_encoders(family: ModelFamily, vae_dtype: torch.dtype) -> tuple[ImageEncoder, ImageEncoder | None]:
    """The family's VAE in `vae_dtype`; its weights stay in float32, so that a retry, the second, is exact."""
    if vae_dtype == torch.float32:
        return family.encode_image, None

    def under_autocast(pixels: Tensor) -> tuple[Tensor, Tensor]:
        with torch.autocast(family.device.type, vae_dtype):
            return family.encode_image(pixels)

    return under_autocast, family.encode_image
