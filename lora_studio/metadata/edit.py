"""A file's metadata shown, changed or taken out, with every byte of its tensors as it was."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

from lora_studio.errors import StudioError
from lora_studio.files import write_atomically
from lora_studio.lora_file.header import Header, header_bytes, places_of, read_header
from lora_studio.metadata.provenance import PREFIX
from lora_studio.metadata.write import MAX_BYTES, size_of
from lora_studio.registry import did_you_mean

NEEDED = frozenset(
    {
        *("ss_v2", "ss_base_model_version", "ss_network_module", "ss_network_dim", "ss_network_alpha"),
        *("ss_network_args", "modelspec.sai_model_spec", "modelspec.architecture"),
        *("sshs_model_hash", "sshs_legacy_hash"),  # of the tensors alone
        *("format", "lora_adapter_metadata"),  # without them transformers and diffusers misread some files
    }
)
"""What UIs need to take a file for what it is, as FORMATS has it, section 3."""

COMPUTED = ("sshs_model_hash", "sshs_legacy_hash", "modelspec.hash_sha256")
OBJECTS = ("ss_tag_frequency", "ss_bucket_info", "ss_dataset_dirs", "ss_reg_dataset_dirs", "ss_network_args")
SPEC = [
    *("sai_model_spec", "architecture", "implementation", "title", "resolution", "prediction_type", "date"),
    *("author", "description", "license", "tags", "usage_hint", "trigger_phrase", "thumbnail"),
    *("timestep_range", "encoder_layer", "merged_from", "hash_sha256", "is_negative_embedding"),
    *("preprocessor", "data_format", "block_size", "lang"),
]
"""The keys behind `modelspec.`, Stability's ModelSpec 1.0.1."""


def key_faults(changes: Mapping[str, str]) -> list[str]:
    """What is wrong with what a user wants to set: sentences without their full stops."""
    faults = []
    for key, value in changes.items():
        group, _, name = key.partition(".")
        if key in COMPUTED or key.startswith(PREFIX):
            faults.append(f"{key} tells what the file was made from or holds, and cannot be set")
        elif group == "modelspec" and name not in SPEC:
            faults.append(f"unknown key {key}{did_you_mean(name, SPEC)}")
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
    kept = {key: value for key, value in metadata.items() if not strip or key in NEEDED}
    if gone := [key for key, value in changes.items() if not value and key not in metadata]:
        raise StudioError(f"{', '.join(gone)} shall be taken out, but the file has no such key.")
    after = {key: value for key, value in (kept | dict(changes)).items() if changes.get(key, value)}
    size = size_of(after)
    if size > MAX_BYTES and size >= size_of(metadata):
        raise StudioError(
            f"its metadata would have {size} bytes; UIs expect at most {MAX_BYTES}, so set something "
            "shorter, or take what is in it out with --strip."
        )
    return after


def edit(path: Path, out: Path, changes: Mapping[str, str], *, strip: bool) -> dict[str, str]:
    """Write `path` with other metadata to `out`, which may be the same; what they are then.

    Piece by piece, so that a file of any size takes little memory. Raises StudioError as `edited`, or if it
    cannot be written.
    """
    header = read_header(path)
    after = edited(header.metadata, changes, strip=strip)
    try:
        write_atomically(out, _content(header, after))
    except OSError as error:
        raise StudioError(f"{out} cannot be written ({error.strerror or error}).") from None
    return after


def _content(header: Header, metadata: Mapping[str, str]) -> Iterator[bytes]:
    in_order = sorted(header.entries.items(), key=lambda one: (one[1].begin, one[1].end))
    yield header_bytes(places_of(dict(in_order)), metadata)
    yield from header.block()
