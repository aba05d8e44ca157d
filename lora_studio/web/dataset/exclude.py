"""Images left out by the recipe: a list of names beside it, so that nothing is deleted."""

from __future__ import annotations

from pathlib import Path

from lora_studio.data.captions import split_encoding
from lora_studio.data.scan.layouts import read_exclude
from lora_studio.errors import DatasetError
from lora_studio.text import printable, same_text, shown
from lora_studio.web.dataset.backups import FileChange, SafeWriter, current
from lora_studio.web.forms.draft import RecipeDraft

_OPTION = "data.exclude"
_HEAD = "# Images that are left out, by name; remove a line and the image is used again.\n"


def exclude_file(draft: RecipeDraft, recipe: Path) -> Path:
    """The recipe's list; where it names none, the one that it would get."""
    named = draft.entry(_OPTION)
    return recipe.parent / (str(named) if named else f"{recipe.stem}_left_out.txt")


def set_left_out(recipe: Path, name: str, writer: SafeWriter, *, left_out: bool) -> None:
    """Put an image's name on the list of the recipe's file, or take it off; that and the list are kept first.

    Raises DatasetError for a name that no line can hold and for what cannot be written.
    """
    if (
        printable(name) != name
        or "\n" in name
        or "\r" in name
        or name != name.strip()
        or name.startswith("#")
    ):
        raise DatasetError(f"{shown(name)} cannot stand in a list of names; rename the file to leave it out.")
    before = current(recipe)
    if before is None:
        raise DatasetError(
            f"{shown(recipe.name)} is gone; save the recipe first, which says what is left out."
        )
    draft = RecipeDraft(before.decode("utf-8-sig", "replace"), recipe.parent)
    path = exclude_file(draft, recipe)
    data = current(path)
    listed = read_exclude(path).entries if data is not None else ()
    if (same_text(name) in listed) == left_out:
        return
    mark, encoding, text = split_encoding(data) if data is not None else (b"", "utf-8", _HEAD)
    if left_out:
        text = text + ("" if text.endswith("\n") or not text else "\n") + name + "\n"
    else:
        text = "".join(line for line in text.splitlines(keepends=True) if not _is_of(line, name))
    changes = [FileChange(path, data, mark + text.encode(encoding))]
    if draft.entry(_OPTION) is None and left_out:
        draft.set(_OPTION, path.name)
        changes.append(FileChange(recipe, before, draft.text.encode()))
    writer.write_all(changes)


def _is_of(line: str, name: str) -> bool:
    entry = same_text(line.strip().replace("\\", "/").removeprefix("./"))
    return entry == same_text(name)
