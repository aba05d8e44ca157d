"""The words that call a file, and the hashes by which UIs know it."""

from __future__ import annotations

import hashlib
import json
from collections import Counter

from lora_studio.export.header import Header

MOST_TAGS = 10


def trigger_words(metadata: dict[str, str]) -> tuple[str, ...]:
    """The phrase that the file names, then its commonest tags, as far as they can be read."""
    phrase = metadata.get("modelspec.trigger_phrase", "").strip()
    counts: Counter[str] = Counter()
    try:
        folders = json.loads(metadata.get("ss_tag_frequency", "{}"))
        for tags in folders.values():
            counts.update({tag.strip(): int(count) for tag, count in tags.items()})
    except (ValueError, TypeError, AttributeError, RecursionError, OverflowError):
        counts.clear()  # anybody can have written that
    tags = [tag for tag, _ in counts.most_common(MOST_TAGS)]
    return tuple(dict.fromkeys(one for one in (phrase, *tags) if one))


def file_hashes(header: Header) -> dict[str, str]:
    """As UIs and Civitai know the file: of all of it, and of everything behind the header."""
    whole, behind = hashlib.sha256(), hashlib.sha256()
    with header.path.open("rb") as file:
        whole.update(file.read(header.length))
        while piece := file.read(1 << 20):
            whole.update(piece)
            behind.update(piece)
    tensors = behind.hexdigest()
    return {
        "sha256": whole.hexdigest(),
        "AutoV2": whole.hexdigest()[:10],
        "sshs_model_hash": tensors,
        "AutoV3": tensors[:12],
    }
