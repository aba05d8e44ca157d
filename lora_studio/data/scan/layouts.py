"""Which files belong to a folder of images: plain, recursive, `<repeats>_<name>` subfolders, or listed.

And which of them the user leaves out: `ExcludeList`."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from lora_studio.data.images import (
    METADATA_NAMES,
    UnreadableFile,
    decode_text,
    is_image,
    is_junk,
    is_metadata,
    read_bytes,
    same_name,
)
from lora_studio.data.images.decode import FORMATS_IN_WORDS
from lora_studio.data.manifest import FOLDER_NAME, Overrides
from lora_studio.data.scan.metadata import MAX_REPEATS, read_metadata
from lora_studio.errors import DatasetError, preview_names
from lora_studio.registry import did_you_mean

_REPEATS_AND_NAME = re.compile(r"(\d+)_(.*\S)")  # the layout of kohya's scripts
MASK_FOLDER = "the folder of masks"
_NOT_SEARCHED = "a folder; subfolders are searched only with recursive = true"


@dataclass(frozen=True)
class FoundFile:
    """A file, or a folder that was not entered."""

    path: Path  # absolute
    name: str  # relative to the source folder, with "/" on every system
    repeats: int = 1
    caption: str = ""
    captioned_by: str = ""
    overrides: Overrides = Overrides()  # noqa: RUF009 (frozen)
    skipped: str = ""  # why it is not looked at; empty if it is


def find(folder: Path, *, recursive: bool = False, masks: Path | None = None) -> list[FoundFile]:
    """What lies in the folder, by name; the folder of masks is left out.

    Subfolders are entered if `recursive`, or if they are called `<repeats>_<name>` and no image lies beside
    them; other files that a metadata.jsonl or .csv lists are found, too. Lists of captions are read and not
    found themselves. Raises DatasetError for a folder that is missing or empty and for invalid lists.
    """
    folder = folder.absolute()
    top = _entries(folder)
    sets = {} if recursive else _repeat_folders(top)
    masks = masks and masks.resolve()

    def refusal(path: Path) -> str:
        if path.resolve() == masks:
            return MASK_FOLDER
        if not recursive and path.name not in sets:
            return _NOT_SEARCHED
        return "a link to a folder; links are not followed" if path.is_symlink() and recursive else ""

    found = {one.name: one for one in _search(folder, "", refusal)}
    lists = [one for one in found.values() if not one.skipped and is_metadata(one.path.name)]
    for one in lists:
        del found[one.name]
    found = {name: _in_set(one, sets) for name, one in found.items()}
    return sorted(_with_listed(found, folder, _listed(lists)), key=lambda one: one.name)


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
    advice = f"set data.images to a folder of {FORMATS_IN_WORDS} images"
    raise DatasetError(f"the folder of images {folder} {reason}; {advice}.") from None


def _search(folder: Path, prefix: str, refusal: Callable[[Path], str]) -> Iterator[FoundFile]:
    """Everything in the folder and, unless refused, in its subfolders."""
    for path in folder.iterdir():
        found = FoundFile(path, prefix + path.name)
        if is_junk(path.name):
            yield replace(found, skipped="junk")
        elif not _is(Path.is_dir, path):
            yield found
        elif reason := refusal(path):
            yield replace(found, skipped=reason)
        else:
            try:
                yield from list(_search(path, f"{found.name}/", refusal)) or [replace(found, skipped="empty")]
            except OSError as error:
                yield replace(found, skipped=f"cannot be read: {error.strerror}")


def _repeat_folders(entries: list[Path]) -> dict[str, tuple[int, str]]:
    """Folder name -> repeats and what it shows, if the folder is laid out so. Raises DatasetError."""
    if any(is_image(path.name) and not is_junk(path.name) and _is(Path.is_file, path) for path in entries):
        return {}
    sets = {}
    for path in entries:
        if (match := _REPEATS_AND_NAME.fullmatch(path.name)) and _is(Path.is_dir, path):
            repeats = int(match[1])
            if not 1 <= repeats <= MAX_REPEATS:
                raise DatasetError(
                    f"the name of the folder {path} asks for {repeats} repeats; 1 to {MAX_REPEATS} are "
                    "possible: rename it, or set recursive = true if the number is no repeat count."
                )
            sets[path.name] = (repeats, match[2])
    return sets


def _in_set(found: FoundFile, sets: dict[str, tuple[int, str]]) -> FoundFile:
    """With the repeats and, as caption, the name of the `<repeats>_<name>` folder that it lies in."""
    first, slash, _ = found.name.partition("/")
    if not slash or first not in sets:
        return found
    repeats, name = sets[first]
    return replace(found, repeats=repeats, caption=name, captioned_by=FOLDER_NAME)


@dataclass(frozen=True)
class _Listed:
    path: PurePosixPath  # relative to the source folder
    caption: str
    overrides: Overrides
    source: str  # the metadata file's name


def _listed(lists: list[FoundFile]) -> list[_Listed]:
    """What the metadata files say. Raises DatasetError for invalid ones and for two in one folder."""
    seen: set[PurePosixPath] = set()
    listed = []
    for one in lists:
        folder = PurePosixPath(one.name).parent
        if folder in seen:
            both = " and ".join(METADATA_NAMES)
            raise DatasetError(f"{one.path.parent} holds both {both}; remove or rename one of them.")
        seen.add(folder)
        source = one.path.name.lower()
        for written, line in read_metadata(one.path).items():
            path = folder / written.replace("\\", "/")
            listed.append(_Listed(path, line.caption, line.overrides, source))
    return listed


def _with_listed(found: dict[str, FoundFile], folder: Path, listed: list[_Listed]) -> list[FoundFile]:
    """Listed files get what is said of them; those in folders that were not entered are found as well."""
    names = {same_name(name): name for name in found}
    for line in listed:
        name = same_name(str(line.path))
        name = names.get(name, name)
        one = found.get(name) or FoundFile(folder / line.path, name)
        if line.path.is_absolute() or ".." in line.path.parts:
            one = replace(one, skipped=f"listed in {line.source}, but outside of the folder")
        elif name not in found and not _is(Path.is_file, one.path):
            one = replace(one, skipped=f"listed in {line.source}, but there is no such file")
        elif not one.skipped:
            who = line.source if line.caption else one.captioned_by
            caption = line.caption or one.caption
            one = replace(one, caption=caption, captioned_by=who, overrides=line.overrides)
        found[name] = one
        for parent in map(str, line.path.parents):
            if parent in found and found[parent].skipped == _NOT_SEARCHED:
                reason = f"a folder; only what {line.source} lists in it is read"
                found[parent] = replace(found[parent], skipped=reason)
    return list(found.values())


def _is(kind: Callable[[Path], bool], path: Path) -> bool:
    """Path.is_file or Path.is_dir, which raise where nothing may be looked at or no file can be called so."""
    try:
        return kind(path)
    except (OSError, ValueError):
        return False


THE_LIST = "the list of files to leave out"
_LEFT_OUT = "left out by "


@dataclass(frozen=True)
class ExcludeList:
    name: str = ""  # of the file; it stands in the reason of every file left out
    entries: tuple[str, ...] = ()

    @property
    def reason(self) -> str:
        return f"{_LEFT_OUT}{self.name}"

    def below(self, label: str) -> ExcludeList:
        """The same for one of several sources, whose names begin with `label` for people: "style/"."""
        inside = tuple(entry.removeprefix(label) for entry in self.entries if entry.startswith(label))
        return ExcludeList(self.name, (*self.entries, *inside)) if label else self

    def chosen(self, names: Iterable[str]) -> frozenset[str]:
        """Which of a source's files are left out: by relative path, else by the bare name in any folder."""
        by_path: dict[str, str] = {}
        by_name: dict[str, list[str]] = {}
        for name in names:
            by_path[same_name(name)] = name
            by_name.setdefault(same_name(PurePosixPath(name).name), []).append(name)
        found: list[str] = []
        for entry in self.entries:
            found += [by_path[entry]] if entry in by_path else by_name.get(entry, [])
        return frozenset(found)

    def unknown(self, names: Iterable[str]) -> list[str]:
        """The entries that are the path or the name of none of `names`."""
        known = {same_name(form) for name in names for form in (name, *_shorter(name))}
        return [entry for entry in self.entries if entry not in known]

    def check(self, names: Iterable[str]) -> None:
        """Raise DatasetError that lists the entries of which there is no file among `names`."""
        names = list(names)
        if unknown := self.unknown(names):
            hint = did_you_mean(unknown[0], names).rstrip("?")
            raise DatasetError(
                f"{self.name} lists {preview_names(unknown)}, but there is no such image{hint}; "
                "correct or remove the line."
            )


def is_by_choice(reason: str) -> bool:
    """Whether a record's reason to be excluded is such a list."""
    return reason == THE_LIST or reason.startswith(_LEFT_OUT)


def read_exclude(path: Path) -> ExcludeList:
    """The list in the file. Raises DatasetError if there is none or it is no text."""
    try:
        lines = decode_text(read_bytes(path)).split("\n")
    except UnicodeDecodeError:
        raise DatasetError(f"{path} is neither UTF-8 nor UTF-16; save it as UTF-8.") from None
    except UnreadableFile as reason:
        raise DatasetError(
            f"the list {path} cannot be used ({reason}); set data.exclude to a text file of file names, "
            "one a line."
        ) from None
    entries = (line.strip() for line in lines)
    wanted = (entry for entry in entries if entry and not entry.startswith("#"))
    return ExcludeList(path.name, tuple(dict.fromkeys(_written(entry) for entry in wanted)))


def _written(entry: str) -> str:
    """As names are spelled in records: with "/" and without a leading "./"."""
    return same_name(entry.replace("\\", "/").removeprefix("./"))


def _shorter(name: str) -> list[str]:
    """ "style/a/b.png" -> "a/b.png", "b.png": what is left without folders in front."""
    parts = PurePosixPath(name).parts
    return ["/".join(parts[start:]) for start in range(1, len(parts))]
