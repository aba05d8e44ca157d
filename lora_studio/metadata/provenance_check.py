"""`lora-studio verify --provenance`: whether a file came from these images, and if not what differs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from lora_studio.data.captioners import CAPTIONERS
from lora_studio.data.manifest import Record
from lora_studio.data.scan import ScanOptions
from lora_studio.data.sources import Source, read_sources
from lora_studio.errors import DatasetError, StudioError, preview_names
from lora_studio.lora_file.header import Header, read_header, tensor_hash
from lora_studio.metadata.provenance import (
    INSTANCE_PROMPT,
    MANIFEST,
    PREFIX,
    ProvenanceEntry,
    class_root,
    entries_of,
    images_of,
    read_manifest,
    recipe_hash,
    roots,
    trained_root,
)
from lora_studio.recipe.load import RUN_RECIPE, load_run_recipe


@dataclass
class OriginReport:
    """Whether a file came from these images. `differs` empty means yes."""

    file: str
    differs: list[str] = field(default_factory=list)
    same: list[str] = field(default_factory=list)
    not_looked_at: list[str] = field(default_factory=list)

    @property
    def proven(self) -> bool:
        """Whether all that was looked at is what the file says."""
        return not self.differs

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"proven": self.proven}


def check_provenance(path: Path, places: Sequence[Path]) -> OriginReport:
    """Compare what a file says it was made from with a run's folder, or with folders of images.

    Raises StudioError if the file says nothing, or a place holds neither.
    """
    header, origin = read_header(path), OriginReport(path.name)
    block = {key.removeprefix(PREFIX): v for key, v in header.metadata.items() if key.startswith(PREFIX)}
    if not {"root", "pictures", "num_pictures"} <= block.keys():
        raise StudioError(
            f"{path} does not say what it was made from: another program or an older version made it, or its "
            "metadata was taken out."
        )
    if not places:
        raise StudioError("--provenance compares a file with runs or folders of images; name one.")
    _check_tensors(header, origin)
    runs = [one for one in places if (one / MANIFEST).is_file()]
    folders = [one for one in places if one not in runs]
    for run in runs:
        _check_run(run, block, origin)
    if folders:
        _check_folders(folders, block, _truth([*runs, path.parent], block), origin)
    origin.not_looked_at.append("the base's weights: their hash is in the file")
    return origin


def _check_tensors(header: Header, origin: OriginReport) -> None:
    said = header.metadata.get("sshs_model_hash", "")
    found = tensor_hash(header.block())
    if not said:
        origin.not_looked_at.append("the tensors: the file holds no hash of them")
    elif found == said:
        origin.same.append("the tensors are those that the file was written with")
    else:
        origin.differs.append("the tensors were changed after the file was written")


def _check_run(run: Path, block: dict[str, str], origin: OriginReport) -> None:
    records = read_manifest(run)
    _compare(images_of(records), [], block, origin, place=str(run))
    if "trained" in block and block["trained"] != trained_root(records):
        origin.differs.append(f"other images of {run} are for validation and not trained on")
    priors = entries_of(records, "prior")
    if block.get("class_pictures", "") != (class_root(priors) if priors else ""):
        said = f"{len(priors)} there, {block.get('num_class_pictures', 0)} in the file"
        origin.differs.append(f"the regularization images of {run} are others ({said})")
    elif priors:
        origin.same.append(f"all {len(priors)} regularization images")
    if not (run / RUN_RECIPE).is_file():
        origin.not_looked_at.append(f"the recipe: there is none in {run}")
    elif recipe_hash(load_run_recipe(run)) == block.get("recipe"):
        origin.same.append("the options that change what is learned")
    else:
        origin.differs.append(f"options of {run / RUN_RECIPE} that change what is learned are others")


def _check_folders(
    folders: Sequence[Path], block: dict[str, str], truth: list[ProvenanceEntry], origin: OriginReport
) -> None:
    """Read plainly or with all subfolders: a recipe says which, and the file does not."""
    for recursive in (False, True):
        of_class = [one for one in folders if _is_class(one, block, recursive=recursive)]
        own = [one for one in folders if one not in of_class] or list(folders)
        found = images_of(_scan(own, recursive=recursive))
        if recursive is False:
            first = found, of_class
        if roots(found)["pictures"] == block["pictures"]:
            break
    else:
        found, of_class = first
    if of_class:
        origin.same.append(f"all {block['num_class_pictures']} regularization images")
    elif priors := block.get("num_class_pictures"):
        origin.not_looked_at.append(f"{priors} regularization images: name the run's folder, or theirs, too")
    _compare(found, truth, block, origin, place=", ".join(map(str, folders)))
    origin.not_looked_at.append("the recipe: the run's folder tells of it")


def _is_class(folder: Path, block: dict[str, str], *, recursive: bool) -> bool:
    wanted = block.get("class_pictures")
    return bool(wanted) and class_root(images_of(_scan([folder], recursive=recursive))) == wanted


def _scan(folders: Sequence[Path], *, recursive: bool) -> tuple[Record, ...]:
    missing = [str(one) for one in folders if not one.is_dir()]
    if missing:
        raise DatasetError(
            f"there is no folder {missing[0]}; give a run's folder, or one with the images it is made from."
        )
    sources = [
        Source(one, ScanOptions(recursive=recursive), instance_prompt=INSTANCE_PROMPT) for one in folders
    ]
    return read_sources(sources, CAPTIONERS["sidecar"]).records


def _truth(places: Sequence[Path], block: dict[str, str]) -> list[ProvenanceEntry]:
    """The images one by one, if a run's manifest tells that has the file's root; else none."""
    for place in places:
        if (place / MANIFEST).is_file():
            entries = images_of(read_manifest(place))
            if roots(entries)["root"] == block["root"]:
                return entries
    return []


def _compare(
    found: list[ProvenanceEntry],
    truth: list[ProvenanceEntry],
    block: dict[str, str],
    origin: OriginReport,
    *,
    place: str,
) -> None:
    """Images, captions and masks; `truth`, if it is known, tells which of them differ."""
    here, count = roots(found), int(block["num_pictures"])
    if here["root"] == block["root"]:
        origin.same.append(f"all {count} images and their captions")
    elif here["pictures"] == block["pictures"]:
        origin.same.append(f"all {count} images")
        origin.differs.append(f"captions in {place} are others{_other_captions(found, truth)}")
    else:
        origin.differs.append(f"images in {place} are others: {_other_images(found, truth, count)}")
    if here["pictures"] == block["pictures"] and here.get("masks") != block.get("masks"):
        origin.differs.append(f"masks beside the images in {place} are others, or lie in another folder")


def _other_captions(found: list[ProvenanceEntry], truth: list[ProvenanceEntry]) -> str:
    known = {one.image: one.caption for one in truth}
    changed = [one.name for one in found if known.get(one.image, one.caption) != one.caption]
    return f": {len(changed)} of {len(found)}, {preview_names(changed)}" if changed else ""


def _other_images(found: list[ProvenanceEntry], truth: list[ProvenanceEntry], count: int) -> str:
    if not truth:
        change = abs(len(found) - count)
        what = "as many, so at least one was changed" if not change else (
            f"at least {change} {'more' if len(found) > count else 'missing'}"
        )  # fmt: skip
        return f"the file was made from {count}, and here are {len(found)}: {what}"
    known, here = {one.image for one in truth}, {one.image for one in found}
    names = {Path(one.name).name for one in found}
    gone = [one.name for one in truth if one.image not in here]
    changed = [name for name in gone if Path(name).name in names]
    missing = [name for name in gone if name not in changed]
    added = [one.name for one in found if one.image not in known and one.name not in changed]
    parts = {"changed": changed, "missing": missing, "added": added}
    return "; ".join(f"{len(one)} {what} ({preview_names(one)})" for what, one in parts.items() if one)
