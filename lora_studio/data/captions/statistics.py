"""What the captions of a folder have in common, and what is missing or would be cut."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, NamedTuple

from lora_studio.data.captioners.write import BY_HAND
from lora_studio.data.captions import Ledgers, find_captions
from lora_studio.data.captions.trigger import CutCaption, find_cut, num_tokens
from lora_studio.data.manifest import Record
from lora_studio.text import same_text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# They say nothing about an image.
_COMMON = {"a", "an", "and", "are", "as", "at", "by", "for", "from", "has", "in", "is", "it", "its"}
_COMMON |= {"of", "on", "or", "that", "the", "there", "this", "to", "with"}
_WORD = r"[^\W_]+(?:['’-][^\W_]+)*"
_MOST = 20


class Count(NamedTuple):
    """Something, and in how many captions it stands."""

    what: str
    captions: int


@dataclass(frozen=True)
class Lengths:
    """Tokens a caption, with the begin and end marks."""

    tokenizer: str
    window: int
    shortest: int
    middle: float
    longest: int
    cut: tuple[CutCaption, ...]


@dataclass(frozen=True)
class Statistics:
    """Of the captions of the used images."""

    images: int
    captioned: int
    several_lines: int  # caption files in which each line is a caption of its own
    without: tuple[str, ...]  # images without a caption
    unreadable: tuple[tuple[str, str], ...]  # (caption file, reason)
    not_read: tuple[str, ...]  # caption files that say otherwise than the one that is read
    written_by: dict[str, int]
    identical: tuple[Count, ...]  # captions that several images share
    words: tuple[Count, ...]
    tags: tuple[Count, ...]  # pieces between commas that occur twice or more
    without_trigger: tuple[str, ...] | None  # None: no trigger was given
    lengths: tuple[Lengths, ...]


def caption_statistics(
    records: Sequence[Record],
    *,
    trigger: str = "",
    tokenizers: Mapping[str, PreTrainedTokenizerBase] | None = None,
) -> Statistics:
    """The statistics; token lengths only with tokenizers. Raises CaptionError if a record is unreadable."""
    trigger = same_text(trigger)
    files = {record.name: file for record, file in zip(records, find_captions(records), strict=True)}
    texts = {name: file.text for name, file in files.items() if file.text}
    lines = {name: files[name].lines for name in texts}
    without_trigger = (name for name, several in lines.items() if not all(trigger in one for one in several))
    ledgers = Ledgers()
    entries = [ledgers.author(files[name].path, files[name].data) for name in texts]
    tags = _most({" ".join(tag.split()) for tag in text.split(",")} - {""} for text in texts.values())
    words = _most(set(re.findall(_WORD, text.casefold())) - _COMMON for text in texts.values())
    return Statistics(
        images=len(records),
        captioned=len(texts),
        several_lines=sum(len(several) > 1 for several in lines.values()),
        without=tuple(name for name, file in files.items() if not file.text and not file.fault),
        unreadable=tuple((file.path.name, file.fault) for file in files.values() if file.fault),
        not_read=tuple(name for file in files.values() for name in file.unread),
        written_by=dict(Counter(entry.author if entry else BY_HAND for entry in entries).most_common()),
        identical=tuple(Count(*one) for one in Counter(texts.values()).most_common() if one[1] > 1),
        words=words,
        tags=tuple(count for count in tags if count.captions > 1),
        without_trigger=tuple(without_trigger) if trigger else None,
        lengths=tuple(_lengths(*one, lines) for one in (tokenizers or {}).items() if lines),
    )


def _most(found: Iterable[set[str]]) -> tuple[Count, ...]:
    """The most frequent; equal ones by the alphabet, so that a folder always gives the same list."""
    counter = Counter(word for words in found for word in words)
    ranked = sorted(counter.items(), key=lambda item: (-item[1], item[0]))
    return tuple(Count(what, count) for what, count in ranked[:_MOST])


def _lengths(name: str, tokenizer: PreTrainedTokenizerBase, lines: Mapping[str, Sequence[str]]) -> Lengths:
    captions = [(image, line) for image, several in lines.items() for line in several]
    numbers = [num_tokens(tokenizer, line) for _, line in captions]
    cuts = tuple(cut for one in captions if (cut := find_cut([tokenizer], *one)))
    window = tokenizer.model_max_length
    return Lengths(name, window, min(numbers), median(numbers), max(numbers), cuts)
