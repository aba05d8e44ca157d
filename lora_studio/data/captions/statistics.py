"""What the captions of a folder have in common, and what is missing or would be cut."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Protocol

from lora_studio.data.captions.files import CaptionFile, find_captions
from lora_studio.data.captions.ledger import Ledger
from lora_studio.data.captions.write import BY_HAND
from lora_studio.data.manifest import Record

# They say nothing about a picture.
_COMMON = {"a", "an", "and", "are", "as", "at", "by", "for", "from", "has", "in", "is", "it", "its"}
_COMMON |= {"of", "on", "or", "that", "the", "there", "this", "to", "with"}
_MOST = 20


class Tokenizer(Protocol):
    """What is asked of a tokenizer of transformers."""

    model_max_length: int

    def __call__(self, text: str) -> Mapping[str, list[int]]: ...

    def decode(self, token_ids: list[int], skip_special_tokens: bool = False) -> str: ...


@dataclass(frozen=True)
class Count:
    """Something, and in how many captions it stands."""

    what: str
    captions: int


@dataclass(frozen=True)
class Cut:
    """A caption that is longer than the text encoder's window, and the end that it will not see."""

    name: str
    num_tokens: int
    lost: str


@dataclass(frozen=True)
class Lengths:
    """Tokens a caption, with the begin and end marks."""

    tokenizer: str
    window: int
    shortest: int
    middle: float
    longest: int
    cut: tuple[Cut, ...]


@dataclass(frozen=True)
class Statistics:
    """Of the captions of the used pictures."""

    pictures: int
    captioned: int
    without: tuple[str, ...]  # pictures without a caption
    unreadable: tuple[tuple[str, str], ...]  # (caption file, reason)
    written_by: dict[str, int]
    identical: tuple[Count, ...]  # captions that several pictures share
    words: tuple[Count, ...]
    tags: tuple[Count, ...]  # pieces between commas that occur twice or more
    without_trigger: tuple[str, ...] | None  # None: no trigger was given
    lengths: tuple[Lengths, ...]


def caption_statistics(
    records: Sequence[Record], *, trigger: str = "", tokenizers: Mapping[str, Tokenizer] | None = None
) -> Statistics:
    """The statistics; token lengths only with tokenizers. Raises CaptionError if a record is unreadable."""
    files = find_captions(records)
    texts = {record.name: file.text for record, file in zip(records, files, strict=True) if file.text}
    return Statistics(
        pictures=len(records),
        captioned=len(texts),
        without=tuple(
            record.name
            for record, file in zip(records, files, strict=True)
            if not file.text and not file.fault
        ),
        unreadable=tuple((file.path.name, file.fault) for file in files if file.fault),
        written_by=_authors(file for file in files if file.text),
        identical=_repeated(Counter(texts.values())),
        words=_most(_words(text) for text in texts.values()),
        tags=tuple(count for count in _most(_tags(text) for text in texts.values()) if count.captions > 1),
        without_trigger=tuple(name for name, text in texts.items() if trigger not in text)
        if trigger
        else None,
        lengths=tuple(
            _lengths(name, tokenizer, texts) for name, tokenizer in (tokenizers or {}).items() if texts
        ),
    )


def _authors(files: Iterable[CaptionFile]) -> dict[str, int]:
    ledgers: dict[Path, Ledger] = {}
    authors: Counter[str] = Counter()
    for file in files:
        folder = file.path.parent
        if folder not in ledgers:
            ledgers[folder] = Ledger(folder)
        entry = ledgers[folder].author(file.path, file.data or b"")
        authors[entry.author if entry else BY_HAND] += 1
    return dict(authors.most_common())


def _words(text: str) -> set[str]:
    return {word for word in re.findall(r"[^\W_]+(?:['’-][^\W_]+)*", text.casefold()) if word not in _COMMON}


def _tags(text: str) -> set[str]:
    return {" ".join(piece.split()) for piece in text.split(",")} - {""}


def _most(found: Iterable[set[str]]) -> tuple[Count, ...]:
    """The most frequent; equal ones by the alphabet, so that a folder always gives the same list."""
    counter: Counter[str] = Counter()
    for words in found:
        counter.update(words)
    ranked = sorted(counter.items(), key=lambda item: (-item[1], item[0]))
    return tuple(Count(what, count) for what, count in ranked[:_MOST])


def _repeated(counter: Counter[str]) -> tuple[Count, ...]:
    return tuple(Count(text, count) for text, count in counter.most_common() if count > 1)


def _lengths(name: str, tokenizer: Tokenizer, texts: Mapping[str, str]) -> Lengths:
    window = tokenizer.model_max_length
    numbers, cut = [], []
    for picture, text in texts.items():
        ids = list(tokenizer(text)["input_ids"])
        numbers.append(len(ids))
        if len(ids) > window:  # the end mark takes the window's last place
            lost = tokenizer.decode(ids[window - 1 :], skip_special_tokens=True).strip()
            cut.append(Cut(picture, len(ids), lost))
    return Lengths(name, window, min(numbers), median(numbers), max(numbers), tuple(cut))
