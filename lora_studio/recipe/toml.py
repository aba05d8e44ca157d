"""TOML as users write it: plain values, or a sentence that says what the text is instead."""

from __future__ import annotations

import codecs
import re
import tomllib
from pathlib import Path
from typing import Any

from lora_studio.errors import RecipeError
from lora_studio.recipe.section import WRITE_PATHS

_MOST_BYTES = 1_000_000  # a recipe has some thousand
_DEEPEST = 8  # tables and lists within each other; recipes have three
_KEY = r"""(?:[\w-]+|"[^"\n]*"|'[^'\n]*')[ \t]*"""
_DEEP_KEY = re.compile(rf"(?:^|[\[{{,])[ \t]*(?:{_KEY}\.[ \t]*){{{_DEEPEST}}}", re.MULTILINE)
_DRIVE = re.compile(r'"[A-Za-z]:\\')
_YAML = re.compile(r"[\s-]*[\w-]+:(?:\s|$)")
_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_FORMATS = {".json": "JSON", ".yaml": "YAML", ".yml": "YAML"}


def read_toml(path: Path) -> dict[str, Any]:
    """The values in a file, or whatever can be read like one. Raises RecipeError, in a sentence."""
    if path.is_dir():
        raise RecipeError(
            f"{path} is a folder, not a recipe; for a folder of images: lora-studio start {path}, for a "
            f"run's folder: lora-studio train --resume {path}."
        )
    if path.exists() and not path.is_file():  # opening a pipe would wait for ever, and a device has no end
        raise RecipeError(f"{path} is no file but a pipe or a device; give the path of a .toml file.")
    try:
        with path.open("rb") as file:
            content = file.read(_MOST_BYTES + 1)
    except FileNotFoundError:
        raise RecipeError(f"there is no recipe at {path}; give the path of a .toml file.") from None
    except (OSError, ValueError) as error:
        raise _no_text(path, getattr(error, "strerror", None) or error) from None
    if len(content) > _MOST_BYTES:
        raise RecipeError(f"{path} has more than {_MOST_BYTES:,} bytes, as no recipe has; give a .toml file.")
    if content.startswith(_UTF16):
        raise _no_text(path, "it is UTF-16, as PowerShell's > writes; save it as UTF-8")
    try:
        text = content.decode("utf-8-sig")
        return plain_values(text, str(path))
    except UnicodeDecodeError as error:
        raise _no_text(path, error) from None
    except tomllib.TOMLDecodeError as error:
        raise _no_toml(path, text, str(error)) from None


def plain_values(text: str, source: str) -> dict[str, Any]:
    """Raises TOMLDecodeError, and RecipeError for what would take minutes or could not be handled."""
    try:
        if _DEEP_KEY.search(text):  # tomllib takes a minute for many
            raise RecursionError
        values = tomllib.loads(text)
        if not _is_flat(values, _DEEPEST):
            raise RecursionError
    except tomllib.TOMLDecodeError:
        raise
    except RecursionError:
        what = f"tables or lists within each other, more than {_DEEPEST} deep"
        raise RecipeError(f"{source} has {what}; no option has that.") from None
    except ValueError:  # of more digits than Python reads
        raise RecipeError(f"{source} has a number of thousands of digits; no option takes that.") from None
    return values


def _no_toml(path: Path, text: str, why: str) -> RecipeError:
    """Of another trainer's format its name is said, and of a path in double quotes how it is written."""
    lines, found = text.splitlines(), re.search(r"at line (\d+)", why)
    line = lines[int(found[1]) - 1] if found and int(found[1]) <= len(lines) else ""
    other = "JSON" if text.lstrip().startswith("{") else _FORMATS.get(path.suffix.lower(), "")
    if other := other or ("YAML" if _YAML.match(line) or text.startswith("---") else ""):
        return RecipeError(
            f"{path} is {other}, as other trainers' settings are; a recipe is TOML: write one with "
            "lora-studio init; docs/migrate.md has the options' names here and there."
        )
    paths = f"; {WRITE_PATHS}" if "\\" in line or _DRIVE.search(text) else ""
    return RecipeError(f"{path} is not valid TOML: {why}{paths}.")


def _is_flat(value: Any, depth: int) -> bool:
    """Whether no more than so many tables and lists lie within each other."""
    if not isinstance(value, dict | list):
        return True
    return depth > 0 and all(
        _is_flat(one, depth - 1) for one in (value.values() if isinstance(value, dict) else value)
    )


def _no_text(path: Path, why: object) -> RecipeError:
    return RecipeError(f"{path} cannot be read as UTF-8 text ({why}); give the path of a .toml file.")
