"""What memory depends on of a recipe's images and captions; without them the recipe says it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lora_studio.data.batches import each_view, entries
from lora_studio.data.conditioning import MOST_TEXTS
from lora_studio.data.manifest import Bucket, Record
from lora_studio.families.base import ModelFamily
from lora_studio.recipe import Recipe
from lora_studio.training.prepare.data import batches_of
from lora_studio.training.prepare.dataset import captions_of, read_dataset

WORDS_OF_A_WINDOW = 60  # fill a text encoder's window of 75 tokens, or nearly


@dataclass(frozen=True)
class Shapes:
    """The largest micro-batch, and what is kept on the device for all of them."""

    bucket: Bucket
    images: int  # in it
    caption: str  # a long one
    has_masks: bool = False
    has_validation: bool = False
    views: int = 0  # latents of the whole run; 0 if the images are not there
    captions: int = 0  # at most as many as are kept

    @property
    def is_known(self) -> bool:
        return self.views > 0


def shapes_of(recipe: Recipe, family: ModelFamily) -> Shapes:
    """From the recipe's folders if they are there. Raises DatasetError as reading them does."""
    if all(source.images.is_dir() for source in recipe.data.all_sources):
        return _seen(recipe, read_dataset(recipe, family.stride).records)
    side, data = max(recipe.data.all_resolutions), recipe.data
    words = f"a photo of {data.trigger or 'it'}" + " and so on" * (WORDS_OF_A_WINDOW // 3)
    return Shapes(
        Bucket(side, side),
        recipe.training.batch_size,
        words * data.max_token_chunks,
        has_masks=data.masks is not None or recipe.objective.masked_preservation > 0,
        has_validation=not recipe.validation.off,
    )


def _seen(recipe: Recipe, records: Sequence[Record]) -> Shapes:
    used = [record for record in records if not record.excluded]
    shown = entries(record for record in used if record.role == "instance")
    captions = captions_of(recipe, shown)
    texts = [text for index in range(len(shown)) for text in captions.written(index)]
    largest = max(batches_of(recipe, shown).epoch(0), key=lambda micro: _area(shown, micro))
    bucket = shown[largest[0]].bucket
    assert bucket is not None
    return Shapes(
        bucket,
        len(largest),
        max(texts, key=len, default=""),
        has_masks=any(record.mask for record in shown),
        has_validation=any(record.role == "validation" for record in used),
        views=len(each_view(shown)),
        captions=MOST_TEXTS if captions.vary else len({*texts, ""}),
    )


def _area(shown: Sequence[Record], micro: Sequence[int]) -> int:
    bucket = shown[micro[0]].bucket
    return 0 if bucket is None else bucket.area * len(micro)
