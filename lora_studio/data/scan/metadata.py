"""`metadata.jsonl` and `metadata.csv`: captions of images, as in Hugging Face's image folders.

They may also say how one image is shown:

| column | what it is | as JSON |
|---|---|---|
| `repeats` | how often an epoch shows it, 1 to 1000 | `5` |
| `weight` | factor of its loss, above 0 to 100 | `0.5` |
| `focus` | the point that a crop is laid around: shares from left and top | `[0.5, 0.3]` |
| `crop` | `centre`, `random`, `focus`, or the part shown: left, top, right, bottom | `[0, 40, 80, 64]` |
| `bucket` | its size in training, in pixels | `"768x512"` |
| `flip` | share of showings that are mirrored; true is a half, false none | `false` |

In CSV several numbers stand with blanks between: `0 40 80 64`; columns may also be separated by `;` or tabs,
as Excel writes them where numbers have a comma. Each column takes the place of what the recipe
and the folder say for all images; empty ones say nothing.
"""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from lora_studio.data.images import UnreadableFile, decode_text, read_bytes
from lora_studio.data.manifest import CropMode, Overrides
from lora_studio.errors import DatasetError, preview_names
from lora_studio.registry import did_you_mean
from lora_studio.text import same_text

FILE, TEXT = "file_name", "text"  # the columns' names; others are ignored
_LONGEST_NAME = 4096  # letters; what no system takes as a path
_HALVES = re.compile("[\ud800-\udfff]")
_Row = dict[str, Any]


@dataclass(frozen=True)
class Line:
    caption: str  # in one line; "" where there is none
    overrides: Overrides


def read_metadata(path: Path) -> dict[str, Line]:
    """File name, as written there -> what is said of it. Raises DatasetError if the file is no such list."""
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
    caption = same_text(" ".join(_string(path, number, row, TEXT).split()))
    try:
        return Line(caption, read_overrides(row))
    except ValueError as fault:
        raise _fault(path, f"{fault} (line {number})") from None


def _json_rows(path: Path, text: str) -> Iterator[tuple[int, _Row]]:
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
    separator = max(",;\t", key=text.lstrip().partition("\n")[0].count)
    stream = io.StringIO(text, newline="")
    try:
        reader = csv.DictReader(stream, delimiter=separator, skipinitialspace=True, restval="")
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
    if not value.isascii() and _HALVES.search(value):  # JSON can spell halves of a letter
        raise _fault(path, f"has a {column} in line {number} that is no Unicode text; write it anew")
    if column == FILE and len(value) > _LONGEST_NAME:
        raise _fault(path, f"has a {FILE} of {len(value):,} letters in line {number}; no file is called so")
    return value.strip()


def _fault(path: Path, what: str) -> DatasetError:
    return DatasetError(f"{path} {what}.")


MAX_REPEATS, MAX_WEIGHT = 1000, 100
_NO_OVERRIDES = Overrides()  # one for all
_MODES: tuple[str, ...] = get_args(CropMode)


def read_overrides(row: Mapping[str, Any]) -> Overrides:
    """The overrides in a line of metadata. Raises ValueError that says what each column must hold."""
    if COLUMNS.keys().isdisjoint(row):
        return _NO_OVERRIDES
    read: dict[str, Any] = {}
    for column, (reader, allowed) in COLUMNS.items():
        value = row.get(column)
        value = value.strip() if isinstance(value, str) else value
        if value in (None, ""):
            continue
        if (found := reader(value)) is None:
            raise ValueError(f"has {value!r} as {column}; it must be {allowed}")
        read["region" if column == "crop" and isinstance(found, tuple) else column] = found
    return Overrides(**read)


def _repeats(value: Any) -> int | None:
    (number,) = _numbers(value, 1) or (0,)
    return int(number) if number == int(number) and 1 <= number <= MAX_REPEATS else None


def _weight(value: Any) -> float | None:
    (number,) = _numbers(value, 1) or (0,)
    return number if 0 < number <= MAX_WEIGHT else None


def _flip(value: Any) -> float | None:
    if isinstance(value, str) and value.lower() in ("true", "false"):
        value = value.lower() == "true"
    if isinstance(value, bool):
        return 0.5 if value else 0.0
    (number,) = _numbers(value, 1) or (-1,)
    return number if 0 <= number <= 1 else None


def _focus(value: Any) -> tuple[float, ...] | None:
    numbers = _numbers(value, 2)
    return numbers if numbers and all(0 <= number <= 1 for number in numbers) else None


def _crop(value: Any) -> str | tuple[int, ...] | None:
    if value in _MODES:
        return str(value)
    numbers = _numbers(value, 4)
    if not numbers or not all(number == int(number) >= 0 for number in numbers):
        return None
    left, top, right, bottom = box = tuple(map(int, numbers))
    return box if left < right and top < bottom else None


def _bucket(value: Any) -> tuple[int, int] | None:
    match = re.fullmatch(r"(\d{1,5})\s*x\s*(\d{1,5})", value) if isinstance(value, str) else None
    return match and (int(match[1]), int(match[2]))


# Column -> what reads its value, None for an invalid one, and what is allowed.
COLUMNS: dict[str, tuple[Callable[[Any], Any], str]] = {
    "repeats": (_repeats, f"a whole number from 1 to {MAX_REPEATS}"),
    "weight": (_weight, f"a number above 0, at most {MAX_WEIGHT}"),
    "focus": (_focus, "two shares from 0 to 1, such as [0.5, 0.3]: from the left and the top"),
    "crop": (_crop, f"{', '.join(_MODES)} or left, top, right, bottom in whole pixels"),
    "bucket": (_bucket, 'a width and height in pixels, such as "768x512"'),
    "flip": (_flip, "true, false or a share from 0 to 1"),
}


def _numbers(value: Any, count: int) -> tuple[float, ...] | None:
    """So many finite numbers, from a number, a list, or text that parts them by blanks or commas."""
    parts = re.split(r"[\s,;]+", value) if isinstance(value, str) else value
    parts = parts if isinstance(parts, list) else [parts]
    if len(parts) != count or any(isinstance(part, bool) for part in parts):
        return None
    try:
        numbers = tuple(float(part) for part in parts)
    except (TypeError, ValueError, OverflowError):
        return None
    return numbers if all(map(math.isfinite, numbers)) else None
