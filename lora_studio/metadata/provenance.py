"""From what a file was made, as hashes in its metadata: images, captions, base and recipe.

`pictures`: a Merkle root over the sha256 of every image file, of training or validation, whatever its
name, folder, repeats and weight. `root`: the same over pairs of image and caption. A caption is the text
that lies beside the image or in a metadata file, in UTF-8; of images that have the recipe's or their
folder's name for one it counts as empty. `masks`: over pairs of image and mask file, if there are any.
`class_pictures`: over pairs of image and caption of regularization images, drawn or found. `recipe`: over
the options that change what is learned. `base`: the weights of the denoiser, LoRAs merged into it included.

The roots reveal no image; who has the images can compute them again. They can be copied into another
file, but no other images can be found that fit. That the tensors came from these is shown by training once
more, because the same recipe gives the same bytes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_studio.data.manifest import FOLDER_NAME, Manifest, Record, current_line
from lora_studio.errors import StudioError
from lora_studio.recipe import FREE, Recipe
from lora_studio.recipe.renamed import with_first_names
from lora_studio.version import __version__


def tree_hash(entries: Sequence[bytes]) -> bytes:
    """sha256 of the tree over `entries` in their order; of none it is that of nothing.

    A leaf is hashed behind the byte 0 and a node behind the byte 1, so that neither passes for the other.
    """
    if not entries:
        return hashlib.sha256().digest()
    level = [hashlib.sha256(b"\0" + one).digest() for one in entries]
    while len(level) > 1:  # a last one without a partner goes up as it is, which gives the RFC's trees
        pairs = [level[place : place + 2] for place in range(0, len(level), 2)]
        level = [hashlib.sha256(b"\1" + b"".join(one)).digest() if len(one) == 2 else one[0] for one in pairs]
    return level[0]


def root_of(what: str, entries: Iterable[Sequence[str]]) -> str:
    """The hash, in hex, of a set of entries, each of them some sha256 in hex; whatever their order.

    An entry is `what` and a zero byte, so that trees of different things differ, then the 32 bytes of each.
    """
    leaves = [what.encode() + b"\0" + b"".join(map(bytes.fromhex, one)) for one in entries]
    return tree_hash(sorted(leaves)).hex()


PREFIX = "lora_studio.provenance."
MANIFEST = "manifest.jsonl"
INSTANCE_PROMPT = "instance prompt"  # who wrote a caption that is the recipe's
_ELSEWHERE = {"name", "base.model", "base.vae", "validation"}  # names, and what the roots tell


@dataclass(frozen=True)
class ProvenanceEntry:
    """An image as provenance sees it."""

    name: str
    image: str  # sha256 of the file
    caption: str  # sha256 of the text
    mask: str  # sha256 of the mask's file; empty without one

    @property
    def pair(self) -> tuple[str, str]:
        return self.image, self.caption


def entries_of(records: Iterable[Record], *roles: str) -> list[ProvenanceEntry]:
    """The usable images of these roles."""
    return [
        ProvenanceEntry(
            one.name, one.sha256, hashlib.sha256(_own_caption(one).encode()).hexdigest(), one.mask_sha256
        )
        for one in records
        if not one.excluded and one.role in roles
    ]


def _own_caption(record: Record) -> str:
    return "" if record.captioned_by in (INSTANCE_PROMPT, FOLDER_NAME) else record.caption


def images_of(records: Iterable[Record]) -> list[ProvenanceEntry]:
    """The user's own images, of training and validation."""
    return entries_of(records, "instance", "validation")


def roots(entries: Iterable[ProvenanceEntry]) -> dict[str, str]:
    """The roots over the user's own images, by their names in a file's metadata."""
    entries = list(entries)
    found = {
        "root": root_of("picture and caption", (one.pair for one in entries)),
        "pictures": root_of("picture", ((one.image,) for one in entries)),
        "num_pictures": str(len(entries)),
    }
    if masked := [(one.image, one.mask) for one in entries if one.mask]:
        found["masks"] = root_of("picture and mask", masked)
    return found


def trained_root(records: Iterable[Record]) -> str:
    """Of the images that were trained on, without those of validation."""
    return root_of("trained picture", ((one.image,) for one in entries_of(records, "instance")))


def class_root(entries: Iterable[ProvenanceEntry]) -> str:
    """Of regularization images and their captions."""
    return root_of("class image and caption", (one.pair for one in entries))


def provenance_keys(manifest: Manifest, recipe: Recipe, *, base: str) -> dict[str, str]:
    """The block in a file's metadata; `base` is the fingerprint of the denoiser that was trained."""
    records = manifest.records
    found = roots(images_of(records))
    if held := manifest.of_role("validation"):
        found |= {"num_held_out": str(len(held)), "trained": trained_root(records)}
    if priors := entries_of(records, "prior"):
        found |= {"class_pictures": class_root(priors), "num_class_pictures": str(len(priors))}
    found |= {
        "recipe": recipe_hash(recipe),
        "seed": str(recipe.training.seed),
        "base": base,
        "version": __version__,
    }
    return {PREFIX + name: value for name, value in found.items()}


def recipe_hash(recipe: Recipe) -> str:
    """sha256 of all options that change what is learned and are not their default, as canonical JSON.

    Keys sorted and named as the first version did, no spaces; without paths and names of files, whose
    contents other hashes tell. Defaults are left out so that a later version with more options comes to the
    same.
    """
    values = recipe.model_dump(mode="python", exclude_defaults=True)
    learned = with_first_names(_learned(values, ""))
    text = json.dumps(learned, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _learned(value: Any, option: str) -> Any:
    """Without what is free to change, and without paths."""
    if isinstance(value, dict):
        inner = {key: (one, f"{option}.{key}" if option else str(key)) for key, one in value.items()}
        kept = {
            key: _learned(one, dotted)
            for key, (one, dotted) in inner.items()
            if not isinstance(one, Path) and dotted not in FREE | _ELSEWHERE
        }
        return {key: one for key, one in kept.items() if one != {}}
    return [_learned(one, option) for one in value] if isinstance(value, list | tuple) else value


def read_manifest(run: Path) -> list[Record]:
    """What a run's manifest says of each file, as far as provenance asks. Raises StudioError if damaged."""
    known = ("name", "sha256", "caption", "captioned_by", "role", "mask_sha256", "excluded")
    try:
        lines = (run / MANIFEST).read_text("utf-8").split("\n")  # names may hold U+2028
        rows = [json.loads(line) for line in lines if line]
        return [Record(path="", **{key: row[key] for key in known}) for row in map(current_line, rows)]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StudioError(f"{run / MANIFEST} cannot be read ({error}); it is as a run wrote it.") from None
