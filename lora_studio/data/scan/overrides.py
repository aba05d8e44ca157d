"""What a metadata.jsonl or .csv may say about one image, besides its caption.

| column | what it is | as JSON | in CSV |
|---|---|---|---|
| `repeats` | how often an epoch shows it, 1 to 1000 | `5` | `5` |
| `weight` | factor of its loss, above 0 to 100 | `0.5` | `0.5` |
| `focus` | the point that a crop is laid around, as shares from the left and the top | `[0.5, 0.3]` | `0.5 0.3` |
| `crop` | `centre`, `random`, `focus`, or left, top, right, bottom of all that is shown, in pixels of the upright image | `[0, 40, 800, 640]` | `0 40 800 640` |
| `bucket` | its size in training, in pixels | `"768x512"` | `768x512` |
| `flip` | share of showings that are mirrored; true is a half, false none | `false` | `0` |

Each takes the place of what the recipe and the folder say for all images; empty ones say nothing.
"""  # noqa: E501 (a table)

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import Any, get_args

from lora_studio.data.manifest import CropMode, Overrides

MAX_REPEATS, MAX_WEIGHT = 1000, 100
COLUMNS = ("repeats", "weight", "focus", "crop", "bucket", "flip")
_MODES: tuple[str, ...] = get_args(CropMode)


def read_overrides(row: Mapping[str, Any]) -> Overrides:
    """The overrides in a line of metadata. Raises ValueError that says what each column must hold."""
    given = {name: _plain(row[name]) for name in COLUMNS if name in row}
    read = {name: _READERS[name](value) for name, value in given.items() if value not in (None, "")}
    if isinstance(read.get("crop"), tuple):
        read["region"] = read.pop("crop")
    return Overrides(**read)


def _plain(value: Any) -> Any:
    return value.strip() if isinstance(value, str) else value


def _repeats(value: Any) -> int:
    (number,) = _numbers(value, 1) or (0,)
    if number != int(number) or not 1 <= number <= MAX_REPEATS:
        raise _fault("repeats", value, f"a whole number from 1 to {MAX_REPEATS}")
    return int(number)


def _weight(value: Any) -> float:
    (number,) = _numbers(value, 1) or (0,)
    if not 0 < number <= MAX_WEIGHT:
        raise _fault("weight", value, f"a number above 0, at most {MAX_WEIGHT}")
    return number


def _flip(value: Any) -> float:
    if isinstance(value, str) and value.lower() in ("true", "false"):
        value = value.lower() == "true"
    if isinstance(value, bool):
        return 0.5 if value else 0.0
    (number,) = _numbers(value, 1) or (-1,)
    if not 0 <= number <= 1:
        raise _fault("flip", value, "true, false or a share from 0 to 1")
    return number


def _focus(value: Any) -> tuple[float, float]:
    numbers = _numbers(value, 2)
    if not numbers or not all(0 <= number <= 1 for number in numbers):
        raise _fault("focus", value, "two shares from 0 to 1, such as [0.5, 0.3]: from the left and the top")
    return numbers[0], numbers[1]


def _crop(value: Any) -> str | tuple[int, int, int, int]:
    if value in _MODES:
        return str(value)
    numbers = _numbers(value, 4)
    if numbers and all(number == int(number) >= 0 for number in numbers):
        left, top, right, bottom = map(int, numbers)
        if left < right and top < bottom:
            return left, top, right, bottom
    raise _fault("crop", value, f"{', '.join(_MODES)} or left, top, right, bottom in whole pixels")


def _bucket(value: Any) -> tuple[int, int]:
    match = re.fullmatch(r"(\d{1,5})\s*x\s*(\d{1,5})", value) if isinstance(value, str) else None
    if not match:
        raise _fault("bucket", value, 'a width and height in pixels, such as "768x512"')
    return int(match[1]), int(match[2])


_READERS: dict[str, Callable[[Any], Any]] = {
    "repeats": _repeats,
    "weight": _weight,
    "focus": _focus,
    "crop": _crop,
    "bucket": _bucket,
    "flip": _flip,
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


def _fault(column: str, value: Any, allowed: str) -> ValueError:
    return ValueError(f"has {value!r} as {column}; it must be {allowed}")
