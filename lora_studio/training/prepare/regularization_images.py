"""The recipe's regularization images: drawn by the frozen base before training, or read from folders."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from PIL import Image

from lora_studio.data.batches import entries
from lora_studio.data.captions.shown import ShownCaptions
from lora_studio.data.captions.trigger import contains_trigger
from lora_studio.data.manifest import Manifest, Record
from lora_studio.data.regularization_images import (
    DRAWN,
    Draw,
    ImageRequest,
    RegularizationImages,
    image_requests,
)
from lora_studio.errors import BaseModelError, DatasetError, OutOfMemory, RecipeError, preview_names
from lora_studio.evaluate.previews import (
    MOST_UNTILED,
    AskedPrompt,
    in_its_precision,
    keep,
    make_ready,
    side_by_side,
)
from lora_studio.families.base import ModelFamily
from lora_studio.files import cache_folder
from lora_studio.processes import ALONE
from lora_studio.recipe import Recipe
from lora_studio.recipe.data import RegularizationImagesConfig
from lora_studio.rng import generator
from lora_studio.runs import ReadOnlyRun, run_folder
from lora_studio.training.events import Listener, progress
from lora_studio.training.machine import within_memory
from lora_studio.training.machine.offload import offload, offload_text
from lora_studio.training.prepare.base_model import BuildContext
from lora_studio.training.prepare.dataset import captions_of, read_dataset

LESS = (
    'less is needed with base.quantize = "bnb_nf4" or a smaller data.resolution; or have them drawn on the '
    "CPU: lora-studio regularization-images with --set machine.device=cpu and the base.dtype of the training."
)


@dataclass(frozen=True)
class Drawing:
    """What was asked of the base, and how many of it were not there yet."""

    records: list[Record]
    drawn: int


def draw_ahead(recipe: Recipe, listener: Listener) -> Drawing:
    """Draw a recipe's regularization images, so that training finds them; RecipeError if it wants none."""
    from lora_studio.training.prepare.checks import check_recipe

    if recipe.data.regularization_images.count == 0:
        raise RecipeError(
            "data.regularization_images.count is 0, so there is nothing to draw; set it to how many the "
            "base should draw, e.g. --set data.regularization_images.count=100."
        )
    checked, run = check_recipe(recipe, trains=False), ReadOnlyRun(run_folder(recipe.name))
    machine, family = checked.machine, checked.family
    context = BuildContext(recipe, run, machine, family, checked.adapters, listener, ALONE)
    manifest = read_dataset(recipe, family.stride)
    offload_text(family, machine)
    if not family.staged:
        machine.shrink(family)
        offload(family, machine)
        family.place(machine.device, *family.parts)
    return draw_regularization_images(context, manifest, ahead=True)


def draw_regularization_images(context: BuildContext, manifest: Manifest, *, ahead: bool = False) -> Drawing:
    """The regularization images that the recipe has the base draw; those in the cache are taken from there.

    Of several processes each draws some; what it then does not find it draws, too. `ahead`: of a run, whose
    base gets adapters that need all of it in one place.
    Raises DatasetError if they, or those in folders, would be shown with a trigger.
    """
    recipe, family, processes = context.recipe, context.family, context.processes
    wanted = recipe.data.regularization_images
    of_folders = _of_folders(recipe, manifest)
    records = enumerate(of_folders.records)
    captions = [(record.name, text) for index, record in records for text in of_folders.written(index)]
    requests: list[ImageRequest] = []
    if wanted.count:
        to_draw = captions_of(_with_fixed_tags(recipe), entries(manifest.used))
        requests = image_requests(to_draw, count=wanted.count, prompt=wanted.prompt)
        captions += [(f"drawn from {request.prompt!r}", request.prompt) for request in requests]
    _refuse_triggers(captions, manifest)
    if not requests:
        return Drawing([], 0)
    base = f"{context.whole_base} in {family.precision}, quantized: {recipe.base.quantize}"
    if family.guidance_rescale:
        base += f", guidance rescaled by {family.guidance_rescale}"
    images = RegularizationImages(cache_folder() / "class_images", base, wanted)
    on_progress = progress(context.listener, "regularization images")
    draw = _drawer_in_stages(context, wanted, requests) if family.staged else drawer(family, wanted)
    if context.machine.shards:
        draw = partial(_refuse_to_draw, "shard_base", "all processes would have to draw each")
    elif context.machine.offloads and not ahead:
        draw = partial(_refuse_to_draw, "offload_blocks", "adapters are put into a whole base")

    def load_or_draw(some: Sequence[ImageRequest]) -> list[Record]:
        return images.load_or_draw(some, draw, on_progress=on_progress)

    if processes.count > 1:
        processes.each(lambda: len(load_or_draw(requests[processes.rank :: processes.count])))
    return Drawing(load_or_draw(requests), images.drawn)


def with_shown_captions(recipe: Recipe, manifest: Manifest) -> list[Record]:
    """The regularization images, each with the one caption that the whole run shows it with."""
    captions = _of_folders(recipe, manifest)
    texts = [captions.variant(index, index) for index in range(len(captions.records))]
    records = zip(captions.records, texts, strict=True)
    of_folders = [replace(record, caption=text, lines=()) for record, text in records]
    return of_folders + [one for one in manifest.of_role("prior") if one.captioned_by == DRAWN]


def _of_folders(recipe: Recipe, manifest: Manifest) -> ShownCaptions:
    """The captions of regularization images that were not drawn: no words are put around them."""
    records = [one for one in manifest.of_role("prior") if one.captioned_by != DRAWN]
    return captions_of(_with_fixed_tags(recipe, caption_prefix="", caption_suffix=""), records)


def _with_fixed_tags(recipe: Recipe, **words: str) -> Recipe:
    """A line and words are drawn once, by the regularization images' own seed; tags stay as written."""
    fixed = {"shuffle_tags": False, "keep_tags": 0, "tag_dropout": 0.0}
    training = recipe.training.model_copy(update={"seed": recipe.data.regularization_images.seed})
    data = recipe.data.model_copy(update=fixed | words)
    return recipe.model_copy(update={"data": data, "training": training})


def _refuse_triggers(captions: Sequence[tuple[str, str]], manifest: Manifest) -> None:
    """Raise DatasetError if a regularization image's caption holds a trigger, which would come to mean it."""
    triggers = {record.trigger for record in manifest.used if record.trigger}
    wrong = [name for name, text in captions if any(contains_trigger(text, trigger) for trigger in triggers)]
    if wrong := list(dict.fromkeys(wrong)):
        raise DatasetError(
            f"captions of regularization images hold the trigger: {preview_names(wrong)}; leave it out of "
            "them, or the trigger would learn to mean the class."
        )


def _refuse_to_draw(option: str, why: str, requests: Sequence[ImageRequest]) -> list[Image.Image]:
    raise RecipeError(
        f"with machine.{option} a run draws no regularization images, because {why}; draw them ahead in one "
        "process with lora-studio regularization-images, with --set machine.device=cpu if need be, and the "
        "base.dtype of the training."
    )


def _drawer_in_stages(
    context: BuildContext, wanted: RegularizationImagesConfig, requests: Sequence[ImageRequest]
) -> Draw:
    """Reads the text encoders for all prompts, and then what draws, as soon as there is anything to draw."""
    family, made = context.family, list[Draw]()

    def draw(some: Sequence[ImageRequest]) -> list[Image.Image]:
        if not made:
            keep(family, [_asked(one, wanted) for one in requests])
            if family.is_awaited(family.denoiser):
                context.machine.shrink(family)
                offload(family, context.machine)
            family.place(context.machine.device, family.denoiser, "vae")
            made.append(drawer(family, wanted))
        return made[0](some)

    return draw


def _asked(request: ImageRequest, config: RegularizationImagesConfig) -> AskedPrompt:
    return request.prompt, "", config.guidance > 1


def drawer(family: ModelFamily, config: RegularizationImagesConfig) -> Draw:
    """What draws requests of one size together, or in halves if they do not fit into memory.

    Each has noise of its own, so that all images differ.
    """
    pipeline = family.pipeline()
    make_ready(pipeline, family)

    at_once: int | None = None  # all of a size; fewer once memory has run out

    def draw_within_memory(requests: Sequence[ImageRequest]) -> list[Image.Image]:
        def use_fewer() -> None:
            nonlocal at_once
            if (tried := min(at_once or len(requests), len(requests))) == 1:
                raise OutOfMemory(
                    f"the memory ran out with one regularization image on {family.device}; {LESS}"
                )
            at_once = (tried + 1) // 2

        def draw_all() -> list[Image.Image]:
            size = at_once or len(requests)
            parts = (requests[start : start + size] for start in range(0, len(requests), size))
            return [image for part in parts for image in draw(part)]

        return within_memory(draw_all, use_fewer)

    def _prompts(requests: Sequence[ImageRequest]) -> Mapping[str, object]:
        kept = [family.kept_prompts.get(_asked(one, config)) for one in requests]
        if not family.staged or None in kept:
            return {"prompt": [one.prompt for one in requests]}
        return side_by_side([one for one in kept if one is not None])

    def draw(requests: Sequence[ImageRequest]) -> list[Image.Image]:
        bucket = requests[0].bucket
        pipeline.vae.use_tiling = bucket.width * bucket.height > MOST_UNTILED
        names = [(request.prompt, bucket.name, request.number) for request in requests]
        with torch.inference_mode(), in_its_precision(family):
            pixels = pipeline(
                **_prompts(requests),
                generator=[generator(config.seed, "class image", *name) for name in names],
                num_inference_steps=config.steps,
                **family.guided_by(config.guidance),
                width=bucket.width,
                height=bucket.height,
                output_type="pt",
            ).images
        if not pixels.isfinite().all():
            named = f"the regularization image {requests[0].prompt!r}"
            raise BaseModelError(f'the base drew NaN for {named}; set base.dtype = "float32".')
        rows = (pixels.float() * 255).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
        return [Image.fromarray(row) for row in rows]

    return draw_within_memory
