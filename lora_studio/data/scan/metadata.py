"""`metadata.jsonl` and `metadata.csv`: captions of images, as in Hugging Face's image folders.

They may also say how one image is shown: see `overrides`.
"""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_studio.data.images.files import UnreadableFile, decode_text, read_bytes
from lora_studio.data.manifest import Overrides
from lora_studio.data.scan.overrides import COLUMNS, read_overrides
from lora_studio.errors import DatasetError, preview_names
from lora_studio.registry import did_you_mean

FILE, TEXT = "file_name", "text"  # the columns' names; others are ignored
_Row = dict[str, Any]


@dataclass(frozen=True)
class Line:
    """What a list says about one image."""

    caption: str  # in one line; "" where there is none
    overrides: Overrides


def read_metadata(path: Path) -> dict[str, Line]:
    """File name, as written there -> what is said about it.

    Raises DatasetError in one sentence for a file that is no such list.
    """
    try:
        text = decode_text(read_bytes(path))
    except UnicodeDecodeError:
        raise _fault(path, "is neither UTF-8 nor UTF-16; save it as UTF-8") from None
    except UnreadableFile as reason:
        raise _fault(path, f"cannot be used ({reason}); mend or rename it") from None
    rows = list(_csv_rows(path, text) if path.suffix.lower() == ".csv" else _json_rows(path, text))
    _check_columns(path, rows)
    listed = [(_string(path, number, row, FILE), _line(path, number, row)) for number, row in rows]
    if missing := [str(number) for (number, _), (name, _) in zip(rows, listed, strict=True) if not name]:
        raise _fault(path, f"has no {FILE} in line {preview_names(missing)}; give each line one")
    if twice := [name for name, count in Counter(name for name, _ in listed).items() if count > 1]:
        raise _fault(path, f"lists {preview_names(twice)} more than once; keep one line each")
    return dict(listed)


def _line(path: Path, number: int, row: _Row) -> Line:
    caption = " ".join(_string(path, number, row, TEXT).split())
    try:
        return Line(caption, read_overrides(row))
    except ValueError as fault:
        raise _fault(path, f"{fault} (line {number})") from None


def _json_rows(path: Path, text: str) -> Iterator[tuple[int, _Row]]:
    """Line number and object of each line that is not empty."""
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        if not isinstance(row, dict):
            raise _fault(path, f'is no JSON object in line {number}; write {{"{FILE}": ..., "{TEXT}": ...}}')
        yield number, row


def _csv_rows(path: Path, text: str) -> Iterator[tuple[int, _Row]]:
    """Line number and columns of each row; the first line names the columns."""
    try:
        reader = csv.DictReader(io.StringIO(text, newline=""), skipinitialspace=True, restval="")
        for row in reader:
            yield reader.line_num, {key.strip(): value for key, value in row.items() if key is not None}
    except csv.Error as error:
        raise _fault(path, f"is no table of comma-separated values ({error}); save it again") from None


def _check_columns(path: Path, rows: list[tuple[int, _Row]]) -> None:
    """Captions under another name would be ignored without a word; a list of overrides needs none."""
    columns = list(dict.fromkeys(str(key) for _, row in rows for key in row))
    for wanted in (FILE,) if set(COLUMNS) & set(columns) else (FILE, TEXT):
        if wanted not in columns:
            known = f" (it has {preview_names(columns, limit=6)})" if columns else ""
            hint = did_you_mean(wanted, columns).rstrip("?")
            advice = f"name the columns {FILE} and {TEXT}, or rename the file to leave it out"
            raise _fault(path, f"has no {wanted}{known}{hint}; {advice}")


def _string(path: Path, number: int, row: _Row, column: str) -> str:
    value = row.get(column)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise _fault(path, f"has {value!r} as {column} in line {number}; it must be text in quotes")
    if any("\ud800" <= letter <= "\udfff" for letter in value):  # JSON can spell halves of a letter
        raise _fault(path, f"has a {column} in line {number} that is no Unicode text; write it anew")
    return value.strip()


def _fault(path: Path, what: str) -> DatasetError:
    return DatasetError(f"{path} {what}.")
