"""The point that an image's crop is laid around, in the list beside the images: metadata.jsonl or .csv."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import Any

from lora_studio.data.captions import split_encoding
from lora_studio.data.images import METADATA_NAMES
from lora_studio.data.scan.metadata import FILE, read_metadata
from lora_studio.errors import DatasetError
from lora_studio.text import same_text, shown
from lora_studio.web.dataset import DatasetImage
from lora_studio.web.dataset.backups import SafeWriter, current

_COLUMN = "focus"
Point = tuple[float, float]  # shares of width and height, from the left and the top


def set_focus(image: DatasetImage, point: Point | None, writer: SafeWriter) -> None:
    """Write it into the list that names the image, else into the one of its folder; None takes it out.

    The list is kept first. Raises DatasetError for a list that is none, or cannot be written.
    """
    if point is not None and not all(0 <= share <= 1 for share in point):
        raise DatasetError(f"the focus {point} lies outside of the image; click inside of it.")
    path, name = _list_of(image)
    before = current(path)
    if before is None and point is None:
        return
    given = None if point is None else [round(share, 4) for share in point]
    try:
        mark, encoding, text = split_encoding(before or b"")
    except UnicodeDecodeError:
        raise DatasetError(f"{shown(path.name)} is neither UTF-8 nor UTF-16; save it as UTF-8.") from None
    change = _in_csv if path.suffix.lower() == ".csv" else _in_jsonl
    data = mark + change(text, name, given).encode(encoding)
    if not data.strip() and before is None:
        return
    _check(path, data)
    writer.write(path, data, expected=before)


def _list_of(image: DatasetImage) -> tuple[Path, str]:
    """The list that has a line for the image, and its name there; else the one of its own folder."""
    own: Path | None = None
    at = image.path.parent
    while True:
        name = image.path.relative_to(at).as_posix()
        for listed in METADATA_NAMES:
            path = next((one for one in _inside(at) if one.name.lower() == listed), None)
            if path is None:
                continue
            if at == image.path.parent:
                own = path
            if any(_same(one, name) for one in read_metadata(path)):
                return path, name
        if at == image.folder or at == at.parent or not at.is_relative_to(image.folder):
            break
        at = at.parent
    return own or image.path.parent / METADATA_NAMES[0], image.path.name


def _inside(folder: Path) -> list[Path]:
    try:
        return sorted(one for one in folder.iterdir() if one.name.lower() in METADATA_NAMES)
    except OSError as error:
        raise DatasetError(f"{shown(str(folder))} cannot be read ({error.strerror or error}).") from None


def _same(written: str, name: str) -> bool:
    return same_text(str(PurePosixPath(written.replace("\\", "/")))) == same_text(name)


def _in_jsonl(text: str, name: str, point: list[float] | None) -> str:
    """The line of the image with the point; all others as they are."""
    lines = text.split("\n")
    for place, line in enumerate(lines):
        row: dict[str, Any] = json.loads(line) if line.strip() else {}
        if isinstance(row, dict) and _same(str(row.get(FILE, "")), name):
            row.pop(_COLUMN, None)
            if point is not None:
                row[_COLUMN] = point
            lines[place] = json.dumps(row, ensure_ascii=False) if len(row) > 1 else ""
            return "\n".join(line for at, line in enumerate(lines) if line or at != place)
    if point is None:
        return text
    start = text if not text or text.endswith("\n") else f"{text}\n"
    return start + json.dumps({FILE: name, _COLUMN: point}, ensure_ascii=False) + "\n"


def _in_csv(text: str, name: str, point: list[float] | None) -> str:
    separator = max(",;\t", key=text.lstrip().partition("\n")[0].count)
    rows = list(csv.reader(io.StringIO(text, newline=""), delimiter=separator, skipinitialspace=True))
    head = [one.strip() for one in rows[0]]
    if _COLUMN not in head:
        rows[0].append(_COLUMN)
        head.append(_COLUMN)
    at, file_at = head.index(_COLUMN), head.index(FILE)
    value = "" if point is None else " ".join(map(str, point))
    found = False
    for row in rows[1:]:
        if row:
            row += [""] * (len(head) - len(row))
            if _same(row[file_at].strip(), name):
                row[at], found = value, True
    if not found and point is not None:
        rows.append([name if column == FILE else value if column == _COLUMN else "" for column in head])
    written = io.StringIO(newline="")
    csv.writer(written, delimiter=separator, lineterminator="\n").writerows(rows)
    return written.getvalue()


def _check(path: Path, data: bytes) -> None:
    """Raise DatasetError unless a scan can read it."""
    if not data.strip():
        return
    with TemporaryDirectory() as folder:
        copy = Path(folder) / path.name
        copy.write_bytes(data)
        try:
            read_metadata(copy)
        except DatasetError as error:
            said = str(error).replace(str(copy), shown(path.name))
            raise DatasetError(said) from None
