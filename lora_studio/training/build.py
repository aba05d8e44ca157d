"""Recipe -> objects. The last place that sees a recipe; everything it makes gets plain typed values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from lora_studio.adapters import ADAPTERS
from lora_studio.adapters.base import AdapterSet
from lora_studio.data.batches import Plan, plan
from lora_studio.data.cache import TextCache
from lora_studio.data.captioners import CAPTIONERS
from lora_studio.data.class_rows import class_rows, place_beside
from lora_studio.data.doctor.finding import Report
from lora_studio.data.housekeeping import cache_folder
from lora_studio.data.manifest import Manifest, Record
from lora_studio.data.views import each_view, entries
from lora_studio.errors import RecipeError
from lora_studio.export.write import DTYPES
from lora_studio.families.base import ModelFamily
from lora_studio.families.fingerprints import text_fingerprint
from lora_studio.processes import ALONE, Processes
from lora_studio.quantization import QUANTIZERS
from lora_studio.recipe import Recipe
from lora_studio.recipe_tokens import NO_ADAPTER
from lora_studio.run import Run
from lora_studio.training.base import base_of
from lora_studio.training.build_adapters import inject_adapters, refuse_adapters, unrounded
from lora_studio.training.build_holdout import held_captions, held_views, make_holdout
from lora_studio.training.build_loop import make_loop
from lora_studio.training.caches import encode_pictures, latent_cache
from lora_studio.training.captions import (
    Foreseen,
    foresee,
    prepare_texts,
    refuse_unused_tokens,
    shown_captions,
)
from lora_studio.training.checkup import examine_manifest
from lora_studio.training.class_images import base_fingerprint, draw_class_images
from lora_studio.training.dataset import loss_masks, read_dataset
from lora_studio.training.events import Listener, progress
from lora_studio.training.feed import Feed, FeedOptions
from lora_studio.training.holdout import Holdout
from lora_studio.training.loop import Loop
from lora_studio.training.machine import Machine, machine_of
from lora_studio.training.optimizer_choice import optimizer_faults, refuse_optimizer_that_fails
from lora_studio.training.preview import PreviewOptions
from lora_studio.training.schedule import make_schedule
from lora_studio.training.self_test import refuse_what_fails
from lora_studio.training.sharded import is_sharded, shard
from lora_studio.training.tracking import tracker_faults


@dataclass
class Session:
    """A run that is ready to train."""

    recipe: Recipe
    run: Run
    machine: Machine
    family: ModelFamily
    base_fingerprint: str
    manifest: Manifest
    report: Report  # the doctor's, on the pictures
    adapters: AdapterSet
    batches: Plan
    loop: Loop
    preview: PreviewOptions
    foreseen: Foreseen
    holdout: Holdout | None
    processes: Processes


def check_names(recipe: Recipe) -> None:
    """Raise RecipeError listing every name of the recipe that its table does not know."""
    training = recipe.training
    wanted = [
        (CAPTIONERS, recipe.data.captioner),
        (QUANTIZERS, recipe.base.quantize),
    ]
    if recipe.adapter.kind != NO_ADAPTER:
        wanted.append((ADAPTERS, recipe.adapter.kind))
    faults = tracker_faults(recipe.tracking.to) + optimizer_faults(training)
    for table, name in wanted:
        try:
            table.check(name)  # type: ignore[attr-defined]
        except RecipeError as error:
            faults.append(str(error))
    try:
        make_schedule(training.schedule, training.schedule_floor)
    except RecipeError as error:
        faults.append(str(error))
    if faults:
        raise RecipeError("\n".join(faults))


def prepare(recipe: Recipe, run: Run, listener: Listener, processes: Processes = ALONE) -> Session:
    """Everything up to the first step. Raises a StudioError for whatever the user can mend."""
    check_names(recipe)
    machine = ready_machine(recipe, processes)
    refuse_optimizer_that_fails(recipe.training, machine.device)
    family = base_of(recipe)
    refuse_adapters(recipe, family, processes)
    family.max_chunks = recipe.data.max_token_chunks
    vae_dtype = DTYPES[recipe.base.vae_dtype]
    cache = latent_cache(family, vae_dtype, machine.device)
    manifest = processes.from_main(lambda: read_dataset(recipe, family.stride, cache.ready))
    run.text("manifest.jsonl", manifest.to_jsonl())
    shown = entries(manifest.used)
    captions = shown_captions(recipe, shown)
    refuse_unused_tokens(recipe, captions)
    report = processes.from_main(
        lambda: examine_manifest(
            recipe, family, manifest, on_progress=progress(listener, "looking at pictures")
        )
    )
    run.json("doctor.json", report.to_json())
    fingerprint = family.fingerprint(family.denoiser)
    whole_base = base_fingerprint(family) if recipe.data.class_images.count else ""
    text_cache = TextCache(cache_folder() / "text", _text_key(family, machine.dtype))
    sharded = is_sharded(recipe, processes)
    exact = unrounded(recipe, family)
    machine.shrink(family)
    family.place(machine.device, *(family.parts if recipe.data.class_images.count else ()))
    drawing = draw_class_images(recipe, manifest, family, whole_base, listener, processes)
    manifest = Manifest(manifest.records + tuple(drawing.records))
    run.text("manifest.jsonl", manifest.to_jsonl())
    records = (*shown, *place_beside(manifest.of_role("prior"), shown))
    views, held = each_view(records), held_views(recipe, manifest)
    memory_gb = recipe.data.latents_on_device_gb
    family.place(machine.device, "vae")
    latents = encode_pictures(
        cache,
        [*views, *held],
        family,
        vae_dtype,
        memory_gb=memory_gb,
        listener=listener,
        processes=processes,
    )
    batches = _plan(recipe, shown)
    foreseen = foresee(captions, batches, recipe.training.steps)
    family.place(machine.device, *family.text_encoders)
    texts = None
    if not recipe.adapter.text_encoder and not recipe.tokens:  # tokens that have stopped are encoded, too
        also = [record.caption for record in records[len(shown) :]] + held_captions(recipe, held)
        on_progress = progress(listener, "captions")
        texts = prepare_texts(
            text_cache, foreseen, family, also=also, on_progress=on_progress, processes=processes
        )
    if sharded:
        shard(family, processes, machine.device, machine.dtype)
    adapters = inject_adapters(recipe, family, exact)
    machine.speed_up(family, adapters.parts)
    encodes = texts is None or not foreseen.complete  # while it trains
    family.place(machine.device, family.denoiser, *(family.text_encoders if encodes else ()))
    options = FeedOptions(recipe.training.seed, machine.device, recipe.objective.masked_preservation)
    rows = class_rows(
        records,
        first=len(shown),
        per_picture=recipe.data.class_images.per_picture,
        seed=recipe.training.seed,
    )
    masks = loss_masks(views, latents)
    feed = Feed(records, captions, latents, texts, batches, options, masks=masks, class_rows=rows)
    loop = make_loop(recipe, run, machine, family, adapters, feed, listener, processes)
    holdout = make_holdout(
        recipe, held, latents[len(views) :], texts, family, loop.objective, autocast=machine.autocast
    )
    return Session(
        recipe=recipe,
        run=run,
        machine=machine,
        family=family,
        base_fingerprint=fingerprint,
        manifest=manifest,
        report=report,
        adapters=adapters,
        batches=batches,
        loop=loop,
        preview=_preview(recipe),
        foreseen=foreseen,
        holdout=holdout,
        processes=processes,
    )


def ready_machine(recipe: Recipe, processes: Processes = ALONE) -> Machine:
    """What the recipe asks for. Raises RecipeError if that is not there, or an option does not work on it."""
    wishes = recipe.machine
    if processes.device:
        wishes = wishes.model_copy(update={"device": processes.device})
    machine = machine_of(wishes, recipe.base.dtype, recipe.base.quantize)
    refuse_what_fails(machine)
    return machine


def _plan(recipe: Recipe, records: Sequence[Record]) -> Plan:
    training = recipe.training
    return plan(
        records, batch_size=training.batch_size, accumulation=training.accumulation, seed=training.seed
    )


def _text_key(family: ModelFamily, dtype: torch.dtype) -> str:
    """Of all that conditioning depends on but the caption; `dtype` is what the encoders compute in."""
    return f"{text_fingerprint(family)} in {dtype}"


def _preview(recipe: Recipe) -> PreviewOptions:
    config = recipe.preview
    side = recipe.data.resolution
    return PreviewOptions(
        config.prompts, config.negative_prompt, config.seed, config.steps, config.guidance, side
    )
