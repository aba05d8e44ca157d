"""The sets of images that pages have open, by a key that addresses can hold; files below them by another."""

from __future__ import annotations

import hashlib
import secrets
from collections import OrderedDict
from dataclasses import dataclass, field
from pathlib import Path

from lora_studio.errors import StudioError
from lora_studio.recipe.load import load_recipe
from lora_studio.web.dataset import Dataset, DatasetImage, open_dataset
from lora_studio.web.dataset.backups import SafeWriter
from lora_studio.web.dataset.dropping import DropFolder
from lora_studio.web.folders import AllowedFolders

_MOST_OPEN = 16


@dataclass
class OpenDataset:
    """A set of images, and what was done to its files since it was opened."""

    key: str
    dataset: Dataset
    writer: SafeWriter  # of what lies beside the images
    recipe_writer: SafeWriter | None  # of the recipe and its list; None for a folder without one
    base: str = ""  # that captions are read by; empty: as CLIP reads
    max_chunks: int = 1
    by_key: dict[str, str] = field(default_factory=dict)  # of addresses -> names

    @property
    def last_writer(self) -> SafeWriter | None:
        """Who wrote last; None if nothing is left to take back."""
        writers = [one for one in (self.writer, self.recipe_writer) if one is not None and one.steps]
        return max(writers, key=lambda one: one.last_at, default=None)

    def image(self, key: str) -> DatasetImage:
        """Raises StudioError if there is none of this key."""
        if key not in self.by_key:
            raise StudioError("there is no such image; open the images again.")
        return self.dataset.images[self.by_key[key]]


class OpenedSets:
    """The last ones; whoever comes back to an older one opens it again."""

    def __init__(self) -> None:
        self._sets: OrderedDict[str, OpenDataset] = OrderedDict()
        self._drops: OrderedDict[str, DropFolder] = OrderedDict()

    def open(self, target: Path, folders: AllowedFolders) -> OpenDataset:
        """Look at the folder or recipe again. Raises StudioError, also for images in folders not allowed."""
        dataset = open_dataset(target)
        for source in dataset.sources:
            folders.resolve(source.folder)
        base, chunks, writer = "", 1, None
        if target.suffix == ".toml":
            recipe = load_recipe(target)
            base, chunks, writer = recipe.base.model, recipe.data.max_token_chunks, SafeWriter(target.parent)
        key = hashlib.sha256(str(target).encode("utf-8", "surrogateescape")).hexdigest()[:20]
        by_key = {one.key: one.name for one in dataset.images.values()}
        root = dataset.sources[0].folder
        before = self._sets.pop(key, None)
        found = OpenDataset(key, dataset, SafeWriter(root), writer, base, chunks, by_key)
        if before is not None:  # what was done can still be taken back
            found.writer, found.recipe_writer = before.writer, before.recipe_writer
        self._sets[key] = found
        while len(self._sets) > _MOST_OPEN:
            self._sets.popitem(last=False)
        return found

    def new_drop(self, folder: DropFolder) -> str:
        """The key by which files may be sent into the folder."""
        key = secrets.token_urlsafe(12)
        self._drops[key] = folder
        while len(self._drops) > _MOST_OPEN:
            self._drops.popitem(last=False)
        return key

    def drop(self, key: str) -> DropFolder:
        """Raises StudioError if no page has this key."""
        if key not in self._drops:
            raise StudioError("this page takes no files any more; load it again.")
        return self._drops[key]

    def at(self, key: str) -> OpenDataset:
        """Raises StudioError if it is not open."""
        if key not in self._sets:
            raise StudioError("these images are not open any more; open them again.")
        return self._sets[key]


opened = OpenedSets()
