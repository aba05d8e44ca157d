"""A file's metadata shown, changed or taken out, with every byte of its tensors as it was."""

from __future__ import annotations

import json
from collections.abc import Mapping
from itertools import chain
from pathlib import Path

from lora_studio.errors import StudioError
from lora_studio.files import say_unwritable, write_atomically
from lora_studio.metadata import PREFIX, key_table
from lora_studio.metadata.write import MAX_BYTES, size_of
from lora_studio.registry import did_you_mean
from lora_studio.tensor_file.header import header_bytes, places_of, read_header

COMPUTED = ("sshs_model_hash", "sshs_legacy_hash", "modelspec.hash_sha256")
OBJECTS = ("ss_tag_frequency", "ss_bucket_info", "ss_dataset_dirs", "ss_reg_dataset_dirs", "ss_network_args")


def key_faults(changes: Mapping[str, str]) -> list[str]:
    """What is wrong with what a user wants to set: sentences without their full stops."""
    faults, spec = [], key_table("spec")
    for key, value in changes.items():
        group, _, name = key.partition(".")
        if key in COMPUTED or key.startswith(PREFIX):
            faults.append(f"{key} tells what the file was made from or holds, and cannot be set")
        elif group == "modelspec" and name not in spec:
            faults.append(f"unknown key {key}{did_you_mean(name, spec)}")
        elif not key.isprintable() or not key.strip() or len(key) > 200:
            faults.append(f"{key[:50]!a} is no name of a key")
        elif key in OBJECTS and value and not _is_object(value):
            faults.append(f"{key} must be a JSON object, or the cards of A1111 and Forge break")
        elif key == "ss_output_name" and set(value) & set(":,>"):
            faults.append(f"ss_output_name is {value!r}, but it is a part of A1111's <lora:...>: no : , or >")
    return faults


def _is_object(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except ValueError:
        return False


def parse_changes(texts: tuple[str, ...]) -> dict[str, str]:
    """ "key=value" texts -> key -> value. Raises StudioError for one without "=" or a key named twice."""
    changes: dict[str, str] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        key = key.strip()
        if not equals or not key:
            raise StudioError(f"--set {text!r} is not key=value; write e.g. --set modelspec.title=Woodcut.")
        if key in changes:
            raise StudioError(f"--set names {key} twice; keep one.")
        changes[key] = value
    return changes


def edited(metadata: Mapping[str, str], changes: Mapping[str, str], *, strip: bool) -> dict[str, str]:
    """What becomes of a file's metadata: all but what UIs need goes, if wanted; an empty value removes a key.

    Raises StudioError that lists what cannot be set, or if there is nothing to do, or it would be too much.
    """
    if not changes and not strip:
        raise StudioError("there is nothing to change; give --set KEY=VALUE or --strip.")
    if faults := key_faults(changes):
        raise StudioError(f"{'; '.join(faults)}.")
    kept = {key: value for key, value in metadata.items() if not strip or key in key_table("needed")}
    if gone := [key for key, value in changes.items() if not value and key not in metadata]:
        raise StudioError(f"{', '.join(gone)} shall be taken out, but the file has no such key.")
    after = {key: value for key, value in (kept | dict(changes)).items() if changes.get(key, value)}
    size = size_of(after)
    if size > MAX_BYTES and size >= size_of(metadata):
        what = f"its metadata would have {size} bytes; UIs expect at most {MAX_BYTES}"
        raise StudioError(f"{what}, so set something shorter, or take what is in it out with --strip.")
    return after


def edit(path: Path, out: Path, changes: Mapping[str, str], *, strip: bool) -> dict[str, str]:
    """Write `path` with other metadata to `out`, which may be the same, in little memory; what they are then.

    Raises StudioError as `edited`, or if it cannot be written.
    """
    header = read_header(path)
    after = edited(header.metadata, changes, strip=strip)
    in_order = dict(sorted(header.entries.items(), key=lambda one: (one[1].begin, one[1].end)))
    with say_unwritable(out):
        write_atomically(out, chain([header_bytes(places_of(in_order), after)], header.block()))
    return after
