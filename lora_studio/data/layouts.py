"""Which files belong to a folder of pictures: plain, recursive, `<repeats>_<name>` subfolders, or listed."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from lora_studio.data.metadata import read_metadata
from lora_studio.data.names import METADATA_NAMES, is_junk, is_metadata, is_picture, same_name
from lora_studio.data.pictures import FORMATS_IN_WORDS
from lora_studio.errors import DatasetError

MAX_REPEATS = 1000
FOLDER_NAME = "folder name"  # who wrote a caption that is the name of a `<repeats>_<name>` folder
_REPEATS_AND_NAME = re.compile(r"(\d+)_(.*\S)")  # the layout of kohya's scripts
_NOT_SEARCHED = "a folder; subfolders are searched only with recursive = true"


@dataclass(frozen=True)
class Found:
    """A file, or a folder that was not entered."""

    path: Path  # absolute
    name: str  # relative to the source folder, with "/" on every system
    repeats: int = 1
    caption: str = ""
    captioned_by: str = ""
    skipped: str = ""  # why it is not looked at; empty if it is


def find(folder: Path, *, recursive: bool = False, masks: Path | None = None) -> list[Found]:
    """What lies in the folder, by name; the folder of masks is left out.

    Subfolders are entered if `recursive`, or if they are called `<repeats>_<name>` and no picture lies beside
    them; other files that a metadata.jsonl or .csv lists are found, too. Lists of captions are read and not
    found themselves. Raises DatasetError for a folder that is missing or empty and for faulty lists.
    """
    folder = folder.absolute()
    top = _entries(folder)
    sets = {} if recursive else _repeat_folders(top)
    masks = masks and masks.resolve()

    def refusal(path: Path) -> str:
        if path.resolve() == masks:
            return "the folder of masks"
        if not recursive and path.name not in sets:
            return _NOT_SEARCHED
        return "a link to a folder; links are not followed" if path.is_symlink() and recursive else ""

    found = {one.name: one for one in _search(folder, "", refusal)}
    lists = [one for one in found.values() if not one.skipped and is_metadata(one.path.name)]
    found = {name: _in_set(one, sets) for name, one in found.items() if one not in lists}
    for folder_name, listed in _lists(lists).items():
        _add_listed(found, folder / folder_name, folder_name, listed)
    return sorted(found.values(), key=lambda one: one.name)


def _entries(folder: Path) -> list[Path]:
    """What lies in the folder. Raises DatasetError if it cannot be looked at or is empty."""
    try:
        entries = list(folder.iterdir())
    except FileNotFoundError:
        reason = "does not exist"
    except NotADirectoryError:
        reason = "is not a folder"
    except OSError as error:
        reason = f"cannot be read: {error.strerror}"
    else:
        if entries:
            return entries
        reason = "is empty"
    advice = f"set data.images to a folder of {FORMATS_IN_WORDS} pictures"
    raise DatasetError(f"the folder of pictures {folder} {reason}; {advice}.") from None


def _search(folder: Path, prefix: str, refusal: Callable[[Path], str]) -> Iterator[Found]:
    """Everything in the folder and, unless refused, in its subfolders."""
    for path in folder.iterdir():
        found = Found(path, prefix + path.name)
        if is_junk(path.name):
            yield replace(found, skipped="junk")
        elif not path.is_dir():
            yield found
        elif reason := refusal(path):
            yield replace(found, skipped=reason)
        else:
            try:
                yield from list(_search(path, f"{found.name}/", refusal))
            except OSError as error:
                yield replace(found, skipped=f"cannot be read: {error.strerror}")


def _repeat_folders(entries: list[Path]) -> dict[str, tuple[int, str]]:
    """Folder name -> repeats and what it shows, if the folder is laid out so. Raises DatasetError."""
    if any(is_picture(path.name) and not is_junk(path.name) and path.is_file() for path in entries):
        return {}
    sets = {}
    for path in entries:
        if (match := _REPEATS_AND_NAME.fullmatch(path.name)) and path.is_dir():
            repeats = int(match[1])
            if not 1 <= repeats <= MAX_REPEATS:
                raise DatasetError(
                    f"the name of the folder {path} asks for {repeats} repeats; 1 to {MAX_REPEATS} are "
                    "possible: rename it, or set recursive = true if the number is no repeat count."
                )
            sets[path.name] = (repeats, match[2])
    return sets


def _in_set(found: Found, sets: dict[str, tuple[int, str]]) -> Found:
    """With the repeats and, as caption, the name of the `<repeats>_<name>` folder that it lies in."""
    first, slash, _ = found.name.partition("/")
    if not slash or first not in sets:
        return found
    repeats, name = sets[first]
    return replace(found, repeats=repeats, caption=name, captioned_by=FOLDER_NAME)


def _lists(files: list[Found]) -> dict[str, dict[str, tuple[str, str]]]:
    """Folder -> file name -> caption and the name of the list it stands in."""
    lists: dict[str, dict[str, tuple[str, str]]] = {}
    for one in sorted(files, key=lambda file: file.name):
        folder = one.name.rpartition("/")[0]
        if folder in lists:
            both = " and ".join(METADATA_NAMES)
            raise DatasetError(f"{one.path.parent} holds both {both}; remove or rename one of them.")
        source = one.path.name.lower()
        lists[folder] = {name: (text, source) for name, text in read_metadata(one.path).items()}
    return lists


def _add_listed(
    found: dict[str, Found], folder: Path, prefix: str, listed: dict[str, tuple[str, str]]
) -> None:
    """Give the listed files their captions; those in folders that were not entered are added to `found`."""
    names = {same_name(name): name for name in found}
    for written, (caption, source) in listed.items():
        relative = PurePosixPath(written.replace("\\", "/"))
        name = same_name(str(PurePosixPath(prefix) / relative))
        name = names.get(name, name)
        one = found.get(name) or Found(folder / relative, name)
        if relative.is_absolute() or ".." in relative.parts:
            one = replace(one, skipped=f"listed in {source}, but outside of the folder")
        elif name not in found and not _is_file(one.path):
            one = replace(one, skipped=f"listed in {source}, but there is no such file")
        for parent in PurePosixPath(name).parents:
            if (above := found.get(str(parent))) and above.skipped == _NOT_SEARCHED:
                found[str(parent)] = replace(
                    above, skipped=f"a folder; only what {source} lists in it is read"
                )
        if caption and not one.skipped:
            one = replace(one, caption=caption, captioned_by=source)
        found[name] = one


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a name that no file can have, such as one of 300 characters
        return False
