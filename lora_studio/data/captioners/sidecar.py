"""Captions from the text files beside the pictures: `cat.txt` or `cat.caption` for `cat.jpg`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from lora_studio.data.captions.ledger import Ledger
from lora_studio.data.files import UnreadableFile, read_bytes
from lora_studio.data.layouts import FOLDER_NAME
from lora_studio.data.manifest import Manifest, Record
from lora_studio.data.names import caption_files, some, stem_key
from lora_studio.data.text import decode_text
from lora_studio.errors import DatasetError

MAX_CAPTION_BYTES = 1_000_000


def read_captions(manifest: Manifest, *, instance_prompt: str = "") -> Manifest:
    """The manifest with captions from the files beside the pictures, else with `instance_prompt`.

    A caption beside its picture wins over one that a metadata file lists, and that over the instance prompt;
    the name of a `<repeats>_<name>` folder comes last. An empty file counts as none. Raises DatasetError that
    names the caption files that are no text, or the pictures without a caption.
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
    return " ".join(line.strip() for line in decode_text(data).splitlines() if line.strip())


def _captioned(record: Record, caption: str, author: str, instance_prompt: str) -> Record:
    if caption:
        return replace(record, caption=caption, captioned_by=author)
    if record.caption and (record.captioned_by != FOLDER_NAME or not instance_prompt):
        return record
    return replace(record, caption=instance_prompt, captioned_by="instance prompt" if instance_prompt else "")


def _first_caption(paths: list[Path], ledger: Ledger, faults: list[str]) -> tuple[str, str]:
    """The first caption that is not empty and who wrote it; what goes wrong is added to `faults`."""
    for path in paths:
        try:
            data = read_bytes(path, max_bytes=MAX_CAPTION_BYTES)
            caption = decode_caption(data)
        except UnicodeDecodeError:
            faults.append(f"{path.name} (neither UTF-8 nor UTF-16 with its mark)")
            continue
        except UnreadableFile as reason:
            faults.append(f"{path.name} ({reason})")
            continue
        if caption:
            entry = ledger.author(path, data)
            return caption, entry.author if entry else "sidecar"
    return "", ""
