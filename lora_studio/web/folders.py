"""The folders that the page may use: everything else on this machine is not there for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lora_studio.errors import StudioError, preview_names
from lora_studio.files import expanded
from lora_studio.text import shown


class NotAllowed(StudioError):
    """A path outside of the folders that the page was given."""


@dataclass(frozen=True)
class AllowedFolders:
    """Resolved once, at the start; the first is the project's, where new things go."""

    roots: tuple[Path, ...]

    @classmethod
    def of(cls, folders: Sequence[Path]) -> AllowedFolders:
        """Raises StudioError for one that is no folder."""
        for one in folders:
            if not one.is_dir():
                raise StudioError(f"there is no folder {one}; name one that is there with --folder.")
        return cls(tuple(dict.fromkeys(one.resolve() for one in folders)))

    @property
    def project(self) -> Path:
        return self.roots[0]

    def resolve(self, path: str | Path, *, within: Path | None = None) -> Path:
        """The path with all links followed; a relative one is the project's, or of the folder `within`.

        Raises NotAllowed, without a word on whether it is there, if it lies outside of the folders.
        """
        text = str(path)
        start = within or self.project
        try:
            if "\0" in text:
                raise ValueError(text)
            resolved = (start / expanded(text)).resolve()
        except (OSError, ValueError, RuntimeError):
            raise NotAllowed(f"{shown(text, limit=200)} is no path.") from None
        limits = self.roots if within is None else (within.resolve(),)
        if not any(resolved.is_relative_to(root) for root in limits):
            where = preview_names(map(str, limits))
            raise NotAllowed(
                f"{shown(text, limit=200)} is outside of the folders of this page ({shown(where)}); "
                "start it with another --folder."
            )
        return resolved

    def allows(self, path: str | Path) -> bool:
        """Whether `resolve` would give it."""
        try:
            self.resolve(path)
        except NotAllowed:
            return False
        return True

    def shortened(self, path: Path) -> str:
        """As people read it: relative to the project's folder where it lies in that."""
        within = path.is_relative_to(self.project)
        return shown(str(path.relative_to(self.project) if within else path))
