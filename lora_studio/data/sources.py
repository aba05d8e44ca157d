"""Folders of images, each with its role and weight -> one manifest, with the validation images chosen."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path
from typing import TypeVar

from lora_studio.data.captioners import Captioner
from lora_studio.data.captions.trigger import without_trigger
from lora_studio.data.images.decode import DecodedImage
from lora_studio.data.manifest import Manifest, Record
from lora_studio.data.scan import OnImage, OnProgress, ScanOptions, count_files, scan
from lora_studio.data.scan.duplicates import across_sources
from lora_studio.data.scan.layouts import ExcludeList, read_exclude
from lora_studio.errors import DatasetError
from lora_studio.recipe.data import DataConfig, SourceConfig
from lora_studio.recipe.load import load_recipe
from lora_studio.rng import key

T = TypeVar("T")


@dataclass(frozen=True)
class Source:
    """A folder of images and what they are to the run."""

    folder: Path
    reading: ScanOptions = ScanOptions()  # noqa: RUF009 (frozen)
    role: str = "instance"  # or prior, or validation
    repeats: int = 1
    weight: float = 1.0  # factor of their loss
    trigger: str = ""
    class_words: str = ""
    instance_prompt: str = ""  # caption of images that have none

    def reading_as(self, label: str) -> ScanOptions:
        return replace(self.reading, exclude=self.reading.exclude.below(label))

    def told(self, on_image: OnImage | None) -> OnImage | None:
        """What gets each image of a scan as what it is to the run."""
        if on_image is None:
            return None

        def tell(record: Record, decoded: DecodedImage) -> None:
            on_image(record if record.role == self.role else replace(record, role=self.role), decoded)

        return tell

    def labelled(self, manifest: Manifest, label: str) -> list[Record]:
        """The folder's records, the label before their names, with the source's role, weight and words."""
        return [
            replace(
                record,
                name=label + record.name,
                role=self.role,
                weight=record.overrides.weight or self.weight,
                trigger=self.trigger,
                class_words=self.class_words,
            )
            for record in manifest.records
        ]


def read_sources(
    sources: Sequence[Source],
    captioner: Captioner,
    *,
    on_image: OnImage | None = None,
    on_progress: OnProgress | None = None,
) -> Manifest:
    """One manifest of all sources, captioned; names begin with their folder's if there are several.

    `on_image` gets each image with its role, as `scan` says. Of equal files in different sources one is
    kept. Raises DatasetError that lists the faults of all sources, or if nothing is left to train on.
    """
    records: list[Record] = []
    faults: list[str] = []
    each = zip(sources, source_labels(sources), in_one_count(sources, on_progress), strict=True)
    for source, label, told_of in each:
        reading, told = source.reading_as(label), source.told(on_image)
        try:
            found = scan(source.folder, reading, repeats=source.repeats, on_image=told, on_progress=told_of)
            records += source.labelled(captioner(found, instance_prompt=source.instance_prompt), label)
        except DatasetError as fault:
            faults.append(str(fault))
    if faults:
        raise DatasetError("\n".join(faults))
    if (manifest := in_one_manifest(sources, records)).used:
        return manifest
    what = "every image to train on is also in a source with the role validation"
    raise DatasetError(f"{what}; remove it from one.")


def in_one_manifest(sources: Sequence[Source], records: Sequence[Record]) -> Manifest:
    """The records in their order; of equal usable files in several sources one stays used.

    Raises DatasetError if a list of files to leave out names one that is in none of the sources.
    """
    for exclude in dict.fromkeys(source.reading.exclude for source in sources):
        exclude.check(record.name for record in records)
    return Manifest(tuple(across_sources(records)))


def in_one_count(sources: Sequence[Source], on_progress: OnProgress | None) -> list[OnProgress | None]:
    """What each source's scan tells its progress to, so that together they count all files once."""
    if on_progress is None or len(sources) == 1:
        return [on_progress] * len(sources)
    labels = source_labels(sources)
    counts = [
        count_files(one.folder, one.reading_as(label)) for one, label in zip(sources, labels, strict=True)
    ]
    before = accumulate(counts, initial=0)

    def told_of(start: int) -> OnProgress:
        return lambda done, total: on_progress(start + done, sum(counts))

    return [told_of(start) for start, _ in zip(before, sources, strict=False)]


def source_labels(sources: Sequence[Source]) -> list[str]:
    """ "a/", "b/", "a (2)/" for folders called a, b and a; nothing for a single one."""
    if len(sources) == 1:
        return [""]
    seen: Counter[str] = Counter()
    labels = []
    for name in (source.folder.name for source in sources):
        seen[name] += 1
        labels.append(f"{name}{f' ({seen[name]})' if seen[name] > 1 else ''}/")
    return labels


def choose_validation_images(manifest: Manifest, count: int) -> Manifest:
    """The manifest with `count` of its images to train on given the role validation.

    Chosen by their content alone, so that adding an image or another seed hardly changes the choice. Of the
    images of a trigger one is always trained on. Raises DatasetError if that leaves too few.
    """
    left = Counter(record.trigger for record in manifest.used)
    chosen: set[str] = set()
    for record in sorted(manifest.used, key=lambda one: key("holdout", one.sha256)):
        if len(chosen) < count and left[record.trigger] > 1:
            left[record.trigger] -= 1
            chosen.add(record.path)
    if len(chosen) < count:
        raise DatasetError(
            f"validation.count asks for {count} of {len(manifest.used)} images, but at least one must be "
            f"left to train on for each trigger; set validation.count to {len(chosen)} or less."
        )
    roles = (
        "validation" if one.path in chosen and one.role == "instance" else one.role
        for one in manifest.records
    )
    return Manifest(tuple(replace(one, role=role) for one, role in zip(manifest.records, roles, strict=True)))


def sources_of(data: DataConfig) -> list[Source]:
    """The folders that the recipe names. Raises DatasetError if its list of files to leave out is missing."""
    exclude = read_exclude(data.exclude) if data.exclude else ExcludeList()
    return [_source(one, data, exclude) for one in data.all_sources]


def sources_at(
    target: Path, *, trigger: str = "", class_words: str = "", recursive: bool = False
) -> list[Source]:
    """A folder of images, or those of a recipe whose captions are the user's; what is given here wins.

    Raises DatasetError if `target` is neither a folder nor a .toml file, and RecipeError.
    """
    if target.is_dir():
        return [Source(target, ScanOptions(recursive=recursive), trigger=trigger, class_words=class_words)]
    if target.suffix != ".toml" or not target.is_file():
        what = f"there is no folder {target}, nor a recipe"
        raise DatasetError(f"{what}; give the folder that holds the images, or a recipe's .toml file.")
    return [
        replace(
            one,
            trigger=trigger or one.trigger,
            class_words=class_words or one.class_words,
            reading=replace(one.reading, recursive=recursive or one.reading.recursive),
        )
        for one in sources_of(load_recipe(target).data)
        if one.role != "prior"
    ]


def _source(one: SourceConfig, data: DataConfig, exclude: ExcludeList) -> Source:
    plain = without_trigger(data.instance_prompt, data.trigger, data.class_words)
    # regularization images do not show the trigger
    prompt = data.instance_prompt if one.role != "prior" or plain is None else plain
    reading = ScanOptions(
        recursive=_or(one.recursive, data.recursive),
        background=data.background,
        transparency_is_mask=data.transparency == "mask",
        masks=one.masks,
        exclude=exclude,
    )
    return Source(
        folder=one.images,
        reading=reading,
        role=one.role,
        repeats=_or(one.repeats, data.repeats),
        weight=one.weight,
        trigger=_or(one.trigger, data.trigger),
        class_words=_or(one.class_words, data.class_words),
        instance_prompt=_or(one.instance_prompt, prompt),
    )


def _or(value: T | None, default: T) -> T:
    return default if value is None else value
