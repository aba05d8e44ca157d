"""A file's metadata shown, changed or taken out, with every byte of its tensors as it was."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from lora_studio.errors import StudioError
from lora_studio.export.header import Header, read_header
from lora_studio.export.metadata import MAX_BYTES, size_of
from lora_studio.export.metadata_keys import NEEDED, key_faults
from lora_studio.export.write import Coming, header_bytes, places_of
from lora_studio.run import write_atomically


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
    yield header_bytes(places_of(Coming(name, one.dtype, one.shape) for name, one in in_order), metadata)
    yield from header.block()
