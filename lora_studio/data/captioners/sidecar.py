"""Captions from the text files beside the pictures: `cat.txt` or `cat.caption` for `cat.jpg`."""

from __future__ import annotations

import codecs
from dataclasses import replace
from pathlib import Path

from lora_studio.data.captions.ledger import Ledger
from lora_studio.data.manifest import Manifest, Record
from lora_studio.data.names import caption_files, some, stem_key
from lora_studio.errors import DatasetError


def read_captions(manifest: Manifest, *, instance_prompt: str = "") -> Manifest:
    """The manifest with captions from the files beside the pictures, else with `instance_prompt`.

    A caption that `lora-studio caption` wrote and nobody edited names its captioner as the author.
    A hand-written caption wins; an empty file counts as none. Raises DatasetError that names the caption
    files that are no text, or the pictures without a caption.
    """
    instance_prompt = instance_prompt.strip()
    beside = {
        folder: caption_files(folder) for folder in {Path(record.path).parent for record in manifest.used}
    }
    ledgers = {folder: Ledger(folder) for folder in beside}
    faults: list[str] = []
    records = []
    for record in manifest.records:
        if not record.excluded:
            path = Path(record.path)
            files = beside[path.parent].get(stem_key(record.name), [])
            caption, author = _first_caption(files, ledgers[path.parent], faults)
            record = _captioned(record, caption, author, instance_prompt)
        records.append(record)
    missing = [record.name for record in records if not record.excluded and not record.caption]
    if faults:
        raise DatasetError(f"caption files cannot be read: {some(faults)}; save them as UTF-8 text.")
    if missing:
        count = f"{len(missing)} of {len(manifest.used)} pictures have no caption: {some(missing)}"
        advice = "write what is in each into a .txt file of the same name, or set data.instance_prompt"
        raise DatasetError(f"{count}; {advice}.")
    return Manifest(tuple(records))


def decode_caption(data: bytes) -> str:
    """A caption file's text in one line. Raises UnicodeDecodeError unless it is UTF-8 or marked UTF-16."""
    utf16 = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))  # Windows Notepad's "Unicode"
    text = data.decode("utf-16" if utf16 else "utf-8-sig")
    return " ".join(line.strip() for line in text.splitlines() if line.strip())


def _captioned(record: Record, caption: str, author: str, instance_prompt: str) -> Record:
    if caption:
        return replace(record, caption=caption, captioned_by=author)
    return replace(record, caption=instance_prompt, captioned_by="instance prompt" if instance_prompt else "")


def _first_caption(paths: list[Path], ledger: Ledger, faults: list[str]) -> tuple[str, str]:
    """The first caption that is not empty and who wrote it; what goes wrong is added to `faults`."""
    for path in paths:
        try:
            data = path.read_bytes()
            caption = decode_caption(data)
        except UnicodeDecodeError:
            faults.append(f"{path.name} (neither UTF-8 nor UTF-16)")
            continue
        except OSError as error:
            faults.append(f"{path.name} ({error.strerror or error})")
            continue
        if caption:
            entry = ledger.author(path, data)
            return caption, entry.author if entry else "sidecar"
    return "", ""
