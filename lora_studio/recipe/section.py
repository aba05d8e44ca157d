"""What every table of the recipe has in common."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, ValidationInfo
from pydantic_core import PydanticCustomError

from lora_studio.text import same_text


def _not_blank(value: Any) -> Any:
    """An empty path means the folder that one happens to be in: other trainers searched it for images."""
    if isinstance(value, str) and not value.strip():
        raise PydanticCustomError("blank_path", "name a folder or a file, or leave the key out")
    return value


def _from_folder(path: Path, info: ValidationInfo) -> Path:
    """Relative paths are taken from the recipe's folder, if it has one."""
    try:
        path = path.expanduser()
    except RuntimeError:
        raise PydanticCustomError("no_home", "no user of that name has a home folder; write it out") from None
    folder = folder_of(info)
    return path if path.is_absolute() or folder is None else (folder / path).resolve()


def folder_of(info: ValidationInfo) -> Path | None:
    """The recipe's own folder; None for plain values without one."""
    folder: Path | None = (info.context or {}).get("folder")
    return folder


Words = Annotated[str, AfterValidator(same_text)]  # of captions and prompts, spelt as those are when read
UserPath = Annotated[Path, BeforeValidator(_not_blank), AfterValidator(_from_folder)]


class Section(BaseModel):
    """A table of the recipe: typed, frozen, and refusing keys it does not know."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    resume_safe: ClassVar[frozenset[str] | Literal["all"]] = frozenset()
    """The options that a resume may change, because what is learned stays the same but for rounding."""

    @classmethod
    def is_resume_safe(cls, option: str) -> bool:
        return cls.resume_safe == "all" or option in cls.resume_safe
