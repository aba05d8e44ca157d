"""From what a file was made, as hashes in its metadata: pictures, captions, base and recipe.

`pictures`: a Merkle root over the sha256 of every picture file that was trained on or held out, whatever its
name, folder, repeats and weight. `root`: the same over pairs of picture and caption. A caption is the text
that lies beside the picture or in a metadata file, in UTF-8; of pictures that have the recipe's or their
folder's name for one it counts as empty. `masks`: over pairs of picture and mask file, if there are any.
`class_pictures`: over pairs of picture and caption of class images, drawn or found. `recipe`: over the
options that change what is learned. `base`: the weights of the denoiser, LoRAs merged into it included.

The roots tell nobody a picture; who has the pictures can compute them again. They can be copied into another
file, but nobody can find other pictures that fit. That the tensors came from these is shown by training once
more, because the same recipe gives the same bytes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_studio import __version__
from lora_studio.data.layouts import FOLDER_NAME
from lora_studio.data.manifest import Manifest, Record
from lora_studio.errors import StudioError
from lora_studio.export.merkle import root_of
from lora_studio.recipe import Recipe
from lora_studio.recipe_changes import FREE

PREFIX = "lora_studio.provenance."
MANIFEST = "manifest.jsonl"
INSTANCE_PROMPT = "instance prompt"  # who wrote a caption that is the recipe's
_ELSEWHERE = {"name", "base.model", "base.vae", "holdout"}  # names, and what the roots tell


@dataclass(frozen=True)
class Entry:
    """A picture as provenance sees it."""

    name: str
    picture: str  # sha256 of the file
    caption: str  # sha256 of the text
    mask: str  # sha256 of the mask's file; empty without one

    @property
    def pair(self) -> tuple[str, str]:
        """Picture and caption."""
        return self.picture, self.caption


def entries_of(records: Iterable[Record], *roles: str) -> list[Entry]:
    """The usable pictures of these roles."""
    return [
        Entry(one.name, one.sha256, hashlib.sha256(_own_caption(one).encode()).hexdigest(), one.mask_sha256)
        for one in records
        if not one.excluded and one.role in roles
    ]


def _own_caption(record: Record) -> str:
    return "" if record.captioned_by in (INSTANCE_PROMPT, FOLDER_NAME) else record.caption


def pictures_of(records: Iterable[Record]) -> list[Entry]:
    """The user's own pictures: trained on or held out."""
    return entries_of(records, "instance", "holdout")


def roots(entries: Iterable[Entry]) -> dict[str, str]:
    """The roots over the user's own pictures, by their names in a file's metadata."""
    entries = list(entries)
    found = {
        "root": root_of("picture and caption", (one.pair for one in entries)),
        "pictures": root_of("picture", ((one.picture,) for one in entries)),
        "num_pictures": str(len(entries)),
    }
    if masked := [(one.picture, one.mask) for one in entries if one.mask]:
        found["masks"] = root_of("picture and mask", masked)
    return found


def trained_root(records: Iterable[Record]) -> str:
    """Of the pictures that were trained on and not held out."""
    return root_of("trained picture", ((one.picture,) for one in entries_of(records, "instance")))


def class_root(entries: Iterable[Entry]) -> str:
    """Of class images and their captions."""
    return root_of("class image and caption", (one.pair for one in entries))


def provenance_keys(manifest: Manifest, recipe: Recipe, *, base: str) -> dict[str, str]:
    """The block in a file's metadata; `base` is the fingerprint of the denoiser that was trained."""
    records = manifest.records
    found = roots(pictures_of(records))
    if held := manifest.of_role("holdout"):
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

    Keys sorted, no spaces; without paths and names of files, whose contents other hashes tell. Defaults are
    left out so that a later version with more options comes to the same.
    """
    values = recipe.model_dump(mode="python", exclude_defaults=True)
    text = json.dumps(_learned(values, ""), sort_keys=True, separators=(",", ":"), ensure_ascii=False)
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
        return [Record(path="", **{key: row[key] for key in known}) for row in rows]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StudioError(f"{run / MANIFEST} cannot be read ({error}); it is as a run wrote it.") from None
