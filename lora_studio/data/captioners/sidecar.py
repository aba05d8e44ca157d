"""Captions from the text files beside the images: `cat.txt` or `cat.caption` for `cat.jpg`."""

from __future__ import annotations

from dataclasses import replace

from lora_studio.data.captions.files import CaptionFile, find_captions
from lora_studio.data.captions.ledger import Ledgers
from lora_studio.data.manifest import Manifest, Record
from lora_studio.data.scan.layouts import FOLDER_NAME
from lora_studio.errors import DatasetError, preview_names


def read_captions(manifest: Manifest, *, instance_prompt: str = "") -> Manifest:
    """The manifest with captions from the files beside the images, else with `instance_prompt`.

    A caption beside its image wins over one that a metadata file lists, and that over the instance prompt;
    the name of a `<repeats>_<name>` folder comes last. An empty file counts as none. Raises DatasetError that
    names the caption files that are no text, or the images without a caption.
    """
    instance_prompt = instance_prompt.strip()
    files = dict(zip(manifest.used, find_captions(manifest.used), strict=True))
    faults = [f"{file.path.name} ({file.fault})" for file in files.values() if file.fault]
    ledgers = Ledgers()
    records = [
        _captioned(record, files[record], ledgers, instance_prompt) if record in files else record
        for record in manifest.records
    ]
    missing = [record.name for record in records if not record.excluded and not record.caption]
    if faults:
        raise DatasetError(f"caption files cannot be read: {preview_names(faults)}; save them as UTF-8 text.")
    if missing:
        count = f"{len(missing)} of {len(manifest.used)} images have no caption: {preview_names(missing)}"
        raise DatasetError(
            f"{count}; write what is in each into a .txt file of the same name, let `lora-studio caption` do "
            "that, or set data.instance_prompt."
        )
    return Manifest(tuple(records))


def _captioned(record: Record, file: CaptionFile, ledgers: Ledgers, instance_prompt: str) -> Record:
    if file.text:
        entry = ledgers.author(file.path, file.data)
        lines = file.lines if len(file.lines) > 1 else ()
        author = entry.author if entry else "sidecar"
        return replace(record, caption=file.text, lines=lines, captioned_by=author)
    if record.caption and (record.captioned_by != FOLDER_NAME or not instance_prompt):
        return record
    return replace(record, caption=instance_prompt, captioned_by="instance prompt" if instance_prompt else "")
