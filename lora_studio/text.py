"""Counts, sizes and durations in sentences; text from elsewhere made harmless; sections of a plan."""

from __future__ import annotations

import json
import re
import shlex
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_ESCAPES = re.compile(r"\x1b(?:\[[0-?]*+[ -/]*+[@-~]?|\][^\x07\x1b]*+(?:\x07|\x1b\\)?)")  # ECMA-48
Rows = Sequence[tuple[str, str]]  # (title, text); without a title the text goes on with the row above


@dataclass(frozen=True)
class PlanSection:
    """One subject of a plan: rows for people, and the same facts as plain data for JSON."""

    rows: Rows
    data: Mapping[str, Any]


def plural(count: int, what: str = "image") -> str:
    """ "1 image", "3 images"."""
    return f"1 {what}" if count == 1 else f"{count} {what}s"


def be(count: int) -> str:
    """The verb behind a count: "1 image is", "3 images are"."""
    return "is" if count == 1 else "are"


def command_of(*words: object) -> str:
    """A command of ours as it can be pasted into a shell."""
    return shlex.join(["lora-studio", *map(str, words)])


def in_words(name: str) -> str:
    """ "near_duplicate" -> "near duplicate"."""
    return name.replace("_", " ")


def duration(seconds: float) -> str:
    """ "2 h 5 min", "4 min 40 s" or "12 s"."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"


def file_size(num_bytes: float) -> str:
    """In powers of 1000, as file managers count: "1.50 GB", "12.3 MB", "4.0 KB" or "512 bytes"."""
    return _size(num_bytes, (("GB", 10**9), ("MB", 10**6), ("KB", 10**3)))


def memory_size(num_bytes: float) -> str:
    """In powers of 1024, as memory is sold: "1.50 GiB", "12.3 MiB", "4.0 KiB" or "512 bytes"."""
    return _size(num_bytes, (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)))


def _size(num_bytes: float, units: tuple[tuple[str, int], ...]) -> str:
    for unit, size in units:
        if num_bytes >= size:
            return f"{num_bytes / size:.{2 if unit.startswith('G') else 1}f} {unit}"
    return f"{num_bytes:.0f} bytes"


_STEERS = re.compile(  # C0 and C1, what turns or breaks a line or is not seen, halves of a pair, tags
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    "\ud800-\udfff\U000e0000-\U000e007f]"
)


def harmless(text: str) -> str:
    """What steers a terminal or hides in it spelled out, as `\\x1b`; lines and tabs stay what they are."""
    return _STEERS.sub(lambda found: ascii(found[0])[1:-1], text)


def harmless_json(data: object) -> str:
    """Likewise, as JSON spells it, so that it is read back as it was."""
    return _STEERS.sub(
        lambda found: json.dumps(found[0])[1:-1], json.dumps(data, indent=2, ensure_ascii=False)
    )


def same_text(text: str) -> str:
    """The text as it compares: macOS spells "é" as two code points, other systems as one (NFC)."""
    return text if text.isascii() else unicodedata.normalize("NFC", text)


def plain_line(text: str) -> str:
    """One line of what another program says, without what steers a terminal: it goes into the user's file."""
    letters = "".join(" " if one.isspace() else one for one in _ESCAPES.sub("", text))
    return " ".join(_STEERS.sub("", letters).split())


def with_class(trigger: str, class_words: str) -> str:
    """The trigger, and what it is one of behind it; no word of that stands there twice."""
    own, words = trigger.casefold().split(), class_words.casefold().split()
    if f" {' '.join(words)} " in f" {' '.join(own)} " or own[-1:] == words[-1:]:
        return trigger
    shared = next((n for n in range(len(words), 0, -1) if own[-n:] == words[:n]), 0)
    return " ".join(filter(None, [trigger.strip(), *class_words.split()[shared:]]))


def printable(text: str) -> str:
    """A file name that is no UTF-8 holds lone surrogates, which cannot be written; they become \\udcXX."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def shown(text: str, *, limit: int | None = None) -> str:
    """Harmless, and on one line: for names, where a second line would pass for one of ours.

    Of a text longer than `limit` its beginning and its length.
    """
    kept = text if limit is None or len(text) <= limit else f"{text[:limit]} ... ({len(text):,} letters)"
    return harmless(kept).replace("\n", "\\n").replace("\t", "\\t")


def cut(text: str, *, limit: int = 2000) -> str:
    """Of each line that is longer, as a value from elsewhere can make it, its beginning and its end."""
    half = limit // 2
    lines = text.split("\n")
    return "\n".join(
        line if len(line) <= limit else f"{line[:half]} ... ({len(line):,} letters) ... {line[-half:]}"
        for line in lines
    )
