"""What every table of the recipe has in common: its values are finite, of a sensible size and plain text."""

from __future__ import annotations

import re
import unicodedata
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, get_args

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from lora_studio.text import same_text

MOST_STEPS = 1_000_000  # years on a CPU, weeks on a GPU
MOST_SEED = 10**18
_MOST_LETTERS, _MOST_ENTRIES = 20_000, 1000  # of a text and of a list
_LEAST = 1e-30  # smaller numbers have fewer digits in float32, or are 0 there
_PART, _PATH = 255, 4096  # bytes of a name and of a path, on every system
_WINDOWS_NAMES = {
    "con",
    "prn",
    "aux",
    "nul",
    *(f"{port}{n}" for port in ("com", "lpt") for n in range(1, 10)),
}
_RUN_FILES = {"checkpoints", "doctor", "exports", "holdout", "inputs", "lock", "loss", "manifest", "metrics"}
_RUN_FILES |= {"best", "choice", "evaluation", "grid", "strengths"}
_RUN_FILES |= {"previews", "readme", "recipe", "summary", "timesteps", "tracking", "validation", "verify"}
_BREAK = re.compile("[\t\n\r\u2028\u2029]+")
_BREAKS = {"Cc", "Zl", "Zp"}  # Unicode's categories of control characters and breaks
WRITE_PATHS = "write paths with / or in 'single quotes'"


def _not_blank(value: Any) -> Any:
    """An empty path means the folder that one happens to be in: other trainers searched it for images."""
    if isinstance(value, str) and not value.strip():
        raise PydanticCustomError("blank_path", "name a folder or a file, or leave the key out")
    return value


def _from_folder(path: Path, info: ValidationInfo) -> Path:
    """Relative paths are taken from the recipe's folder, if it has one."""
    check_path(path)
    try:
        path = path.expanduser()
    except RuntimeError:
        raise PydanticCustomError("no_home", "no user of that name has a home folder; write it out") from None
    folder = folder_of(info)
    place = path if path.is_absolute() or folder is None else (folder / path).resolve()
    if not place.exists():
        refuse_escapes(str(path))
    return place


def folder_of(info: ValidationInfo) -> Path | None:
    """The recipe's own folder; None for plain values without one."""
    folder: Path | None = (info.context or {}).get("folder")
    return folder


def check_path(path: Path) -> None:
    """Raise what pydantic turns into a fault if no system has so long a path, or none with such letters."""
    longest = max((len(part.encode("utf-8", "replace")) for part in path.parts), default=0)
    if longest > _PART or len(str(path)) > _PATH:
        what = f"a name has at most {_PART} letters, and a path {_PATH}"
        raise PydanticCustomError("long_path", f"no system has so long a path: {what}")
    if fault := _size_fault(path):
        raise PydanticCustomError("size", fault)


def refuse_escapes(path: str) -> None:
    """Of a path that is not there: TOML may have read it otherwise than it was meant."""
    if any(letter in path for letter in "\b\t\n\f\r"):
        raise PydanticCustomError(
            "escaped_path",
            f'it holds a tab or a line break, which "\\t" and "\\n" are in TOML; {WRITE_PATHS}',
        )


def file_name_fault(name: str) -> str:
    """Why no LoRA file in a run's folder can have this name, without its ending; empty: it can."""
    if name.partition(".")[0].casefold() in _WINDOWS_NAMES or name.endswith("."):
        return "which cannot be a file on every system"
    return "which a run's own files have" if name.casefold() in _RUN_FILES else ""


def _one_line(text: str) -> str:
    """Spelt as captions are when read; these are made of lines, and a control character is no word."""
    if any(unicodedata.category(letter) in _BREAKS for letter in text):
        what = "it holds a line break or a control character; write one line of text"
        raise PydanticCustomError("no_line", what)
    return same_text(text)


def _blank_breaks(text: Any) -> Any:
    """Lines of a prompt, as TOML's triple quotes make them, are one to a tokenizer; so they are to us."""
    lines = _BREAK.split(text) if isinstance(text, str) else []
    return " ".join(filter(None, (line.strip(" ") for line in lines))) if len(lines) > 1 else text


Words = Annotated[str, AfterValidator(_one_line)]  # of captions
Prompt = Annotated[Words, BeforeValidator(_blank_breaks)]
UserPath = Annotated[Path, BeforeValidator(_not_blank), AfterValidator(_from_folder)]


class Section(BaseModel):
    """A table of the recipe: typed, frozen, and refusing keys it does not know."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    resume_safe: ClassVar[frozenset[str] | Literal["all"]] = frozenset()
    """The options that a resume may change, because what is learned stays the same but for rounding."""

    @classmethod
    def is_resume_safe(cls, option: str) -> bool:
        return cls.resume_safe == "all" or option in cls.resume_safe

    @field_validator("*", mode="before")
    @classmethod
    def _yes_is_no_number(cls, value: Any, info: ValidationInfo) -> Any:
        """Python counts true as 1, and so does pydantic."""
        values = value if isinstance(value, list | tuple) else (value,)
        if any(isinstance(one, bool) for one in values):
            kinds = kinds_of(cls.model_fields[str(info.field_name)].annotation)
            if kinds & {int, float} and not kinds & {bool, Any}:
                raise PydanticCustomError("yes_or_no", "it must be a number, not true or false")
        return value

    @field_validator("*", mode="after")
    @classmethod
    def _of_sensible_size(cls, value: Any) -> Any:
        if fault := _size_fault(value):
            raise PydanticCustomError("size", fault)
        return value


def kinds_of(annotation: Any) -> set[Any]:
    """The types that an annotation is made of."""
    return {annotation} | {kind for part in get_args(annotation) for kind in kinds_of(part)}


def _size_fault(value: Any) -> str:
    """What no option can have: of numbers, texts and lists of them; empty if it is fine."""
    if isinstance(value, str | Path):
        text = str(value)
        if len(text) > _MOST_LETTERS:
            return f"it has {len(text)} letters; {_MOST_LETTERS} are enough for everything"
        if "\0" in text or any("\ud800" <= letter <= "\udfff" for letter in text):
            return "it holds what is no text (UTF-8); write it anew, or rename what it names"
    if isinstance(value, float) and value and not _LEAST <= abs(value) <= 1 / _LEAST:
        return f"give 0, or a number that float32 can hold, of {_LEAST:g} to {1 / _LEAST:g}"
    if isinstance(value, int) and abs(value) >= 2**63:
        return "give a number of less than 19 digits"
    if isinstance(value, tuple | dict):
        if len(value) > _MOST_ENTRIES:
            return f"it has {len(value)} entries; at most {_MOST_ENTRIES} are taken"
        inner = [*value, *value.values()] if isinstance(value, dict) else value
        return next(filter(None, map(_size_fault, inner)), "")
    return ""
