"""A list of files to leave out: names or relative paths, one a line; lines that begin with # are remarks."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from lora_studio.data.images.files import UnreadableFile, decode_text, read_bytes
from lora_studio.data.images.names import same_name
from lora_studio.errors import DatasetError, preview_names
from lora_studio.registry import did_you_mean

THE_LIST = "the list of files to leave out"
_LEFT_OUT = "left out by "


@dataclass(frozen=True)
class ExcludeList:
    """What such a file says."""

    name: str = ""  # of the file; it stands in the reason of every file left out
    entries: tuple[str, ...] = ()

    @property
    def reason(self) -> str:
        """Why a file is left out, for its record."""
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
