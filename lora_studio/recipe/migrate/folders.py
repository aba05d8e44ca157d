"""Folders and files that another trainer's settings name: where they are here, as the recipe writes them."""

from __future__ import annotations

import math
import ntpath
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_studio.errors import RecipeError
from lora_studio.files import expanded
from lora_studio.text import shown

_IMAGES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".avif", ".heic", ".tif", ".tiff"}
_REPEATED = re.compile(r"(\d+)_")
_PERCENT = re.compile(r"%([A-Za-z_]\w*)%")
_MOST_COUNTED = 100_000
_OF_WINDOWS = re.compile(r"[A-Za-z]:[\\/]|\\\\")


@dataclass(frozen=True)
class Places:
    """Where paths are looked for."""

    settings: Path  # the folder of the other trainer's file
    recipe: Path  # the folder of the recipe
    images: Path | None = None  # of --images

    def find(self, said: str) -> Path | None:
        """What a path names here, with ~ and variables filled in; None if it is not on this machine.

        A relative one is looked for beside the settings, then in the working folder.
        """
        text = _PERCENT.sub(
            lambda found: os.environ.get(found[1], found[0]), os.path.expandvars(said.strip())
        )
        if not text or "\0" in text:
            return None
        if os.name != "nt" and "\\" in text and not _OF_WINDOWS.match(text):
            text = text.replace("\\", "/")
        path = expanded(text)
        tried = [path] if path.is_absolute() else [self.settings / path, Path(path)]
        try:
            return next((one.resolve() for one in tried if one.exists()), None)
        except OSError:  # a name that no system has
            return None

    def written(self, path: Path) -> str:
        """As the recipe has it: relative where it lies below the recipe's folder."""
        here, whole = self.recipe.resolve(), path.resolve()
        return whole.relative_to(here).as_posix() if whole.is_relative_to(here) else str(whole)

    def file(self, said: str) -> tuple[str, str]:
        """A file or hub id as the recipe writes it, and what to say if it is no hub id and not here."""
        if found := self.find(said):
            return self.written(found), ""
        if is_hub_id(said):
            return said.strip(), ""
        return said.strip(), "not on this machine"

    def instead(self, said: str) -> dict[str, Any]:
        """--images as the source of settings that name no folder. Raises RecipeError without it."""
        if self.images is None:
            raise missing([said])
        return {"images": self.written(self.images)}

    def folder(self, said: str, *, alone: bool) -> Path | None:
        """A folder of images, or what --images has in its place; None if neither is here.

        `alone`: it is the only one, so --images itself may stand for it; else a folder in it of its name.
        """
        if (found := self.find(said)) and found.is_dir():
            return found
        if self.images is None:
            return None
        if alone and _images_in(self.images):
            return self.images.resolve()
        name = last_name(said)
        if name and (self.images / name).is_dir():
            return (self.images / name).resolve()
        return self.images.resolve() if alone else None


def is_hub_id(said: str) -> bool:
    """Whether a text can be the name of a repository: two names with one slash."""
    return bool(re.fullmatch(r"[\w][\w.-]*/[\w][\w.-]*", said.strip())) and not said.endswith(
        (".safetensors", ".ckpt", ".pt", ".sft")
    )


def last_name(said: str) -> str:
    """Of a path of any system: what is behind the last separator."""
    return ntpath.basename(said.strip().rstrip("/\\"))


def missing(said: Iterable[str]) -> RecipeError:
    """Of folders of images that are not here."""
    names = ", ".join(shown(one, limit=200) for one in said)
    return RecipeError(f"there is no {names} on this machine; give --images the folder of your images.")


def put_sources(values: dict[str, Any], sources: Sequence[dict[str, Any]], lost: Sequence[str]) -> None:
    """Folders as [data] has one, or as [[data.sources]] where they are several or one says more.

    `lost`: folders that are not here, for which RecipeError is raised.
    """
    if lost:
        raise missing(lost)
    if len(sources) == 1 and not {"role", "weight"} & sources[0].keys():
        values |= {f"data.{key}": value for key, value in sources[0].items()}
    else:
        values["data.sources"] = list(sources)
    drop_idle_tags(values)


def drop_idle_tags(values: dict[str, Any]) -> None:
    """Tags that stay in front are of no meaning where none are shuffled or left out."""
    if not (values.get("data.shuffle_tags") or values.get("data.tag_dropout")):
        values.pop("data.keep_tags", None)


def repeats_of(folder: Path) -> dict[Path, int]:
    """Of folders in kohya's layout, <repeats>_<name>: each with its repeats."""
    try:
        inner = sorted(one for one in folder.iterdir() if one.is_dir())
    except OSError:
        return {}
    return {one: int(found[1]) for one in inner if (found := _REPEATED.match(one.name)) and int(found[1])}


def views_in(folder: Path, *, recursive: bool = False) -> int:
    """How many images an epoch shows: each once, those in folders <repeats>_<name> as often as these say."""
    total = sum(count * _images_in(one) for one, count in repeats_of(folder).items())
    if not recursive:
        return total + _images_in(folder)
    return sum(
        _images_in(Path(place)) for number, (place, _, _) in enumerate(os.walk(folder)) if number < 10_000
    )


def _images_in(folder: Path) -> int:
    try:
        with os.scandir(folder) as entries:
            names = [one.name for number, one in enumerate(entries) if number < _MOST_COUNTED]
    except OSError:
        return 0
    return sum(
        1 for name in names if os.path.splitext(name)[1].lower() in _IMAGES and not name.startswith(".")
    )


def steps_of(views: int, batch: int, accumulation: int) -> int:
    """Optimizer steps of an epoch of so many views, as the other trainers count: batches, rounded up."""
    return math.ceil(math.ceil(views / max(1, batch)) / max(1, accumulation))
