"""Files dropped on the page: copied into a folder of the project, under limits, with harmless names."""

from __future__ import annotations

import os
import re
import unicodedata
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from lora_studio.data.captions import MAX_CAPTION_BYTES
from lora_studio.data.images import UnreadableFile, decode_text, is_caption, is_image, is_junk, is_metadata
from lora_studio.data.images.decode import FORMATS_IN_WORDS, decode
from lora_studio.errors import DatasetError
from lora_studio.files import write_atomically
from lora_studio.recipe.section import file_name_fault
from lora_studio.text import shown
from lora_studio.web.settings import IMAGE_BYTES, MOST_UPLOADS

MOST_BYTES_IN_ALL = 20_000_000_000
_LONGEST = 120  # bytes of a name without its ending
_ODD = re.compile(r'[<>:"/\\|?*\x00-\x1f\x7f-\x9f]|[\ud800-\udfff]')
_UNSEEN = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}


def harmless_name(given: str) -> str:
    """A name that every system takes and that leads nowhere; Unicode stays. DatasetError: none is left."""
    last = PurePosixPath(given.replace("\\", "/")).name
    plain = unicodedata.normalize("NFC", _ODD.sub("_", last))
    plain = "".join(one for one in plain if unicodedata.category(one) not in _UNSEEN)
    stem, ending = os.path.splitext(plain.strip(" ."))
    if stem.lower().endswith(".mask"):
        stem, ending = stem[:-5], f".mask{ending}"
    stem = stem.encode()[:_LONGEST].decode("utf-8", "ignore").strip(" .")
    if not stem or is_junk(last) or is_junk(plain) or file_name_fault(stem).startswith("which cannot"):
        raise DatasetError(
            f"{shown(given, limit=100)!r} cannot be the name of a file that is dropped here; rename it."
        )
    return stem + ending.lower()


@dataclass
class DropFolder:
    """A folder of the project that takes what is dropped; nothing that is there is replaced."""

    folder: Path
    taken: list[str] = field(default_factory=list)
    num_bytes: int = 0

    def take(self, given: str, data: bytes) -> str:
        """Keep an image, a caption, a mask or a list of captions -> its name in the folder.

        Raises DatasetError for anything else, damaged images, too much, and what the disk refuses.
        """
        name = harmless_name(given)
        if len(data) > IMAGE_BYTES or self.num_bytes + len(data) > MOST_BYTES_IN_ALL:
            limit = f"{IMAGE_BYTES // 10**6} MB, and {MOST_BYTES_IN_ALL // 10**9} GB in all"
            raise DatasetError(
                f"{shown(name)} is too large; at most {limit} are taken here: name the folder instead."
            )
        self._check(name, data)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            there = {one.casefold() for one in os.listdir(self.folder)}
            if len(there) >= MOST_UPLOADS:
                raise DatasetError(
                    f"at most {MOST_UPLOADS:,} files are taken here; put them into a folder and name that."
                )
            name = _free(name, there)
            write_atomically(self.folder / name, data)
        except OSError as error:
            reason = error.strerror or error
            raise DatasetError(f"{shown(name)} cannot be written ({reason}); free some space.") from None
        self.taken.append(name)
        self.num_bytes += len(data)
        return name

    def _check(self, name: str, data: bytes) -> None:
        if is_image(name):
            try:
                decode(data, enough_pixels=1)
            except UnreadableFile as reason:
                raise DatasetError(f"{shown(name)} is not taken: {reason}.") from None
        elif is_caption(name) or is_metadata(name):
            try:
                decode_text(data)
            except UnicodeDecodeError:
                raise DatasetError(f"{shown(name)} is not taken: it is no UTF-8 text.") from None
            if is_caption(name) and len(data) > MAX_CAPTION_BYTES:
                raise DatasetError(f"{shown(name)} is not taken: it is larger than any caption.")
        else:
            what = f"{FORMATS_IN_WORDS} images, .txt captions and .mask.png masks"
            raise DatasetError(f"{shown(name)} is not taken: {what} are.")


def new_folder(project: Path, name: str) -> Path:
    """images/NAME in the project's folder, with a number where that is there."""
    base = project / "images" / harmless_name(name)
    places = (base if not number else base.with_name(f"{base.name}_{number}") for number in range(2000))
    return next(one for one in places if not os.path.lexists(one))


def _free(name: str, there: set[str]) -> str:
    """A caption keeps the name that its image was given if it was dropped behind it."""
    if name.casefold() not in there:
        return name
    stem, ending = os.path.splitext(name)
    return next(one for n in range(2, 10_000) if (one := f"{stem}_{n}{ending}").casefold() not in there)
