"""The recipe's [data] -> the manifest and captions that a run is trained on, and the doctor's report."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from PIL import Image

from lora_studio.data.buckets import Framing, assign, placed
from lora_studio.data.cache.latents import Latent
from lora_studio.data.captioners import CAPTIONERS
from lora_studio.data.captions.shown import CaptionOptions, ShownCaptions
from lora_studio.data.captions.trigger import without_trigger
from lora_studio.data.captions.variants import Variation
from lora_studio.data.doctor import examine
from lora_studio.data.doctor.finding import DoctorReport
from lora_studio.data.doctor.folder import read_anyway
from lora_studio.data.images.pixels import ReadyPixels
from lora_studio.data.manifest import Manifest, Record
from lora_studio.data.masks import LossMask, loss_mask
from lora_studio.data.scan.exclude import ExcludeList, read_exclude
from lora_studio.data.scan.folder import OnImage, ScanOptions
from lora_studio.data.sources import Source, read_sources
from lora_studio.data.validation import hold_out
from lora_studio.data.views import as_shown, each_view, views_of
from lora_studio.errors import CaptionError, RecipeError
from lora_studio.families.base import ModelFamily
from lora_studio.recipe import Recipe
from lora_studio.recipe.data import DataConfig, SourceConfig
from lora_studio.training.prepare.base_model import base_of

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


def caption_options(recipe: Recipe) -> CaptionOptions:
    """How the recipe wants captions to be worded."""
    data = recipe.data
    return CaptionOptions(
        dropout=data.caption_dropout,
        preservation=recipe.objective.preservation,
        seed=recipe.training.seed,
        variation=Variation(data.wildcards, data.shuffle_tags, data.keep_tags, data.tag_dropout),
        choose_lines=data.caption_lines == "choose",
        prefix=data.caption_prefix,
        suffix=data.caption_suffix,
    )


def captions_of(
    recipe: Recipe, records: Sequence[Record], options: CaptionOptions | None = None
) -> ShownCaptions:
    """The captions as the recipe words them, unless `options` are given.

    Raises RecipeError for a placeholder that cannot be filled.
    """
    try:
        return ShownCaptions(records, options or caption_options(recipe))
    except CaptionError as error:
        raise RecipeError(f"data.caption_prefix or data.caption_suffix: {error}") from None


def shown_captions(recipe: Recipe, records: Sequence[Record]) -> ShownCaptions:
    """Those that can be trained on. Raises RecipeError if the recipe asks for words that are not there."""
    captions, preservation = captions_of(recipe, records), recipe.objective.preservation
    if preservation and not any(captions.plain(index) for index in range(len(records))):
        trigger = ", ".join(dict.fromkeys(record.trigger for record in records))
        raise RecipeError(
            f"objective.preservation is {preservation}, but no caption holds data.trigger "
            f"({trigger!r}), so there is nothing to leave out; set the trigger that the captions hold, or "
            "preservation to 0."
        )
    if preservation and (nameless := captions.nameless()):
        held = sum(captions.plain(index) is not None for index in range(len(records)))
        if len({index for index, _ in nameless}) == held:
            index, text = nameless[0]
            raise RecipeError(
                f"objective.preservation is {preservation}, but without the trigger "
                f'{records[index].trigger!r} the caption "{text}" names nothing; set data.class_words to '
                'what the trigger is one of, such as "robot" or "woman".'
            )
    return captions


def refuse_unused_tokens(recipe: Recipe, captions: ShownCaptions) -> None:
    """Raise RecipeError for new tokens that no caption holds, as nothing would teach them."""
    if not recipe.tokens:
        return
    texts = [text.lower() for index in range(len(captions.records)) for text in captions.written(index)]
    unused = [one.token for one in recipe.tokens if not any(one.token in text for text in texts)]
    if unused and texts:
        raise RecipeError(
            f"tokens: no caption holds {', '.join(map(repr, unused))}, so nothing would teach it; write it "
            'into the captions, or set data.caption_prefix = "{trigger}, " and a data.trigger that holds it.'
        )


def validation_views(recipe: Recipe, manifest: Manifest) -> list[Record]:
    """The validation images, each in its first view only; none if nothing shall be measured."""
    records = [] if recipe.validation.off else manifest.of_role("validation")
    return [as_shown(record, views_of(record)[0]) for record in records]


def validation_captions(recipe: Recipe, records: Sequence[Record]) -> list[str]:
    """What each is shown with: never dropped, with its trigger, always the same if captions vary."""
    captions = captions_of(recipe, records)
    return [captions.variant(index, 0) for index in range(len(records))]


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
