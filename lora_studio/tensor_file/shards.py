"""Whether a file of tensors is one of several that are one model together, as large ones are written."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Collection
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

_NUMBERED = re.compile(r"(?P<stem>.+)-(?P<number>\d{1,6})-of-(?P<total>\d{1,6})(?P<ending>\.[A-Za-z]+)")
_INDEX = re.compile(r".+\.index(?:\.\w+)?\.json")  # x.safetensors.index.json, ...index.fp16.json
_MOST_BYTES = 10_000_000  # of an index
_MOST_INDEXES, _MOST_FILES = 100, 1000
_MOST_SHOWN = 4


@dataclass(frozen=True)
class Shard:
    """A file that holds a part of a model's tensors."""

    number_of_files: int
    others: tuple[str, ...]  # names of the files beside it that hold the rest; empty where nothing tells

    def __str__(self) -> str:
        named = f" ({', '.join(self.others[:_MOST_SHOWN])})" if self.others else ""
        more = f" and {len(self.others) - _MOST_SHOWN} more" if len(self.others) > _MOST_SHOWN else ""
        if self.number_of_files == 2:
            return f"one of two files that belong together, and what the other{named} holds is not in it"
        return (
            f"one of {self.number_of_files:,} files that belong together, and what the others{named}{more} "
            "hold is not in it"
        )


def shard_of(path: Path, keys: Collection[str]) -> Shard | None:
    """Told by its name, `x-00001-of-00002.safetensors`, or by an index beside it; `keys` are those in it.

    None for a file that is whole, also beside an index whose tensors are all in it.
    """
    numbered = _NUMBERED.fullmatch(path.name)
    if numbered and (total := int(numbered["total"])) > 1 and int(numbered["number"]) <= total:
        width = len(numbered["total"])
        listed = (
            f"{numbered['stem']}-{number:0{width}}-of-{numbered['total']}{numbered['ending']}"
            for number in range(1, min(total, _MOST_FILES) + 1)
        )
        return Shard(total, tuple(name for name in listed if name != path.name))
    for index in _indexes_in(path.parent):
        files = _files_of(path.with_name(index))
        names = set(files.values())
        is_its_own = index.startswith(f"{path.name}.index")
        if (path.name in names or is_its_own) and not files.keys() <= set(keys):
            others = tuple(sorted(names - {path.name}))
            return Shard(len(others) + 1, others) if others else None
    return None


def _indexes_in(folder: Path) -> tuple[str, ...]:
    try:
        return _listed(folder, folder.stat().st_mtime_ns)
    except OSError:
        return ()


@lru_cache(maxsize=1)
def _listed(folder: Path, changed: int) -> tuple[str, ...]:
    """Once for all files of a folder that stays as it is."""
    with os.scandir(folder) as entries:
        return tuple(sorted(one.name for one in entries if _INDEX.fullmatch(one.name))[:_MOST_INDEXES])


def _files_of(index: Path) -> dict[str, str]:
    """Key -> name of the file that has it; nothing of an index that cannot be read, which tells nothing."""
    try:
        if not index.is_file() or index.stat().st_size > _MOST_BYTES:
            return {}
        listed: Any = json.loads(index.read_text("utf-8"))
        files = listed["weight_map"]
        return {key: name for key, name in files.items() if isinstance(name, str)}
    except (OSError, ValueError, RecursionError, LookupError, TypeError, AttributeError):
        return {}
