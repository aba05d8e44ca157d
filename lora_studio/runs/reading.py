"""What runs have written, read again: whole and unchanged, or a sentence that names the file."""

from __future__ import annotations

import hashlib
import json
import math
import os
import stat
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeGuard

from lora_studio.errors import CheckpointError, reason_of

SEAL = "sha256"  # in a JSON file: over the rest of it
INPUTS = "inputs.json"  # in a run's folder: sha256 of all that it was made from
STATE = "state.json"  # in a checkpoint's: the counters, and the sha256 of the others and of itself
MEASURED = "validation"  # in that: the sha256 of what validation.jsonl then held
MOST_BYTES = 10**9  # of a file of text: a line a step, of millions of steps
_ADVICE = "put it back from a copy, or start another run with --out"


def damaged(path: Path, why: object) -> CheckpointError:
    return CheckpointError(f"{path} is not as the run wrote it ({why}); {_ADVICE}.")


def read_bytes(path: Path) -> bytes:
    """Raises CheckpointError, also if it is missing."""
    try:
        if why := unreadable(path, most_bytes=MOST_BYTES):
            raise damaged(path, why)
        return path.read_bytes()
    except OSError as error:
        raise damaged(path, error.strerror or error) from None


def unreadable(path: Path, *, most_bytes: float = math.inf) -> str:
    """Why it is not read: missing, larger, or something that never ends, such as a pipe; else empty."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return "it is missing"
    except OSError as error:
        return error.strerror or str(error)
    if not stat.S_ISREG(status.st_mode):
        return "it is a folder" if stat.S_ISDIR(status.st_mode) else "it is no file"
    return f"it has {status.st_size:,} bytes" if status.st_size > most_bytes else ""


def read_table(path: Path) -> dict[str, Any]:
    """The values of a JSON file. Raises CheckpointError if there is anything else in it."""
    try:
        values = json.loads(read_bytes(path).decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise damaged(path, reason_of(error)) from None
    if not isinstance(values, dict):
        raise damaged(path, f"it holds a {type(values).__name__}")
    return values


def seal_of(values: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def sealed(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values with a digest over them."""
    return {**values, SEAL: seal_of(values)}


def read_sealed(path: Path) -> dict[str, Any]:
    """What `sealed` made of the values of a JSON file. Raises CheckpointError if they are others by now."""
    values = read_table(path)
    if values.pop(SEAL, None) != seal_of(values):
        raise damaged(path, "its digest is another")
    return values


def inputs_before(folder: Path) -> dict[str, str]:
    """What a run was made from when it began; empty of runs that did not write it down.

    Raises CheckpointError if that is damaged, or missing though the run has checkpoints of this version.
    """
    path = folder / INPUTS
    values = read_table(path) if os.path.lexists(path) else {}
    given = values.pop(SEAL, None)
    if given is None and _has_sealed_state(folder):
        raise damaged(path, "its digest is missing" if values else "it is missing")
    if given not in (None, seal_of(values)):
        raise damaged(path, "its digest is another")
    return values


def _has_sealed_state(folder: Path) -> bool:
    """Whether there is a checkpoint of a version that gives everything a digest."""
    for path in folder.glob(f"checkpoints/step_*/{STATE}"):
        with suppress(CheckpointError):
            digests = read_table(path).get(SEAL)
            if isinstance(digests, dict) and STATE in digests:
                return True
    return False


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The tables in a JSON lines file; a last one that a crash has cut is left out. CheckpointError."""
    rows, last = _tables(read_bytes(path))
    if None in rows:
        raise damaged(path, f"line {1 + rows.index(None)}")
    return [row for row in (*rows, last) if row is not None]


def measured_rows(path: Path, numbers: Sequence[str]) -> tuple[list[dict[str, Any]], int]:
    """The first line of each step in a file of measurements with these numbers, and how many others it has.

    Nothing that a run goes on from is in those, so that they are passed over. None if there is no such file.
    Raises CheckpointError if it is there and no file that can be read.
    """
    rows, last = _tables(read_bytes(path) if os.path.lexists(path) else b"")
    each: dict[int, dict[str, Any]] = {}
    for row in rows:
        if _is_measured(row, numbers):
            each.setdefault(row["step"], row)
    num_others = len(rows) - len(each)
    if _is_measured(last, numbers):
        each.setdefault(last["step"], last)
    return [*each.values()], num_others


def _is_measured(row: Mapping[str, Any] | None, numbers: Sequence[str]) -> TypeGuard[dict[str, Any]]:
    if row is None or type(row.get("step")) is not int or row["step"] < 0:
        return False
    of_images = row.get("images", {})
    values = [row.get(name) for name in numbers if not (name == "loss" and row.get("skipped"))]
    return isinstance(of_images, dict) and all(map(_is_number, [*values, *of_images.values()]))


def _is_number(value: object) -> bool:
    return isinstance(value, float) or (type(value) is int and abs(value) < 2**63)


def _tables(content: bytes) -> tuple[list[dict[str, Any] | None], dict[str, Any] | None]:
    """Of each line, None where it is none; and of what stands behind the last line's end."""
    *lines, cut = content.split(b"\n")  # not splitlines: names may hold U+2028
    return [_table(line) for line in lines], _table(cut)


def _table(line: bytes) -> dict[str, Any] | None:
    try:
        value = json.loads(line.decode("utf-8"))
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None
