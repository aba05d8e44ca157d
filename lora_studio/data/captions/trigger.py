"""The trigger words in captions, and what a tokenizer makes of them.

CLIP's tokenizer learned to join letters from the text that the base was taught with, the commonest pair
first (byte pair encoding, arXiv 1508.07909). So a word that is one token of its own stood there often, the
more often the lower its number: dog is 1,929, corgi 31,320, sks (a rifle) 48,136 of 49,408. A word of several
tokens was rare or missing. That is all that can be told without asking the base: photorealistic is two
tokens, and it knows that, too."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from lora_studio.families.text_chunks import Tokenizer, caption_chunks, caption_tokens
from lora_studio.text import plural

COMMON = 25_000  # about half of CLIP's numbers; what people take for new words, such as ohwx, is at 48,000
END_OF_WORD = "</w>"
# A caption that has one of these before the trigger, and nothing or one of those behind, names nothing else.
_BEFORE = {"a", "an", "the", "this", "that", "my", "his", "her", "of"}
_BEHIND = {"in", "on", "at", "with", "without", "by", "under", "near", "and", "is", "to", "from", "of"} | {
    *("beside", "behind", "over", "as", "who", "wearing", "holding", "standing", "sitting", "looking"),
}


def without_trigger(caption: str, trigger: str, class_words: str = "") -> str | None:
    """The caption as it would be of something ordinary; None when it does not hold the trigger.

    The trigger gives way to `class_words`, or goes, together with a comma that would be left over:
    "a star, zwx style" -> "a star"; "a vkq robot at night" with "robot" -> "a robot at night". Inside of a
    longer word it stays, unless it stands nowhere else: "art, a party" -> "a party".
    """
    if not trigger or trigger not in caption:
        return None
    plain, places = _as_words(trigger).subn(lambda _: class_words, caption)
    plain = plain if places else caption.replace(trigger, class_words)
    pieces = (" ".join(piece.split()) for piece in re.split(r"\s*,", plain))
    return ", ".join(piece for piece in pieces if piece)


def without_triggers(caption: str, own: str, class_words: str, others: Mapping[str, str]) -> str | None:
    """The caption with every trigger left out as above; None when it does not hold its `own`.

    `others`: trigger -> class words of other images, since an image of two subjects holds two.
    """
    if not own or own not in caption:
        return None
    triggers = {**others, own: class_words}
    for trigger in sorted(triggers, key=len, reverse=True):  # one may be a part of another
        plain = without_trigger(caption, trigger, triggers[trigger])
        caption = caption if plain is None else plain
    return caption


def contains_trigger(caption: str, trigger: str) -> bool:
    """Whether the trigger stands in the caption, and not only inside of a longer word, as "art" in "a party".

    Of a trigger of several words nothing else could be meant: "two vkq robots" calls "vkq robot".
    """
    if not trigger or trigger not in caption:
        return False
    return len(trigger.split()) > 1 or bool(_as_words(trigger).search(caption))


def _as_words(trigger: str) -> re.Pattern[str]:
    """The trigger where it is no part of a longer word."""
    before, behind = (r"(?<!\w)" if trigger[0].isalnum() else "", r"(?!\w)" if trigger[-1].isalnum() else "")
    return re.compile(before + re.escape(trigger) + behind)


def needs_class_words(caption: str, trigger: str, class_words: str = "") -> bool:
    """Whether nothing is named any more where the trigger is left out: "a photo of zwx", "a zwx on a beach".

    "a zwx style star" and "a star, zwx style" are whole without it, and so is what has `class_words` for it.
    """
    before, found, behind = caption.partition(trigger)
    if not found or class_words.strip():
        return False
    if not (before + behind).strip(" ,."):
        return True
    lead, following = re.search(r"(\w+)\s*$", before), re.match(r"\s*(\w+)", behind)
    whole = following is not None and following[1].casefold() not in _BEHIND
    return lead is not None and lead[1].casefold() in _BEFORE and not whole


def tokens_in_words(trigger: str, tokenizers: Mapping[str, Tokenizer]) -> str:
    """'trigger "vkq robot": 4 tokens (v, k, q, robot)'; of each tokenizer that reads it otherwise."""
    readings: dict[tuple[str, ...], str] = {}
    for name, tokenizer in tokenizers.items():
        pieces = (tokenizer.decode([number]).strip() for number in _numbers(tokenizer, trigger))
        readings.setdefault(tuple(pieces), name)
    counts = {name: f"{plural(len(read), 'token')} ({', '.join(read)})" for read, name in readings.items()}
    listed = [count + f" by {name}" * (len(counts) > 1) for name, count in counts.items()]
    return f'trigger "{trigger}": {"; ".join(listed)}'


def known_words(trigger: str, class_words: str, tokenizers: Mapping[str, Tokenizer]) -> dict[str, int] | None:
    """The words of a trigger with their tokens' numbers, if each is one token; None if one of them is new.

    Those that stand in `class_words` are meant to be known and do not count.
    """
    of_class = {word.casefold() for word in re.findall(r"\w+", class_words)}
    known: dict[str, int] = {}
    for word in re.findall(r"\w+", trigger):
        if word.casefold() in of_class:
            continue
        readings = [(_numbers(one, word), one.get_vocab()) for one in tokenizers.values()]
        whole = word.casefold() + END_OF_WORD
        if not readings or any(numbers != [vocab.get(whole)] for numbers, vocab in readings):
            return None
        known[word] = min(numbers[0] for numbers, _ in readings)
    return known


def read_otherwise(tokenizer: Tokenizer, trigger: str, caption: str) -> str | None:
    """What stands around the trigger in a place of the caption where it is read as other tokens, or None.

    So it is inside of a longer word, or beside signs that a tokenizer reads together with its own.
    """
    wanted, found = _numbers(tokenizer, trigger), _numbers(tokenizer, caption)
    places, size = list(re.finditer(re.escape(trigger), caption)), len(wanted)
    read = sum(found[at : at + size] == wanted for at in range(len(found) - size + 1))
    if not places or read >= len(places):
        return None
    inside = (_around(caption, *one.span(), r"\w") for one in places)
    return next(filter(None, inside), None) or _around(caption, *places[0].span(), r"\S")


def _around(caption: str, start: int, end: int, letters: str) -> str:
    """The piece of a caption with all `letters` beside it; empty if there are none."""
    before, behind = re.search(f"{letters}*$", caption[:start]), re.match(f"{letters}*", caption[end:])
    assert before and behind
    return before[0] + caption[start:end] + behind[0] if before[0] or behind[0] else ""


def _numbers(tokenizer: Tokenizer, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


@dataclass(frozen=True)
class CutCaption:
    """A caption that is longer than the text encoder's window, and the end that it will not see."""

    name: str
    num_tokens: int  # with the begin and end marks
    read: int  # of these
    lost: str

    def __str__(self) -> str:
        return f'{self.name} is cut: {self.num_tokens} tokens, so "{self.lost}" is not seen'


def num_tokens(tokenizer: Tokenizer, caption: str) -> int:
    """With the begin and end marks."""
    return len(caption_tokens(tokenizer, caption)) + tokenizer.num_special_tokens_to_add()


def find_cut(
    tokenizers: Iterable[Tokenizer], name: str, caption: str, *, max_chunks: int = 1
) -> CutCaption | None:
    """What the first tokenizer cuts off the caption of image `name` beyond `max_chunks` windows, or None."""
    for tokenizer in tokenizers:
        _, lost = caption_chunks(tokenizer, caption, max_chunks=max_chunks)
        if lost:
            words = tokenizer.decode(lost, skip_special_tokens=True).strip()
            total = num_tokens(tokenizer, caption)
            return CutCaption(name, total, total - len(lost), words)
    return None
