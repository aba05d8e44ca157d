"""The captions of a run, put into words before it starts."""

from __future__ import annotations

from dataclasses import replace

from lora_studio.data.captions.shown import ShownCaptions
from lora_studio.data.captions.trigger_tokens import CutCaption, find_cut
from lora_studio.data.captions.variants import Variation, has_wildcards, tags_vary
from lora_studio.data.conditioning import CaptionSet
from lora_studio.families.base import ModelFamily


def one_of_each(captions: ShownCaptions) -> list[int]:
    """The index of each image, the first of several if it is shown at several areas."""
    first: dict[str, int] = {}
    for index, record in enumerate(captions.records):
        first.setdefault(record.name, index)
    return list(first.values())


def caption_examples(captions: ShownCaptions, count: int = 3) -> tuple[str, ...]:
    """What the first images may be shown with."""
    return tuple(captions.variant(index, 0, 0, index) for index in one_of_each(captions)[:count])


def preserved_example(captions: ShownCaptions) -> str:
    """A caption without its trigger; empty if none holds it."""
    indices = range(len(captions.records))
    found = (captions.without_trigger(index, captions.variant(index, 0, 0, index)) for index in indices)
    return next(filter(None, found), "")


def find_cuts(captions: ShownCaptions, foreseen: CaptionSet, family: ModelFamily) -> tuple[CutCaption, ...]:
    """For each image with captions that are too long one of them, in the order of the images."""
    texts = {text: set(indices) for text, indices in foreseen.texts.items()}
    for index in one_of_each(captions):
        texts.setdefault(captions.variant(index, 0, 0, index), set()).add(index)
    cuts: dict[str, CutCaption] = {}
    for text, indices in texts.items():
        if cut := find_cut(family.tokenizers.values(), "", text, max_chunks=family.max_chunks):
            for index in indices:
                name = captions.records[index].name
                cuts.setdefault(name, replace(cut, name=name))
    names = [captions.records[index].name for index in one_of_each(captions)]
    return tuple(cuts[name] for name in names if name in cuts)


def variation_in_words(captions: ShownCaptions, foreseen: CaptionSet, *, cached: bool) -> tuple[str, ...]:
    """What changes in captions from one showing to the next; nothing if nothing does.

    `cached`: the text encoder is not trained.
    """
    options, variation = captions.options, captions.options.variation
    lines = [f"{options.dropout:.0%} of the images are shown with an empty caption"] * (options.dropout > 0)
    if several := sum(bool(captions.records[index].lines) for index in one_of_each(captions)):
        files = "1 caption file has" if several == 1 else f"{several} caption files have"
        lines.append(
            f"{files} several lines; each is a caption, and one is drawn each time "
            '(data.caption_lines = "join" makes them one)'
            if options.choose_lines
            else f"{files} several lines, which are joined to one caption "
            '(data.caption_lines = "choose" draws one of them each time)'
        )
    if not captions.vary:
        return tuple(lines)
    lines += _tags_in_words(variation)
    if variation.wildcards:
        lines.append("one of the words in each {a|b} is drawn each time")
    number = f"{len(foreseen.texts):,}" if foreseen.complete else f"more than {len(foreseen.texts):,}"
    when = "encoded before the first step" if foreseen.complete else "each encoded when it is shown"
    return (*lines, f"{number} different captions are shown" + (f", {when}" if cached else ""))


def caption_warnings(captions: ShownCaptions) -> tuple[str, ...]:
    """What the user may have meant otherwise."""
    variation = captions.options.variation
    texts = [text for index in one_of_each(captions) for text in captions.written(index)]
    wild = sum(map(has_wildcards, texts))
    warnings = []
    if wild and not variation.wildcards:
        warnings.append(
            f"{wild} captions hold {{a|b}}, which is learned as it is; "
            "data.wildcards = true draws one of the words"
        )
    if variation.wildcards and not wild:
        warnings.append("data.wildcards changes nothing: no caption holds {a|b}")
    if captions.options.preservation and (nameless := captions.nameless()):
        warnings.append(
            f'without the trigger "{nameless[0][1]}" names nothing, as {len(nameless)} captions in all; '
            "data.class_words says what stands there instead"
        )
    moved = any(
        tags_vary(text, variation, record.trigger)
        for index, record in enumerate(captions.records)
        for text in captions.written(index)
    )
    if (variation.shuffle_tags or variation.tag_dropout) and not moved:
        behind = f" behind the first {variation.keep_tags}" if variation.keep_tags else ""
        warnings.append(
            f"tags are neither shuffled nor left out: no caption has several tags between commas{behind}"
        )
    return tuple(warnings)


def _tags_in_words(variation: Variation) -> list[str]:
    behind = f" behind the first {variation.keep_tags}" if variation.keep_tags else ""
    lines = [f"the tags{behind} are shuffled each time"] if variation.shuffle_tags else []
    if variation.tag_dropout:
        share = f"{variation.tag_dropout:.0%} of the tags{behind}"
        lines.append(f"{share} are left out each time, never one with the trigger")
    return lines
