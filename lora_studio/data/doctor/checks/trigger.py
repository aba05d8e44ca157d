"""Trigger words that the base knows already, or that it reads as other words in some captions."""

from __future__ import annotations

from collections.abc import Iterator

from lora_studio.data.captions.trigger_tokens import COMMON, known_words, read_otherwise
from lora_studio.data.doctor.finding import Finding
from lora_studio.data.doctor.look import Case

_NEW = "Take a word that the base has no picture of, such as zwx or vkq, and the class behind it."
_APART = "Set it apart with spaces, or choose trigger words that stand inside of no others."


def trigger_known(case: Case) -> Iterator[Finding]:
    """Triggers without any new word: what they mean to the base mixes with what is learned."""
    words = dict.fromkeys((one.trigger, one.class_words) for one in case.trained if one.trigger)
    for trigger, class_words in words:
        known = known_words(trigger, class_words, case.tokenizers)
        if known is None:
            continue
        if not known:
            yield Finding("warning", "", f'the trigger "{trigger}" is nothing but the class words', _NEW)
            continue
        listed = ", ".join(f"{word} is token {number:,}" for word, number in known.items())
        detail = f'the base knows every word of the trigger "{trigger}"'
        if max(known.values()) < COMMON:
            yield Finding("warning", "", f"{detail}, and they are common: {listed}", _NEW)
        else:
            detail = f"{detail}, if seldom used: {listed}"
            yield Finding("note", "", detail, "Look at what the base draws for it before you train.")


def trigger_read_otherwise(case: Case) -> Iterator[Finding]:
    """Captions that hold the trigger in a place where the tokenizer reads other tokens."""
    for record in case.trained:
        for caption in case.captions(record) if record.trigger else ():
            found = (read_otherwise(one, record.trigger, caption) for one in case.tokenizers.values())
            if around := next(filter(None, found), None):
                detail = f'"{record.trigger}" is read as other tokens in "{around}"'
                yield Finding("warning", record.name, detail, _APART)
                break
