"""The recipe's [data] -> the manifest and captions that a run is trained on, and the doctor's report."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from lora_studio.data.batches import as_shown, each_view, views_of
from lora_studio.data.buckets import assign, placed
from lora_studio.data.cache.encode import ReadyPixels
from lora_studio.data.cache.store import Latent
from lora_studio.data.captioners import CAPTIONERS
from lora_studio.data.captions.shown import ShownCaptions
from lora_studio.data.doctor import examine, read_anyway
from lora_studio.data.doctor.finding import DoctorReport
from lora_studio.data.doctor.look import Looks, Requirements
from lora_studio.data.images.decode import DecodedImage
from lora_studio.data.manifest import Manifest, Record
from lora_studio.data.masks import LossMask, loss_mask
from lora_studio.data.scan import OnImage
from lora_studio.data.sources import choose_validation_images, read_sources, sources_of
from lora_studio.errors import CaptionError, RecipeError
from lora_studio.families.base import ModelFamily
from lora_studio.recipe import Recipe
from lora_studio.recipe.data import DataConfig
from lora_studio.training.prepare.base_model import base_of

T = TypeVar("T")
Progress = Callable[[int, int], None]  # done, total


def read_dataset(
    recipe: Recipe,
    stride: int,
    ready: ReadyPixels | None = None,
    looks: Looks | None = None,
    *,
    on_progress: Progress | None = None,
) -> Manifest:
    """Scan the folders, read their captions, choose every image's bucket and the validation images.

    `ready` and `looks` get the images while they are decoded, so that none has to be decoded twice.
    Raises RecipeError if the recipe wants something outside of masks, and there are none.
    """
    data = recipe.data
    resize = None if ready is None else _resizer(ready, data, stride)

    def see(record: Record, decoded: DecodedImage) -> None:
        if resize and record.role == "instance":
            resize(record, decoded)
        if looks:
            looks.take(record, decoded)

    captioner = CAPTIONERS[data.captioner]
    captioned = read_sources(sources_of(data), captioner, on_image=see, on_progress=on_progress)
    manifest = assign(captioned, data, stride=stride)
    wanted = recipe.objective.masked_preservation
    if wanted and not any(record.mask for record in manifest.used):
        raise RecipeError(
            f"objective.masked_preservation is {wanted:g}, but no image that is trained on has a mask; put "
            "cat.mask.png beside cat.png, set data.masks to a folder of masks, or masked_preservation to 0."
        )
    given = len(manifest.of_role("validation"))
    return choose_validation_images(manifest, recipe.validation.to_take(len(manifest.used), given=given))


def loss_masks(records: Sequence[Record], latents: Sequence[Latent]) -> list[LossMask | None]:
    """Each record's loss mask, as large as its latent; None without one."""

    def mask_of(index: int) -> LossMask | None:
        height, width = latents[index].mean.shape[-2:]
        return loss_mask(records[index], width, height)

    return [mask_of(index) if record.mask else None for index, record in enumerate(records)]


def _resizer(ready: ReadyPixels, data: DataConfig, stride: int) -> OnImage | None:
    """What offers each image in all its views; None where those depend on more than the image's size."""
    if data.crop != "centre" or any(side < stride or side % stride for side in data.all_resolutions):
        return None

    def offer(record: Record, decoded: DecodedImage) -> None:
        shaped = placed(record, data, stride)
        for view in [] if shaped.excluded else each_view([shaped]):
            ready.offer(view, decoded.image)

    return offer


def captions_of(recipe: Recipe, records: Sequence[Record]) -> ShownCaptions:
    """The captions as the recipe words them. Raises RecipeError for a placeholder that cannot be filled."""
    seed, preservation = recipe.training.seed, recipe.objective.preservation
    try:
        return ShownCaptions(records, recipe.data, seed=seed, preservation=preservation)
    except CaptionError as error:
        raise RecipeError(f"data.caption_prefix or data.caption_suffix: {error}") from None


def shown_captions(recipe: Recipe, records: Sequence[Record]) -> ShownCaptions:
    """Those that can be trained on. Raises RecipeError if the recipe asks for words that are not there."""
    captions, preservation = captions_of(recipe, records), recipe.objective.preservation
    plain = [captions.plain(index) for index in range(len(records))]
    if preservation and not any(plain):
        trigger = ", ".join(dict.fromkeys(record.trigger for record in records))
        why = f"no caption holds data.trigger ({trigger!r}), so there is nothing to leave out"
        advice = "set the trigger that captions hold"
        if "" in plain:
            why = f"captions hold nothing but data.trigger ({trigger!r}), so there is nothing to preserve"
            advice = "say in captions what images show"
        raise RecipeError(
            f"objective.preservation is {preservation}, but {why}; {advice}, or set preservation to 0."
        )
    if preservation and (nameless := captions.nameless()):
        held = sum(text is not None for text in plain)
        if len({index for index, _ in nameless}) == held:
            index, text = nameless[0]
            raise RecipeError(
                f"objective.preservation is {preservation}, but without the trigger "
                f'{records[index].trigger!r} the caption "{text}" names nothing; set data.class_words to '
                'what the trigger is one of, such as "robot" or "woman".'
            )
    if not recipe.tokens:
        return captions
    texts = [text.lower() for index in range(len(captions.records)) for text in captions.written(index)]
    unused = [one.token for one in recipe.tokens if not any(one.token in text for text in texts)]
    if unused and texts:
        raise RecipeError(
            f"tokens: no caption holds {', '.join(map(repr, unused))}, so nothing would teach it; write it "
            'into the captions, or set data.caption_prefix = "{trigger}, " and a data.trigger that holds it.'
        )
    return captions


def validation_views(recipe: Recipe, manifest: Manifest) -> list[Record]:
    """The validation images, each in its first view only; none if nothing shall be measured."""
    records = [] if recipe.validation.off else manifest.of_role("validation")
    return [as_shown(record, views_of(record)[0]) for record in records]


def validation_captions(recipe: Recipe, records: Sequence[Record]) -> list[str]:
    """What each is shown with: never dropped, with its trigger, always the same if captions vary."""
    captions = captions_of(recipe, records)
    return [captions.variant(index, 0) for index in range(len(records))]


def examine_recipe(
    recipe: Recipe, *, on_progress: Progress = lambda done, total: None
) -> tuple[DoctorReport, Manifest]:
    """The report and the images it is about; the base's weights are not read."""
    CAPTIONERS.check(recipe.data.captioner)
    family = base_of(recipe, weights=False)
    sources, captioner = sources_of(recipe.data), CAPTIONERS[recipe.data.captioner]
    looks = Looks(recipe.data, family.stride)
    manifest, faults = read_anyway(sources, captioner, looks=looks, on_progress=on_progress)
    manifest = assign(manifest, recipe.data, stride=family.stride)
    return examine_manifest(recipe, family, manifest, looks, faults), manifest


def examine_manifest(
    recipe: Recipe, family: ModelFamily, manifest: Manifest, looks: Looks, faults: Sequence[str] = ()
) -> DoctorReport:
    """The doctor's report on what a recipe will train on, with its captions, prompts and base in view."""
    data, captions = recipe.data, captions_of(recipe, manifest.usable)
    prompts = [("samples.prompts", text) for text in recipe.samples.prompts]
    prompts.append(("samples.negative_prompt", recipe.samples.negative_prompt))
    prompts.append(("data.regularization_images.prompt", data.regularization_images.prompt))
    shape = data.resolution, family.stride
    asked = Requirements(
        *shape,
        family.caption_tokenizers,
        max_chunks=data.max_token_chunks,
        most_chunks=family.most_chunks,
        wildcards=data.wildcards,
        prompts=prompts,
        base_notes=family.notes,
    )
    written = {record.name: captions.written(index) for index, record in enumerate(captions.records)}
    return examine(manifest, asked, faults=list(faults), written=written, looks=looks)
