"""Captions that are missing, say nothing, are cut, or lack the trigger."""

from __future__ import annotations

from collections.abc import Iterator

from lora_studio.data.captions import CaptionFile, find_captions
from lora_studio.data.captions.other_syntax import find_other_syntax
from lora_studio.data.captions.trigger import COMMON, find_cut, known_words, read_otherwise
from lora_studio.data.doctor.finding import Finding
from lora_studio.data.doctor.look import Case, grouped
from lora_studio.data.images import place
from lora_studio.data.manifest import FOLDER_NAME, INSTANCE_PROMPT, Record
from lora_studio.errors import preview_names
from lora_studio.recipe.data import one_more_chunk

_WRITE = (
    "Write what is in the image into that file, let `lora-studio caption` do that, or set "
    "data.instance_prompt in the recipe, the caption of all images without one."
)
_NEW = "Take for data.trigger a word that the base has no image of, such as zwx or vkq, and the class behind."
_APART = "Set it apart with spaces, or choose trigger words that stand inside of no others."
_ADDED = '; data.caption_suffix = ", {trigger}" in a recipe puts them behind every caption.'
_SHARED_ON_PURPOSE = (INSTANCE_PROMPT, FOLDER_NAME)


def caption_missing(case: Case) -> Iterator[Finding]:
    """Images without a caption."""
    missing = [(record, file) for record, file in _without(case) if file.data is None and not file.fault]
    if len(missing) == len(case.manifest.usable) > 1:
        detail = f"none of the {len(missing)} images has a caption"
        advice = "Let `lora-studio caption FOLDER` (or its recipe) write some, write your own into .txt "
        advice += (
            "files of the images' names, or set data.instance_prompt in the recipe, one for all of them."
        )
        yield Finding("error", "", detail, advice)
        return
    yield from (Finding("error", one.name, f"there is no {file.path.name}", _WRITE) for one, file in missing)


def caption_empty(case: Case) -> Iterator[Finding]:
    """Images whose caption file is blank."""
    for record, file in _without(case):
        if file.data is not None and not file.fault:
            yield Finding("error", record.name, f"{file.path.name} is blank", _WRITE)


def caption_unreadable(case: Case) -> Iterator[Finding]:
    """Images whose caption file is no text."""
    for record, file in _without(case):
        if file.fault:
            detail = f"{file.path.name} cannot be read: {file.fault}"
            yield Finding("error", record.name, detail, "Save it as UTF-8 text.")


def caption_identical(case: Case) -> Iterator[Finding]:
    """Captions that several images share; only a note if all of them do, which is a choice."""
    for records in _by_trigger(case):
        written = [record for record in records if record.captioned_by not in _SHARED_ON_PURPOSE]
        groups = grouped(written, "caption")
        advice = "Say what is different in each (lora-studio captions FOLDER shows them); what no caption "
        advice += "names is learned as part of the trigger."
        for caption, alike in groups.items():
            distinct = {place(one.name): one for one in reversed(alike)}  # two of a place share a file
            first, *others = reversed(distinct.values())
            if others and len(groups) == 1:
                detail = f'all {len(written)} images have the caption "{caption}"'
                yield Finding("note", "", detail, advice)
            elif others:
                names = preview_names([one.name for one in (first, *others)], limit=10)
                detail = f'{len(others) + 1} images have the caption "{caption}": {names}'
                yield Finding("warning", first.name, detail, advice, other=others[0].name)


def caption_too_long(case: Case) -> Iterator[Finding]:
    """Captions that are longer than the text encoder reads."""
    tokenizers, chunks = case.requirements.tokenizers.values(), case.requirements.max_chunks
    advice = "Shorten it or put what matters in front."
    if setting := one_more_chunk(chunks, case.requirements.most_chunks):
        advice = f"Shorten it, put what matters in front, or let a recipe read more of it ({setting})."
    for record in case.manifest.usable:
        for caption in case.captions(record):
            if cut := find_cut(tokenizers, record.name, caption, max_chunks=chunks):
                detail = f'{cut.num_tokens} tokens, of which {cut.read} are read; this is cut: "{cut.lost}"'
                yield Finding("warning", record.name, detail, advice)


def trigger_missing(case: Case) -> Iterator[Finding]:
    """Captions without the trigger words; an error if none has them, as they then call nothing."""
    for records in _by_trigger(case):
        if not (trigger := records[0].trigger):
            continue
        captions = [(record, caption) for record in records for caption in case.captions(record)]
        without = [(record, caption) for record, caption in captions if trigger not in caption]
        if without and len(without) == len(captions):
            detail = f'none of {len(captions)} captions holds the trigger words "{trigger}"'
            yield Finding(
                "error", "", detail, f"Put them into every caption, as they are spelled here{_ADDED}"
            )
            continue
        for record, caption in without:
            detail = f'"{trigger}" is not in its caption: "{caption}"'
            yield Finding("warning", record.name, detail, f'Put "{trigger}" into it{_ADDED}')


def other_syntax(case: Case) -> Iterator[Finding]:
    """What other programs would read as signs, in captions and in the prompts of previews."""
    wanted = case.requirements
    captions = [(one.name, text) for one in case.manifest.usable for text in case.captions(one)]
    found = find_other_syntax(captions, wildcards=wanted.wildcards)
    for one in [*found, *find_other_syntax(wanted.prompts, prompts=True)]:
        yield Finding("warning", "", str(one), one.way)


def _without(case: Case) -> Iterator[tuple[Record, CaptionFile]]:
    """Usable images without a caption, and the file that it would be read from."""
    records = [record for record in case.manifest.usable if not record.caption]
    return zip(records, find_captions(records), strict=True)


def _by_trigger(case: Case) -> list[list[Record]]:
    """The captioned images that are trained on, together if they share trigger words."""
    return list(grouped((one for one in case.manifest.used if one.caption), "trigger").values())


def trigger_known(case: Case) -> Iterator[Finding]:
    """Triggers without any new word: what they mean to the base mixes with what is learned."""
    words = dict.fromkeys((one.trigger, one.class_words) for one in case.manifest.used if one.trigger)
    for trigger, class_words in words:
        known = known_words(trigger, class_words, case.requirements.tokenizers)
        if known is None:
            continue
        if not known:
            yield Finding("warning", "", f'the trigger "{trigger}" is nothing but the class words', _NEW)
            continue
        listed = ", ".join(f"{word} is token {number:,}" for word, number in known.items())
        detail = f'the base knows every word of the trigger "{trigger}", '
        if max(known.values()) < COMMON:
            yield Finding("warning", "", f"{detail}and they are common: {listed}", _NEW)
        else:
            advice = "Look at what the base draws for it before you train."
            yield Finding("note", "", f"{detail}if seldom used: {listed}", advice)


def trigger_read_otherwise(case: Case) -> Iterator[Finding]:
    """Captions that hold the trigger in a place where the tokenizer reads other tokens."""
    for record in case.manifest.used:
        for caption in case.captions(record) if record.trigger else ():
            tokenizers = case.requirements.tokenizers.values()
            found = (read_otherwise(tokenizer, record.trigger, caption) for tokenizer in tokenizers)
            if around := next(filter(None, found), None):
                detail = f'"{record.trigger}" is read as other tokens in "{around}"'
                yield Finding("warning", record.name, detail, _APART)
                break
