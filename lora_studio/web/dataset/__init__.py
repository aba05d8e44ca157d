"""A set of images as the page shows it: listed at once by names, then known by what the doctor saw."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from lora_studio.data.captions import find_captions
from lora_studio.data.images import MASK_SUFFIX, is_caption, is_image, is_mask, place
from lora_studio.data.manifest import Record
from lora_studio.data.scan.layouts import LEFT_OUT, find, is_by_choice
from lora_studio.data.sources import Source, source_labels, sources_at
from lora_studio.errors import StudioError
from lora_studio.text import in_words, printable, same_text, shown

Share = float  # of an image's width or height


@dataclass(frozen=True)
class Badge:
    """One of the doctor's findings about an image."""

    severity: str  # error, warning or note
    kind: str  # "near_duplicate"
    detail: str
    advice: str

    @property
    def title(self) -> str:
        return in_words(self.kind)


@dataclass(frozen=True)
class DatasetImage:
    """An image file; what only looking into it tells is empty until it was looked at."""

    name: str  # as in the manifest: relative, with its folder's name in front if there are several
    path: Path  # as found
    folder: Path  # that the page was given, in which it lies
    caption: str = ""  # lines of several captions below each other
    caption_fault: str = ""  # why its file cannot be read
    excluded: str = ""  # why it is left out
    mask: str = ""  # its file's name, or that it is the image's transparency
    mask_path: str = ""
    focus: tuple[Share, Share] | None = None
    role: str = "instance"
    size: tuple[int, int] | None = None  # width and height in pixels, upright
    bucket: str = ""
    crop: tuple[Share, Share, Share, Share] | None = None  # left, top, width, height of what is shown
    badges: tuple[Badge, ...] = ()

    @property
    def key(self) -> str:
        """What addresses have for it: a name may be anything, also no text."""
        return hashlib.sha256(self.name.encode("utf-8", "surrogateescape")).hexdigest()[:20]

    @property
    def is_left_out(self) -> bool:
        """Whether the user's list says so, and not what is wrong with it."""
        return is_by_choice(self.excluded)

    @property
    def label(self) -> str:
        """What is read out for it."""
        words = [
            shown(self.name),
            self.caption or "no caption",
            *(f"{one.severity}: {one.title}" for one in self.badges),
        ]
        return "; ".join([*words, *([f"not used: {self.excluded}"] if self.excluded else [])])


@dataclass
class Dataset:
    """All images of a folder, or of a recipe's folders, by name."""

    target: Path
    sources: Sequence[Source]
    images: dict[str, DatasetImage] = field(default_factory=dict)
    general: tuple[Badge, ...] = ()  # findings about no single image
    plan: Mapping[str, Any] = field(default_factory=dict)  # the doctor's, once it was

    @property
    def trigger(self) -> str:
        return next((one.trigger for one in self.sources if one.trigger), "")

    def kinds(self) -> dict[str, int]:
        """Kind of finding -> how many images have it, the worst first."""
        order = {"error": 0, "warning": 1, "note": 2}
        found: dict[str, int] = defaultdict(int)
        worst: dict[str, int] = {}
        for image in self.images.values():
            for kind in {one.kind for one in image.badges}:
                found[kind] += 1
            for one in image.badges:
                worst[one.kind] = min(worst.get(one.kind, 9), order.get(one.severity, 9))
        return dict(sorted(found.items(), key=lambda item: (worst[item[0]], -item[1])))

    def shown(self, *, words: str = "", kind: str = "", which: str = "all") -> list[DatasetImage]:
        """Those with the words in name or caption and a finding of the kind.

        `which`: all, used, left_out, uncaptioned or masked.
        """
        wanted = same_text(words).casefold().split()
        return [
            one
            for one in self.images.values()
            if all(word in f"{one.name} {one.caption}".casefold() for word in wanted)
            and (not kind or any(badge.kind == kind for badge in one.badges))
            and _is_among(one, which)
        ]

    def at(self, key: str) -> DatasetImage | None:
        """The image with this key."""
        return next((one for one in self.images.values() if one.key == key), None)

    def records(self) -> list[Record]:
        """Of the used images, as captions are looked up with."""
        return [Record(path=str(one.path), name=one.name) for one in self.images.values() if not one.excluded]

    def read_again(self, name: str) -> DatasetImage:
        """With its caption as it is on the disk now."""
        image = self.images[name]
        (file,) = find_captions([Record(path=str(image.path), name=image.name)])
        text, listed = "\n".join(file.lines), image.caption if file.data is None else ""
        self.images[name] = replace(image, caption=text or listed, caption_fault=file.fault)
        return self.images[name]

    def mark(self, name: str, *, left_out: bool) -> None:
        """As the recipe's list has it now."""
        image, lists = self.images[name], {one.reading.exclude.name for one in self.sources}
        reason = LEFT_OUT + (next(filter(None, lists), "") or "the recipe's list")
        self.images[name] = replace(image, excluded=reason if left_out else "")

    def place(self, name: str, focus: tuple[Share, Share] | None) -> None:
        """The point of its crop, which the next look lays around it."""
        self.images[name] = replace(self.images[name], focus=focus)

    def read_mask(self, name: str) -> None:
        """Whether there is one beside it now, or where it was."""
        image = self.images[name]
        path = (
            Path(image.mask_path) if image.mask_path else image.path.with_name(image.path.stem + MASK_SUFFIX)
        )
        there = (path.name, str(path)) if path.is_file() else ("", "")
        self.images[name] = replace(image, mask=there[0], mask_path=there[1])

    def take_look(self, found: Mapping[str, Any]) -> None:
        """What `looking` saw: sizes, buckets, crops and findings of each image."""
        badges: dict[str, list[Badge]] = defaultdict(list)
        for one in found["report"]["findings"]:
            badges[one["path"]].append(Badge(one["severity"], one["kind"], one["detail"], one["advice"]))
        self.general, self.plan = tuple(badges.pop("", ())), found["report"]["plan"]
        by_text = {printable(name): image for name, image in self.images.items()}  # as JSON has them
        for one in found["images"]:
            if (image := by_text.get(one["name"])) is not None:
                given = tuple(badges.get(one["name"], ()))
                self.images[image.name] = replace(image, **_seen(one), badges=given)


def open_dataset(target: Path) -> Dataset:
    """The images of a folder, or of a recipe's .toml file; none is opened, so thousands are there at once.

    Raises StudioError for what is neither, and for folders and lists that cannot be read.
    """
    sources = sources_at(target)
    images: dict[str, DatasetImage] = {}
    for source, label in zip(sources, source_labels(sources), strict=True):
        images |= {one.name: one for one in _listed(source, label)}
    if not images:
        raise StudioError(f"{target} holds no images; give a folder of images.")
    return Dataset(target, sources, images)


def _listed(source: Source, label: str) -> Iterable[DatasetImage]:
    found = find(source.folder, recursive=source.reading.recursive, masks=source.reading.masks)
    images = [one for one in found if is_image(one.name) and not is_mask(one.name)]
    left_out = source.reading_as(label).exclude.chosen(one.name for one in images)
    masks = {place(one.name): one for one in found if is_mask(one.name) and not is_caption(one.name)}
    if source.reading.masks is not None and source.reading.masks.is_dir():
        beside = find(source.reading.masks, recursive=True)
        masks |= {place(one.name): one for one in beside if is_image(one.name) and not one.excluded}
    for record, file in zip(images, find_captions(images), strict=True):
        reason = LEFT_OUT + source.reading.exclude.name if record.name in left_out else ""
        mask = masks.get(place(record.name))
        listed = record.caption or source.instance_prompt
        yield DatasetImage(
            name=label + record.name,
            path=Path(record.path),
            folder=source.folder,
            caption="\n".join(file.lines) or ("" if file.fault else listed),
            caption_fault=file.fault,
            excluded=record.excluded or reason,
            mask=mask.name if mask else "",
            mask_path=mask.path if mask else "",
            focus=record.overrides.focus,
            role=source.role,
        )


def _seen(one: Mapping[str, Any]) -> dict[str, Any]:
    seen: dict[str, Any] = {"excluded": one["excluded"], "role": one["role"], "bucket": one["bucket"] or ""}
    if one["width"]:
        seen["size"] = (one["width"], one["height"])
    if one["crop"] and one["resize"]:
        (left, top, right, bottom), (width, height) = one["crop"], one["resize"]
        seen["crop"] = (left / width, top / height, (right - left) / width, (bottom - top) / height)
    return seen


def _is_among(image: DatasetImage, which: str) -> bool:
    among = {
        "used": not image.excluded,
        "left_out": bool(image.excluded),
        "uncaptioned": not image.caption,
        "masked": bool(image.mask),
    }
    return among.get(which, True)
