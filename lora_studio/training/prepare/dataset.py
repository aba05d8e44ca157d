"""The recipe's [data] -> the manifest that a run is trained on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from PIL import Image

from lora_studio.data.buckets import Framing, assign, placed
from lora_studio.data.cache.latents import Latent
from lora_studio.data.captioners import CAPTIONERS
from lora_studio.data.captions.trigger import without_trigger
from lora_studio.data.images.pixels import ReadyPixels
from lora_studio.data.manifest import Manifest, Record
from lora_studio.data.masks import LossMask, loss_mask
from lora_studio.data.scan.exclude import ExcludeList, read_exclude
from lora_studio.data.scan.folder import OnImage, ScanOptions
from lora_studio.data.sources import Source, read_sources
from lora_studio.data.validation import hold_out
from lora_studio.data.views import each_view
from lora_studio.errors import RecipeError
from lora_studio.recipe import Recipe
from lora_studio.recipe.data import DataConfig, SourceConfig

T = TypeVar("T")


def read_dataset(recipe: Recipe, stride: int, ready: ReadyPixels | None = None) -> Manifest:
    """Scan the folders, read their captions, choose every image's bucket and the images held out.

    `ready` gets the images while they are decoded, so that none has to be decoded twice.
    Raises RecipeError if the recipe wants something outside of masks, and there are none.
    """
    data = recipe.data
    framing = framing_of(data)
    on_image = None if ready is None else _resizer(ready, data.resolution, stride, framing)
    captioned = read_sources(sources_of(data), CAPTIONERS[data.captioner], on_image=on_image)
    manifest = assign(captioned, resolution=data.resolution, stride=stride, framing=framing)
    _refuse_missing_masks(recipe, manifest)
    given = len(manifest.of_role("validation"))
    return hold_out(manifest, recipe.validation.to_take(len(manifest.used), given=given))


def framing_of(data: DataConfig) -> Framing:
    """How [data] wants images to be put into buckets and shown."""
    return Framing(
        extra_resolutions=data.extra_resolutions,
        area_tolerance=data.area_tolerance,
        max_upscale=data.max_upscale,
        crop=data.crop,
        crops=data.crops,
        flip=data.flip,
    )


def loss_masks(records: Sequence[Record], latents: Sequence[Latent]) -> list[LossMask | None]:
    """Each record's loss mask, as large as its latent; None without one."""

    def mask_of(index: int) -> LossMask | None:
        height, width = latents[index].mean.shape[-2:]
        return loss_mask(records[index], width, height)

    return [mask_of(index) if record.mask else None for index, record in enumerate(records)]


def _refuse_missing_masks(recipe: Recipe, manifest: Manifest) -> None:
    wanted = recipe.objective.masked_preservation
    if wanted and not any(record.mask for record in manifest.used):
        raise RecipeError(
            f"objective.masked_preservation is {wanted:g}, but no image that is trained on has a mask; put "
            "a mask such as cat.mask.png beside cat.png, set data.masks to a folder of them, or set "
            "masked_preservation to 0."
        )


def sources_of(data: DataConfig) -> list[Source]:
    """The folders that the recipe names. Raises DatasetError if its list of files to leave out is missing."""
    exclude = read_exclude(data.exclude) if data.exclude else ExcludeList()
    return [_source(one, data, exclude) for one in data.all_sources]


def _resizer(ready: ReadyPixels, resolution: int, stride: int, framing: Framing) -> OnImage | None:
    """What offers each image in all its views; None where those depend on more than the image's size."""
    resolutions = list(dict.fromkeys((resolution, *framing.extra_resolutions)))
    if framing.crop != "centre" or any(side < stride or side % stride for side in resolutions):
        return None

    def offer(record: Record, image: Image.Image) -> None:
        shaped = placed(record, resolutions, stride, framing)
        for view in [] if shaped.excluded else each_view([shaped]):
            ready.offer(view, image)

    return offer


def _source(one: SourceConfig, data: DataConfig, exclude: ExcludeList) -> Source:
    """What the source leaves out is as in [data]."""
    reading = ScanOptions(
        recursive=_or(one.recursive, data.recursive),
        background=data.background,
        transparency_is_mask=data.transparency == "mask",
        masks=one.masks,
        exclude=exclude,
    )
    return Source(
        folder=one.images,
        reading=reading,
        role=one.role,
        repeats=_or(one.repeats, data.repeats),
        weight=one.weight,
        trigger=_or(one.trigger, data.trigger),
        class_words=_or(one.class_words, data.class_words),
        instance_prompt=_or(one.instance_prompt, _prompt_for(one, data)),
    )


def _prompt_for(one: SourceConfig, data: DataConfig) -> str:
    """data.instance_prompt; for regularization images without the trigger, which they do not show."""
    plain = without_trigger(data.instance_prompt, data.trigger, data.class_words)
    return data.instance_prompt if one.role != "prior" or plain is None else plain


def _or(value: T | None, default: T) -> T:
    return default if value is None else value
