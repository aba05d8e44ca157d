"""From what a file was made, as hashes in its metadata: images, captions, base and recipe, and their check.

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
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from lora_studio.data.captioners import CAPTIONERS
from lora_studio.data.manifest import FOLDER_NAME, INSTANCE_PROMPT, Manifest, Record, current_line
from lora_studio.data.scan import ScanOptions
from lora_studio.data.sources import Source, read_sources
from lora_studio.errors import DatasetError, StudioError, preview_names
from lora_studio.metadata import PREFIX
from lora_studio.recipe import FREE, Recipe
from lora_studio.recipe.renamed import with_first_names
from lora_studio.recipe.run_recipe import RUN_RECIPE, load_run_recipe
from lora_studio.runs.reading import damaged, read_lines
from lora_studio.tensor_file.header import read_header, tensor_hash
from lora_studio.text import plural
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


MANIFEST = "manifest.jsonl"
_ELSEWHERE = {"name", "base.model", "base.vae", "validation"}  # names, and what the roots tell


@dataclass(frozen=True)
class ProvenanceEntry:
    """An image as provenance sees it."""

    name: str
    image: str  # sha256 of the file
    caption: str  # sha256 of the text
    mask: str  # sha256 of the mask's file; empty without one


Entries = list[ProvenanceEntry]


def entries_of(records: Iterable[Record], *roles: str) -> Entries:
    """The usable images of these roles."""
    entries = []
    for one in records:
        if not one.excluded and one.role in roles:
            caption = "" if one.captioned_by in (INSTANCE_PROMPT, FOLDER_NAME) else one.caption
            caption_hash = hashlib.sha256(caption.encode()).hexdigest()
            entries.append(ProvenanceEntry(one.name, one.sha256, caption_hash, one.mask_sha256))
    return entries


def images_of(records: Iterable[Record]) -> Entries:
    """The user's own images, of training and validation."""
    return entries_of(records, "instance", "validation")


def roots(entries: Entries) -> dict[str, str]:
    """The roots over the user's own images, by their names in a file's metadata."""
    found = {
        "root": root_of("picture and caption", ((one.image, one.caption) for one in entries)),
        "pictures": root_of("picture", ((one.image,) for one in entries)),
        "num_pictures": str(len(entries)),
    }
    if masked := [(one.image, one.mask) for one in entries if one.mask]:
        found["masks"] = root_of("picture and mask", masked)
    return found


def trained_root(records: Iterable[Record]) -> str:
    """Of the images that were trained on, without those of validation."""
    return root_of("trained picture", ((one.image,) for one in entries_of(records, "instance")))


def class_root(entries: Entries) -> str:
    """Of regularization images and their captions."""
    return root_of("class image and caption", ((one.image, one.caption) for one in entries))


def provenance_keys(manifest: Manifest, recipe: Recipe, *, base: str) -> dict[str, str]:
    """The block in a file's metadata; `base` is the fingerprint of the denoiser that was trained."""
    records = manifest.records
    found = roots(images_of(records))
    if held := manifest.of_role("validation"):
        found |= {"num_held_out": str(len(held)), "trained": trained_root(records)}
    if priors := entries_of(records, "prior"):
        found |= {"class_pictures": class_root(priors), "num_class_pictures": str(len(priors))}
    found |= {"recipe": recipe_hash(recipe), "seed": str(recipe.training.seed)}
    found |= {"base": base, "version": __version__}
    return {PREFIX + name: value for name, value in found.items()}


def recipe_hash(recipe: Recipe) -> str:
    """sha256 of all options that change what is learned and are not their default, as canonical JSON.

    Keys sorted and named as the first version did, no spaces; without paths and names of files, whose
    contents other hashes tell. Defaults are left out so that a later version with more options comes to the
    same.
    """
    learned = with_first_names(_learned(recipe.model_dump(exclude_defaults=True), ""))
    text = json.dumps(learned, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _learned(value: Any, option: str) -> Any:
    """Without what is free to change, and without paths."""
    if isinstance(value, dict):
        kept = {}
        for key, one in value.items():
            dotted = f"{option}.{key}" if option else str(key)
            if not isinstance(one, Path) and dotted not in FREE | _ELSEWHERE:
                kept[key] = _learned(one, dotted)
        return {key: one for key, one in kept.items() if one != {}}
    return [_learned(one, option) for one in value] if isinstance(value, list | tuple) else value


def read_manifest(run: Path) -> list[Record]:
    """What a run's manifest says of each file, as far as provenance asks. Raises StudioError if damaged."""
    known = ("name", "sha256", "caption", "captioned_by", "role", "mask_sha256", "excluded")
    try:
        rows = [current_line(row) for row in read_lines(run / MANIFEST)]
        return [Record(path="", **{key: row[key] for key in known}) for row in rows]
    except (KeyError, TypeError) as error:
        raise damaged(run / MANIFEST, repr(error)) from None


Block = dict[str, str]  # provenance in a file's metadata, without the prefix


@dataclass
class OriginReport:
    """Whether a file came from these images. `differs` empty means yes."""

    file: str
    differs: list[str] = field(default_factory=list)
    same: list[str] = field(default_factory=list)
    not_looked_at: list[str] = field(default_factory=list)

    @property
    def proven(self) -> bool:
        return not self.differs

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"proven": self.proven}


def check_provenance(path: Path, places: Sequence[Path]) -> OriginReport:
    """Compare what a file says it was made from with a run's folder, or with folders of images.

    Raises StudioError if the file says nothing, or a place holds neither.
    """
    header, origin = read_header(path), OriginReport(path.name)
    block = {key.removeprefix(PREFIX): v for key, v in header.metadata.items() if key.startswith(PREFIX)}
    counts = [block.get("num_pictures", ""), block.get("num_class_pictures", "0")]
    if not {"root", "pictures"} <= block.keys() or not all(n.isdecimal() and len(n) < 10 for n in counts):
        why = "another program or an older version made it, or its metadata was taken out"
        raise StudioError(f"{path} does not say what it was made from: {why}.")
    if not places:
        raise StudioError("--provenance compares a file with runs or folders of images; name one.")
    if not (said := header.metadata.get("sshs_model_hash")):
        origin.not_looked_at.append("the tensors: the file holds no hash of them")
    elif tensor_hash(header.block()) == said:
        origin.same.append("the tensors are those that the file was written with")
    else:
        origin.differs.append("the tensors were changed after the file was written")
    runs = [one for one in places if (one / MANIFEST).is_file()]
    for run in runs:
        _check_run(run, block, origin)
    if folders := [one for one in places if one not in runs]:
        _check_folders(folders, block, _truth([*runs, path.parent], block), origin)
    origin.not_looked_at.append("the base's weights: their hash is in the file")
    return origin


def _check_run(run: Path, block: Block, origin: OriginReport) -> None:
    records = read_manifest(run)
    _compare(images_of(records), [], block, origin, str(run))
    if "trained" in block and block["trained"] != trained_root(records):
        origin.differs.append(f"other images of {run} are for validation and not trained on")
    priors = entries_of(records, "prior")
    if block.get("class_pictures", "") != (class_root(priors) if priors else ""):
        said = f"{len(priors)} there, {block.get('num_class_pictures', 0)} in the file"
        origin.differs.append(f"the regularization images of {run} are others ({said})")
    elif priors:
        origin.same.append(plural(len(priors), "regularization image"))
    if not (run / RUN_RECIPE).is_file():
        origin.not_looked_at.append(f"the recipe: there is none in {run}")
    elif recipe_hash(load_run_recipe(run)) == block.get("recipe"):
        origin.same.append("the options that change what is learned")
    else:
        origin.differs.append(f"options of {run / RUN_RECIPE} that change what is learned are others")


def _check_folders(folders: Sequence[Path], block: Block, truth: Entries, origin: OriginReport) -> None:
    """Read plainly or with all subfolders: a recipe says which, and the file does not."""
    wanted = block.get("class_pictures")
    for recursive in (False, True):
        of_class = [
            one for one in folders if wanted and class_root(images_of(_scan([one], recursive))) == wanted
        ]
        own = [one for one in folders if one not in of_class] or list(folders)
        found = images_of(_scan(own, recursive))
        if recursive is False:
            first = found, of_class
        if roots(found)["pictures"] == block["pictures"]:
            break
    else:
        found, of_class = first
    if of_class:
        origin.same.append(plural(int(block["num_class_pictures"]), "regularization image"))
    elif priors := block.get("num_class_pictures"):
        origin.not_looked_at.append(f"{priors} regularization images: name the run's folder, or theirs, too")
    _compare(found, truth, block, origin, ", ".join(map(str, folders)))
    origin.not_looked_at.append("the recipe: the run's folder tells of it")


def _scan(folders: Sequence[Path], recursive: bool) -> tuple[Record, ...]:
    for one in folders:
        if not one.is_dir():
            raise DatasetError(f"there is no folder {one}; give a run's folder, or one of the file's images.")
    reading = ScanOptions(recursive=recursive)
    sources = [Source(one, reading, instance_prompt=INSTANCE_PROMPT) for one in folders]
    return read_sources(sources, CAPTIONERS["sidecar"]).records


def _truth(places: Sequence[Path], block: Block) -> Entries:
    """The images one by one, if a run's manifest tells that has the file's root; else none."""
    manifests = (images_of(read_manifest(one)) for one in places if (one / MANIFEST).is_file())
    return next((entries for entries in manifests if roots(entries)["root"] == block["root"]), [])


def _compare(found: Entries, truth: Entries, block: Block, origin: OriginReport, place: str) -> None:
    """Images, captions and masks; `truth`, if it is known, tells which of them differ."""
    here, count = roots(found), int(block["num_pictures"])
    if here["root"] == block["root"]:
        origin.same.append(f"{plural(count)} with captions")
    elif here["pictures"] == block["pictures"]:
        origin.same.append(plural(count))
        origin.differs.append(f"captions in {place} are others{_other_captions(found, truth)}")
    else:
        origin.differs.append(f"images in {place} are others: {_other_images(found, truth, count)}")
    if here["pictures"] == block["pictures"] and here.get("masks") != block.get("masks"):
        origin.differs.append(f"masks beside the images in {place} are others, or lie in another folder")


def _other_captions(found: Entries, truth: Entries) -> str:
    known = {one.image: one.caption for one in truth}
    changed = [one.name for one in found if known.get(one.image, one.caption) != one.caption]
    return f": {len(changed)} of {len(found)}, {preview_names(changed)}" if changed else ""


def _other_images(found: Entries, truth: Entries, count: int) -> str:
    if not truth:
        what = f"at least {abs(len(found) - count)} {'more' if len(found) > count else 'missing'}"
        what = what if len(found) != count else "as many, so at least one was changed"
        return f"the file was made from {count}, and here are {len(found)}: {what}"
    known, here = {one.image for one in truth}, {one.image for one in found}
    names = {Path(one.name).name for one in found}
    gone = [one.name for one in truth if one.image not in here]
    changed = [name for name in gone if Path(name).name in names]
    added = [one.name for one in found if one.image not in known and one.name not in changed]
    parts = {"changed": changed, "missing": [x for x in gone if x not in changed], "added": added}
    return "; ".join(f"{len(one)} {what} ({preview_names(one)})" for what, one in parts.items() if one)
