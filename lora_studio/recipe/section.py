"""What every table of the recipe has in common."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict
from pydantic_core import PydanticCustomError


def _not_blank(value: Any) -> Any:
    """An empty path means the folder that one happens to be in: other trainers searched it for images."""
    if isinstance(value, str) and not value.strip():
        raise PydanticCustomError("blank_path", "name a folder or a file, or leave the key out")
    return value


def _at_home(path: Path) -> Path:
    try:
        return path.expanduser()
    except RuntimeError:
        raise PydanticCustomError("no_home", "nobody of that name has a home folder; write it out") from None


UserPath = Annotated[Path, BeforeValidator(_not_blank), AfterValidator(_at_home)]


class Section(BaseModel):
    """A table of the recipe: typed, frozen, and refusing keys it does not know."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    resume_safe: ClassVar[frozenset[str]] = frozenset()
    """The options that a resume may change, because what is learned stays the same but for rounding."""


def from_folder(folder: Path, path: Path | None) -> Path | None:
    """An absolute path, a relative one taken from `folder`."""
    return path if path is None or path.is_absolute() else (folder / path).resolve()
