"""Which files belong to a folder of images: plain, recursive, `<repeats>_<name>` subfolders, or listed.

And which of them the user leaves out: `ExcludeList`."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path, PurePosixPath

from lora_studio.data.images import (
    METADATA_NAMES,
    UnreadableFile,
    decode_text,
    is_image,
    is_junk,
    is_metadata,
    is_own,
    read_bytes,
)
from lora_studio.data.images.decode import FORMATS_IN_WORDS, LISTED
from lora_studio.data.manifest import FOLDER_NAME, Record
from lora_studio.data.scan.metadata import MAX_REPEATS, Line, read_metadata
from lora_studio.errors import DatasetError, preview_names
from lora_studio.registry import did_you_mean
from lora_studio.text import same_text

_REPEATS_AND_NAME = re.compile(r"(\d+)_(.*\S)")  # the layout of kohya's scripts
MASK_FOLDER = "the folder of masks"
_MOST_MISSING = 100  # listed files with a record each; the others are counted
_NOT_SEARCHED = "a folder; subfolders are searched only with recursive = true"


def find(folder: Path, *, recursive: bool = False, masks: Path | None = None) -> list[Record]:
    """What lies in the folder, by name; the folder of masks is left out.

    Subfolders are entered if `recursive`, or if they are called `<repeats>_<name>` and no image lies beside
    them; other files that a metadata.jsonl or .csv lists are found, too. What is not looked at is excluded.
    Lists of captions are read and not found themselves. Raises DatasetError for a folder that is missing or
    empty and for invalid lists.
    """
    folder = folder.absolute()
    top = _entries(folder)
    sets = {} if recursive else _repeat_folders(top)
    masks = masks and masks.resolve()

    def refusal(path: os.DirEntry[str]) -> str:
        if masks and Path(path).resolve() == masks:
            return MASK_FOLDER
        if not recursive and path.name not in sets:
            return _NOT_SEARCHED
        return "a link to a folder; links are not followed" if path.is_symlink() and recursive else ""

    found = {one.name: one for one in _search(folder, top, refusal)}
    lists = [one for one in found.values() if not one.excluded and is_metadata(Path(one.path).name)]
    for one in lists:
        del found[one.name]
    found = {name: _in_set(one, sets) for name, one in found.items()}
    return sorted(_with_listed(found, folder, lists), key=lambda one: one.name)


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    """What lies in the folder. Raises DatasetError if it cannot be looked at or is empty."""
    try:
        if entries := _inside(folder):
            return entries
        reason = "is empty"
    except FileNotFoundError:
        reason = "does not exist"
    except NotADirectoryError:
        reason = "is not a folder"
    except OSError as error:
        reason = f"cannot be read: {error.strerror}"
    advice = f"set data.images to a folder of {FORMATS_IN_WORDS} images"
    raise DatasetError(f"the folder of images {folder} {reason}; {advice}.") from None


def _inside(folder: str | Path) -> list[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        return [path for path in entries if not is_own(path.name)]


def _is_folder(path: os.DirEntry[str]) -> bool:
    """Without asking the disk about each file: what a folder lists says what it is, but for links."""
    return os.path.isdir(path) if path.is_symlink() else path.is_dir(follow_symlinks=False)


def _search(
    top: Path, entries: list[os.DirEntry[str]], refusal: Callable[[os.DirEntry[str]], str]
) -> Iterator[Record]:
    """Without recursion: folders may lie as deep as paths can be long."""
    waiting = [(Record(path=str(top), name=""), entries)]
    while waiting:
        folder, entries = waiting.pop()
        prefix = f"{folder.name}/" if folder.name else ""
        for path in entries:
            found = Record(path=path.path, name=prefix + path.name)
            if is_junk(path.name):
                yield replace(found, excluded="junk")
            elif not _is_folder(path):
                yield found
            elif reason := refusal(path):
                yield replace(found, excluded=reason)
            else:
                try:
                    inside = _inside(path.path)
                except OSError as error:
                    yield replace(found, excluded=f"cannot be read: {error.strerror}")
                    continue
                if inside:
                    waiting.append((found, inside))
                else:
                    yield replace(found, excluded="empty")


def _repeat_folders(entries: list[os.DirEntry[str]]) -> dict[str, tuple[int, str]]:
    """Folder name -> repeats and what it shows, if the folder is laid out so. Raises DatasetError."""
    if any(is_image(path.name) and not is_junk(path.name) and os.path.isfile(path) for path in entries):
        return {}
    sets = {}
    for path in entries:
        if (match := _REPEATS_AND_NAME.fullmatch(path.name)) and _is_folder(path):
            repeats = int(match[1])
            if not 1 <= repeats <= MAX_REPEATS:
                raise DatasetError(
                    f"the name of the folder {path.path} asks for {repeats} repeats; 1 to {MAX_REPEATS} are "
                    "possible: rename it, or set recursive = true if the number is no repeat count."
                )
            sets[path.name] = (repeats, match[2])
    return sets


def _in_set(found: Record, sets: dict[str, tuple[int, str]]) -> Record:
    """With the repeats and, as caption, the name of the `<repeats>_<name>` folder that it lies in."""
    first, slash, _ = found.name.partition("/")
    if not slash or first not in sets:
        return found
    repeats, name = sets[first]
    return replace(found, repeats=repeats, caption=same_text(name), captioned_by=FOLDER_NAME)


def _listed(lists: list[Record]) -> Iterator[tuple[str, PurePosixPath, Line]]:
    """Of each line the list's name, the file it names and what it says of that.

    Raises DatasetError for invalid lists and for two in one folder.
    """
    seen: set[PurePosixPath] = set()
    for one in lists:
        folder, path = PurePosixPath(one.name).parent, Path(one.path)
        if folder in seen:
            both = " and ".join(METADATA_NAMES)
            raise DatasetError(f"{path.parent} holds both {both}; remove or rename one of them.")
        seen.add(folder)
        for written, line in read_metadata(path).items():
            yield path.name.lower(), folder / written.replace("\\", "/"), line


def _with_listed(found: dict[str, Record], folder: Path, lists: list[Record]) -> list[Record]:
    """Listed files get what is said of them; those in folders that were not entered are found as well."""
    names = {same_text(name): name for name in found}
    outside, spelt = _leads_outside(folder), _as_spelt(folder)
    missing: Counter[str] = Counter()
    for source, path, line in _listed(lists):
        name = same_text(str(path))
        name = names.get(name, name)
        known, at = name in found, f"{folder}/{path}" if name.isascii() else spelt(path)
        is_outside = path.is_absolute() or ".." in path.parts or (not known and outside(path.parent))
        is_missing = not is_outside and not known and not os.path.isfile(at)
        missing[source] += is_missing
        if is_missing and missing[source] > _MOST_MISSING:
            continue
        one = found.get(name) or Record(path=at, name=name)
        if is_outside:
            one = replace(one, excluded=f"{LISTED}{source}, but outside of the folder")
        elif is_missing:
            one = replace(one, excluded=f"{LISTED}{source}, but there is no such file")
        elif not one.excluded:
            who, caption = (source, line.caption) if line.caption else (one.captioned_by, one.caption)
            one = replace(one, caption=caption, captioned_by=who, overrides=line.overrides)
        found[name] = one
        for parent in map(str, path.parents):
            if parent in found and found[parent].excluded == _NOT_SEARCHED:
                reason = f"a folder; only what {source} lists in it is read"
                found[parent] = replace(found[parent], excluded=reason)
    more = {source: count - _MOST_MISSING for source, count in missing.items() if count > _MOST_MISSING}
    others = [
        Record(str(folder / source), source, excluded=f"lists {count:,} more files that are not there")
        for source, count in more.items()
    ]
    return [*found.values(), *others]


def _leads_outside(folder: Path) -> Callable[[PurePosixPath], bool]:
    """What says whether a path below the folder goes through a link to another place."""
    real = folder.resolve()

    @cache
    def outside(below: PurePosixPath) -> bool:
        try:
            return not (folder / below).resolve().is_relative_to(real)
        except (OSError, RuntimeError, ValueError):  # too long, a loop of links, a NUL character
            return False  # there is no such file either

    return outside


def _as_spelt(folder: Path) -> Callable[[PurePosixPath], str]:
    """What gives the path on the disk of a name below the folder, where that may have other code points."""

    @cache
    def names_in(place: str) -> dict[str, str]:
        try:
            return {same_text(name): name for name in os.listdir(place)}
        except (OSError, ValueError):
            return {}

    def spelt(below: PurePosixPath) -> str:
        at = str(folder)
        for part in below.parts:
            at = os.path.join(at, names_in(at).get(same_text(part), part))
        return at

    return spelt


THE_LIST = "the list of files to leave out"
LEFT_OUT = "left out by "


@dataclass(frozen=True)
class ExcludeList:
    name: str = ""  # of the file; it stands in the reason of every file left out
    entries: tuple[str, ...] = ()

    def below(self, label: str) -> ExcludeList:
        """The same for one of several sources, whose names begin with `label` for people: "style/"."""
        inside = tuple(entry.removeprefix(label) for entry in self.entries if entry.startswith(label))
        return ExcludeList(self.name, (*self.entries, *inside)) if label else self

    def chosen(self, names: Iterable[str]) -> frozenset[str]:
        """Which of a source's files are left out: by relative path, else by the bare name in any folder."""
        if not self.entries:
            return frozenset()
        by_path: dict[str, str] = {}
        by_name: dict[str, list[str]] = {}
        for name in names:
            by_path[same_text(name)] = name
            by_name.setdefault(same_text(PurePosixPath(name).name), []).append(name)
        found: list[str] = []
        for entry in self.entries:
            found += [by_path[entry]] if entry in by_path else by_name.get(entry, [])
        return frozenset(found)

    def check(self, names: Iterable[str]) -> None:
        """Raise DatasetError that lists the entries of which there is no file among `names`."""
        names = list(names)
        split = [name.split("/") for name in names]  # of "style/a/b.png" also "a/b.png" and "b.png" are known
        known = {same_text("/".join(parts[start:])) for parts in split for start in range(len(parts))}
        if unknown := [entry for entry in self.entries if entry not in known]:
            what = f"lists {preview_names(unknown)}, but there is no such image"
            hint = did_you_mean(unknown[0], names).rstrip("?")
            raise DatasetError(f"{self.name} {what}{hint}; correct or remove the line.")


def is_by_choice(reason: str) -> bool:
    """Whether a record's reason to be excluded is such a list."""
    return reason == THE_LIST or reason.startswith(LEFT_OUT)


def read_exclude(path: Path) -> ExcludeList:
    """The list in the file. Raises DatasetError if there is none or it is no text."""
    try:
        lines = decode_text(read_bytes(path)).split("\n")
    except UnicodeDecodeError:
        raise DatasetError(f"{path} is neither UTF-8 nor UTF-16; save it as UTF-8.") from None
    except UnreadableFile as reason:
        advice = "set data.exclude to a text file of file names, one a line"
        raise DatasetError(f"the list {path} cannot be used ({reason}); {advice}.") from None
    entries = (line.strip() for line in lines)
    wanted = (entry for entry in entries if entry and not entry.startswith("#"))
    spelled = (same_text(entry.replace("\\", "/").removeprefix("./")) for entry in wanted)  # as in records
    return ExcludeList(path.name, tuple(dict.fromkeys(spelled)))
