"""The class images that are wanted: their prompts, from captions without the trigger, and their sizes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import cycle, islice

from lora_studio.data.captions.shown import ShownCaptions
from lora_studio.data.manifest import Bucket
from lora_studio.errors import DatasetError

_ADVICE = 'set data.class_images.prompt to what the class is called, such as "a photo of a dog"'


@dataclass(frozen=True)
class Wish:
    """A picture to draw. Its size is the bucket of pictures that it can stand beside."""

    prompt: str
    bucket: Bucket
    number: int  # counts those of the same prompt and size


def wishes_for(captions: ShownCaptions, *, count: int, prompt: str = "") -> list[Wish]:
    """`count` pictures in the sizes of the records, from `prompt` or their captions without the trigger.

    Captions that do not hold it are passed over if there is no prompt. What varies is drawn for each picture.
    Raises DatasetError if no caption holds it, or if without it nothing is left of one, or nothing is named.
    """
    if prompt:
        records = [replace(record, caption=prompt, lines=()) for record in captions.records]
        captions = ShownCaptions(records, replace(captions.options, prefix="", suffix=""))
        asked_of = list(range(len(records)))
    else:
        asked_of = _with_names(captions)
    asked = list(islice(_prompts(captions, asked_of, rounds=count, with_trigger=not prompt), count))
    if not asked:
        raise DatasetError(f"no caption holds data.trigger, so class images have no prompt; {_ADVICE}.")
    numbers: Counter[tuple[str, Bucket]] = Counter()
    wishes = []
    for words, bucket in islice(cycle(asked), count):
        wishes.append(Wish(words, bucket, numbers[words, bucket]))
        numbers[words, bucket] += 1
    return wishes


def _prompts(
    captions: ShownCaptions, asked_of: Sequence[int], *, rounds: int, with_trigger: bool
) -> Iterator[tuple[str, Bucket]]:
    """Words and sizes, in each round those of these records; of a caption with a trigger, without it."""
    for number in range(rounds):
        for index in asked_of:
            text = captions.variant(index, index, number)
            words, bucket = text, captions.records[index].bucket
            if with_trigger:  # of several lines, or of the words in {a|b}, some may not hold it
                words = captions.without_trigger(index, text) or ""
            if words and bucket:
                yield words, bucket


def _with_names(captions: ShownCaptions) -> list[int]:
    """The records whose captions hold their trigger, and name something without it."""
    held = captions.with_trigger()
    named = {index for index, text in held if captions.without_trigger(index, text)}
    if empty := [captions.records[index].name for index, _ in held if index not in named]:
        raise DatasetError(
            f"without its trigger nothing is left of the caption of {empty[0]}; set data.class_words to what "
            f'the trigger is one of, such as "dog", or {_ADVICE}.'
        )
    if held and len(captions.nameless()) == len(held):
        raise DatasetError(
            f'without its trigger the caption "{held[0][1]}" names nothing that class images could '
            f'show; set data.class_words to what the trigger is one of, such as "dog", or {_ADVICE}.'
        )
    return list(dict.fromkeys(index for index, _ in held))
