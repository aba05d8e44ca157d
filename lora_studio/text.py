"""Counts, sizes and durations in sentences; text from elsewhere made harmless; sections of a plan."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Rows = Sequence[tuple[str, str]]  # (title, text); without a title the text goes on with the row above


@dataclass(frozen=True)
class PlanSection:
    """One subject of a plan: rows for people, and the same facts as plain data for JSON."""

    rows: Rows
    data: Mapping[str, Any]


def plural(count: int, what: str = "image") -> str:
    """ "1 image", "3 images"."""
    return f"1 {what}" if count == 1 else f"{count} {what}s"


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


def printable(text: str) -> str:
    """A file name that is no UTF-8 holds lone surrogates, which cannot be written; they become \\udcXX."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def shown(text: str, *, limit: int | None = None) -> str:
    """The text with control characters spelled out, as a name may hold some that steer a terminal.

    Of a text longer than `limit` its beginning and its length.
    """
    kept = text if limit is None or len(text) <= limit else f"{text[:limit]} ... ({len(text):,} letters)"
    return "".join(one if one.isprintable() else ascii(one)[1:-1] for one in printable(kept))
