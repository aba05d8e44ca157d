"""Captions edited on the page: one, or all that hold some words; counted and cut as in training."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

from lora_studio.data.captions import CaptionFile, find_captions, split_encoding
from lora_studio.data.captions.find_replace import CaptionChange, find_changes
from lora_studio.data.captions.statistics import Statistics, caption_statistics
from lora_studio.data.captions.trigger import find_cut, num_tokens
from lora_studio.data.doctor import ClipTokenizer
from lora_studio.data.manifest import Record
from lora_studio.errors import DatasetError
from lora_studio.families.text_chunks import Tokenizer
from lora_studio.text import printable, shown
from lora_studio.web.dataset import Dataset, DatasetImage
from lora_studio.web.dataset.backups import FileChange, SafeWriter
from lora_studio.web.forms.words import tokenizers_of

_MOST_LETTERS = 20_000
_KEPT = "\n\t"


def caption_file(image: DatasetImage) -> CaptionFile:
    """The file that training reads for the image, or the one that would be written."""
    return find_captions([Record(path=str(image.path), name=image.name)])[0]


def save_caption(image: DatasetImage, text: str, writer: SafeWriter) -> None:
    """Write the image's caption as its file is encoded; what was there is kept.

    Raises DatasetError for a file that is no text or was changed meanwhile, and for a caption that is blank
    or no text.
    """
    file = caption_file(image)
    if file.fault:
        raise DatasetError(
            f"{shown(file.path.name)} cannot be read ({file.fault}), so it stays as it is; "
            "save it as UTF-8 text."
        )
    if file.data is not None and "\n".join(file.lines) != image.caption and file.text:
        raise DatasetError(
            f"{shown(file.path.name)} was changed meanwhile; look at it before you write over it."
        )
    lines = _lines(text)
    if list(file.lines) == lines:
        return
    mark, encoding, old = split_encoding(file.data or b"")
    end = "\r\n" if "\r\n" in old else "\n"
    data = mark + "".join(line + end for line in lines).encode(encoding)
    writer.write(file.path, data, expected=file.data)


def _lines(text: str) -> list[str]:
    if len(text) > _MOST_LETTERS:
        raise DatasetError(f"the caption has {len(text):,} letters; at most {_MOST_LETTERS:,} are taken.")
    if printable(text) != text:
        raise DatasetError("the caption is no Unicode text; write it anew.")
    kept = "".join(one for one in text if unicodedata.category(one) != "Cc" or one in _KEPT)
    lines = [line.strip() for line in kept.splitlines() if line.strip()]
    if not lines:
        raise DatasetError(
            "a blank caption counts as none; write what is in the image, or leave the image out."
        )
    return lines


@dataclass(frozen=True)
class TokenCount:
    """How much of a caption the base reads."""

    tokens: int  # with the marks of begin and end, of the tokenizer that reads least of it
    window: int  # that fit
    lost: str  # the end that is not read; empty: all of it is


def count_tokens(caption: str, tokenizers: Mapping[str, Tokenizer], *, max_chunks: int = 1) -> TokenCount:
    """Of a caption of several lines the longest one's."""
    found = [TokenCount(0, 0, "")]
    for line in caption.splitlines() or [""]:
        for one in tokenizers.values():
            marks = one.num_special_tokens_to_add()
            window = (one.model_max_length - marks) * max_chunks + marks
            cut = find_cut([one], "", line, max_chunks=max_chunks)
            found.append(TokenCount(num_tokens(one, line), window, cut.lost if cut else ""))
    return max(found, key=lambda one: (bool(one.lost), one.tokens - one.window if one.window else -1e9))


@cache
def clip_tokenizers() -> Mapping[str, Tokenizer]:
    """CLIP's, which needs no torch: what images without a recipe are counted with, as the doctor does."""
    return {"CLIP": ClipTokenizer()}


def count_for(base: str, caption: str, max_chunks: int) -> TokenCount:
    """As the base reads it, which may bring torch: for a process of its own."""
    return count_tokens(caption, tokenizers_of(base), max_chunks=max_chunks)


def changes_in(dataset: Dataset, find: str, replace: str, *, regex: bool = False) -> list[CaptionChange]:
    """What would become of every caption with `find` in it. CaptionError: as `captions --find`."""
    return find_changes(dataset.records(), find, replace, regex=regex)


def apply(changes: Sequence[CaptionChange], writer: SafeWriter) -> int:
    """Write those without a fault, as one step to take back -> how many. DatasetError: one has changed."""
    wanted = [FileChange(one.file.path, one.file.data, one.data) for one in changes if not one.fault]
    writer.write_all(wanted)
    return len(wanted)


def statistics(dataset: Dataset) -> Statistics:
    """Raises CaptionError for a record of captions that cannot be read."""
    return caption_statistics(dataset.records(), trigger=dataset.trigger)
