"""What every table of the recipe has in common."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict
from pydantic_core import PydanticCustomError


def _not_blank(value: Any) -> Any:
    """An empty path means the folder that one happens to be in: other trainers searched it for images."""
    if isinstance(value, str) and not value.strip():
        raise PydanticCustomError("blank_path", "name a folder or a file, or leave the key out")
    return value


def _expand_home(path: Path) -> Path:
    try:
        return path.expanduser()
    except RuntimeError:
        raise PydanticCustomError("no_home", "no user of that name has a home folder; write it out") from None


UserPath = Annotated[Path, BeforeValidator(_not_blank), AfterValidator(_expand_home)]


class Section(BaseModel):
    """A table of the recipe: typed, frozen, and refusing keys it does not know."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    resume_safe: ClassVar[frozenset[str] | Literal["all"]] = frozenset()
    """The options that a resume may change, because what is learned stays the same but for rounding."""

    @classmethod
    def is_resume_safe(cls, option: str) -> bool:
        """Whether a resume may change it."""
        return cls.resume_safe == "all" or option in cls.resume_safe

    def relative_to(self, folder: Path) -> Self:
        """The same with relative paths taken from `folder`."""
        values = {name: getattr(self, name) for name in type(self).model_fields}
        return self.model_copy(update={name: _from_folder(folder, value) for name, value in values.items()})


def _from_folder(folder: Path, value: Any) -> Any:
    if isinstance(value, Path):
        return value if value.is_absolute() else (folder / value).resolve()
    if isinstance(value, Section):
        return value.relative_to(folder)
    return tuple(_from_folder(folder, one) for one in value) if isinstance(value, tuple) else value
