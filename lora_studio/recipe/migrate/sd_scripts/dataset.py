"""What sd-scripts trains on: a dataset configuration, or train_data_dir and reg_data_dir of a command."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lora_studio.recipe.migrate.draft import Settings, rules
from lora_studio.recipe.migrate.folders import (
    Places,
    drop_idle_tags,
    missing,
    put_sources,
    steps_of,
    views_in,
)
from lora_studio.recipe.migrate.meanings import put_size
from lora_studio.recipe.migrate.values import is_off, of_kind, table_in, tables_in, whole_in, yes_in

_SHARED = {  # key -> option: [data] has one of it for all folders
    "caption_dropout_rate": "data.caption_dropout",
    "caption_tag_dropout_rate": "data.tag_dropout",
    "shuffle_caption": "data.shuffle_tags",
    "keep_tokens": "data.keep_tags",
    "caption_prefix": "data.caption_prefix",
    "caption_suffix": "data.caption_suffix",
    "enable_wildcard": "data.wildcards",
}


@dataclass(frozen=True)
class Shown:
    """What an epoch shows."""

    views: int = 0  # of images that are trained on; 0: not known
    factor: float = 1.0  # our steps for one of theirs

    def steps(self, batch: int, accumulation: int) -> int:
        return steps_of(self.views, batch, accumulation)


@dataclass
class _Folder:
    """A subset: where it stands, its own keys and what holds for it."""

    own: Settings
    values: dict[str, Any]
    is_prior: bool

    @property
    def path(self) -> str:
        return str(self.values.get("image_dir") or "")

    @property
    def repeats(self) -> int:
        return whole_in(self.values.get("num_repeats", 1), "num_repeats")


def put_data(given: Settings, places: Places, dataset: Mapping[str, Any], *, processes: int) -> Shown:
    """Folders, sizes, captions and the batch. Raises RecipeError for folders that are nowhere."""
    levels, found = _levels(given, dataset)
    effective = found[0].values if found else given.values
    _shared(given, levels, [one.values for one in found if not one.is_prior] or [effective])
    shown = _sources(given, places, found) if found else _data_dirs(given, places)
    _sizes(given, levels)
    factor = _batch(given, levels, processes)
    for level in levels[1:]:
        level.finish(rules("sd_scripts", "data"))
    given.by_table(rules("sd_scripts", "data", handled=False))
    return Shown(shown, factor)


def _levels(given: Settings, dataset: Mapping[str, Any]) -> tuple[list[Settings], list[_Folder]]:
    """All tables, from the command down to the subsets, and the folders with what holds for each."""
    levels, found = [given], []
    general = dict(table_in(dataset.get("general"), "general"))
    if general:
        levels.append(Settings(given.draft, general, prefix="general.", source=given.source))
    for number, one in enumerate(tables_in(dataset.get("datasets"), "datasets")):
        own = {key: value for key, value in one.items() if key != "subsets"}
        place = f"datasets[{number}]."
        levels.append(Settings(given.draft, own, prefix=place, source=given.source))
        for inner, subset in enumerate(tables_in(one.get("subsets"), "subsets")):
            table = Settings(given.draft, subset, prefix=f"{place}subsets[{inner}].", source=given.source)
            levels.append(table)
            whole = {**given.values, **general, **own, **subset}
            found.append(_Folder(table, whole, yes_in(subset.get("is_reg", False), "is_reg")))
    others = {key: value for key, value in dataset.items() if key not in ("general", "datasets")}
    if others:
        levels.append(Settings(given.draft, others, source=given.source))
    return levels, found


def _shared(given: Settings, levels: Sequence[Settings], folders: Sequence[Mapping[str, Any]]) -> None:
    """What [data] has once: of several folders the first one's."""
    values = given.draft.values
    values["data.caption_dropout"] = 0.0
    for key, option in _SHARED.items():
        said = [one.get(key) for one in folders]
        if all(is_off(one) for one in said):
            _tell_all(levels, key, lambda level, key: level.needless(key, "off"))
            continue
        values[option] = of_kind(option, next(one for one in said if not is_off(one)), key)
        alike = len({str(one) for one in said}) == 1
        _tell_all(levels, key, _taker(option, values[option], "" if alike else "the same for all folders"))
    drop_idle_tags(values)
    for key, option, value in (
        ("flip_aug", "data.flip", 0.5),
        ("random_crop", "data.crop", "random"),
        ("alpha_mask", "data.transparency", "mask"),
    ):
        if any(yes_in(one.get(key, False), key) for one in folders):
            values[option] = value
            _tell_all(levels, key, _taker(option, value, ""))
        else:
            _tell_all(levels, key, lambda level, key: level.needless(key, "off"))
    if not any(yes_in(one.get("enable_wildcard", False), "enable_wildcard") for one in folders):
        given.draft.notes.append(
            "of caption files with several lines sd-scripts reads the first; see data.caption_lines"
        )
    if given.has("max_token_length"):
        chunks = max(1, -(-(given.whole("max_token_length") or 75) // 75))
        given.exactly("max_token_length", "data.max_token_chunks", chunks)


def _taker(option: str, value: Any, why: str) -> Any:
    def take(level: Settings, key: str) -> None:
        if why:
            level.changed(key, option, value, why)
        else:
            level.exactly(key, option, value)

    return take


def _tell_all(levels: Sequence[Settings], key: str, tell: Any) -> None:
    for level in levels:
        if key in level.values:
            tell(level, key)


def _sizes(given: Settings, levels: Sequence[Settings]) -> None:
    """Resolution and buckets: what is nearest to the images wins."""
    values = given.draft.values
    sizes = [level for level in levels if level.has("resolution")]
    for level in sizes:
        put_size(level, "resolution")
    sides = [fate for fate in (values.get("data.resolution"),) if fate]
    if len({str(level.get("resolution")) for level in sizes[1:]}) > 1:
        given.draft.notes.append(f"several resolutions are there; all images are learned at {sides[0]}")
    no_upscale = any(level.has("bucket_no_upscale") and level.yes("bucket_no_upscale") for level in levels)
    values["data.max_upscale"] = 1.0 if no_upscale else 16.0
    bucketed = any(level.has("enable_bucket") and level.yes("enable_bucket") for level in levels)
    for level in levels:
        if level.has("bucket_no_upscale"):
            level.exactly("bucket_no_upscale", "data.max_upscale", values["data.max_upscale"])
        if level.has("enable_bucket") and bucketed:
            level.needless("enable_bucket", "images keep their shapes, in buckets")
        elif level.has("enable_bucket"):
            level.unsupported("enable_bucket", "images keep their shapes, in buckets; crop them beforehand")
    if not bucketed and not any(level.has("enable_bucket") for level in levels):
        given.draft.notes.append(
            "without enable_bucket sd-scripts crops all images to one size; here buckets keep shapes"
        )


def _batch(given: Settings, levels: Sequence[Settings], processes: int) -> float:
    """The batch of all processes; where half of it would be regularization images, of the others alone."""
    values = given.draft.values
    keys = ("batch_size", "train_batch_size")
    holders = [(level, key) for level in levels for key in keys if level.has(key)]
    theirs = (holders[-1][0].whole(holders[-1][1]) or 1) if holders else 1
    whole = theirs * processes
    ours = max(1, math.ceil(whole / 2)) if has_prior(values) else whole
    values["training.batch_size"] = ours
    why = f"of all {processes} processes together" if processes > 1 else ""
    if has_prior(values):
        why = "beside as many regularization images" + (f", {why}" if why else "")
    for level, key in holders:
        if why:
            level.changed(key, "training.batch_size", ours, why)
        else:
            level.exactly(key, "training.batch_size", ours)
    if not holders:
        values["training.batch_size"] = ours
    return whole / (2 * ours) if has_prior(values) else 1.0


def has_prior(values: Mapping[str, Any]) -> bool:
    """Whether there are regularization images."""
    prior = any(one.get("role") == "prior" for one in values.get("data.sources", []))
    return prior or "data.regularization_images.images" in values


def _data_dirs(given: Settings, places: Places) -> int:
    """train_data_dir and reg_data_dir, with their folders <repeats>_<name>; how many views."""
    values, said = given.draft.values, given.text("train_data_dir")
    folder = places.folder(said, alone=True)
    if folder is None:
        raise missing([said or "train_data_dir"])
    theirs = places.find(said)
    values["data.images"] = places.written(folder)
    if given.has("train_data_dir") and theirs == folder:
        given.exactly("train_data_dir", "data.images", values["data.images"])
    elif given.has("train_data_dir"):
        why = "not on this machine: --images; repeats in names of folders count here, too"
        given.changed("train_data_dir", "data.images", values["data.images"], why)
    if reg := given.text("reg_data_dir"):
        _reg_dir(given, places, reg)
    _weight(given)
    return views_in(folder)


def _reg_dir(given: Settings, places: Places, said: str) -> None:
    found = places.folder(said, alone=False)
    if found is None:
        given.unsupported(
            "reg_data_dir", "not on this machine; give data.regularization_images.images a folder"
        )
        return
    why = "one beside each image, in the same batch; there they are mixed among the others"
    given.changed("reg_data_dir", "data.regularization_images.images", places.written(found), why)


def _weight(given: Settings) -> None:
    if not given.has("prior_loss_weight"):
        return
    if has_prior(given.draft.values):
        weight = given.number("prior_loss_weight")
        given.exactly("prior_loss_weight", "data.regularization_images.weight", weight)
    else:
        given.needless("prior_loss_weight", "without regularization images")


def _sources(given: Settings, places: Places, found: Sequence[_Folder]) -> int:
    """The subsets' folders; how many views, 0 if not all are here."""
    values = given.draft.values
    learned = [one for one in found if not one.is_prior]
    lost, sources, views = [], [], 0
    for one in found:
        alone = len(learned) == 1 and not one.is_prior
        folder = places.folder(one.path, alone=alone) if one.path or alone else None
        if folder is None and one.is_prior:
            one.own.unsupported("image_dir", "not on this machine; add it to data.sources with role = prior")
            for key in ("is_reg", "num_repeats", "class_tokens"):
                one.own.needless(key, "its folder is not here") if key in one.own.values else None
            continue
        if folder is None:
            lost.append(one.path or "image_dir")
            continue
        sources.append(_source(one, places, folder))
        views += 0 if one.is_prior else one.repeats * views_in(folder, recursive=False)
    weight = given.number("prior_loss_weight")
    for source in sources:
        if source.get("role") == "prior" and weight not in (None, 1.0):
            source["weight"] = weight
    put_sources(values, sources, lost)
    for key in ("train_data_dir", "reg_data_dir"):
        if given.has(key):
            given.along(key, "the dataset configuration, which names folders")
    if given.has("prior_loss_weight"):
        if has_prior(values):
            given.along("prior_loss_weight", "weight in data.sources")
        else:
            given.needless("prior_loss_weight", "without regularization images")
    return views


def _source(one: _Folder, places: Places, folder: Any) -> dict[str, Any]:
    """A table of data.sources."""
    source: dict[str, Any] = {"images": places.written(folder)}
    own = one.own
    if one.path and places.find(one.path) == folder:
        own.along("image_dir", f"images = {source['images']}")
    elif "image_dir" in own.values:
        own.moved("image_dir", f"not on this machine: {source['images']}")
    if one.is_prior:
        source["role"] = "prior"
        own.along("is_reg", 'role = "prior"')
    elif "is_reg" in own.values:
        own.needless("is_reg", "off")
    if one.repeats != 1 and not one.is_prior:
        source["repeats"] = one.repeats
    if "num_repeats" in own.values:
        if one.is_prior:
            own.needless("num_repeats", "as many as are shown of the others")
        else:
            own.along("num_repeats", f"repeats = {one.repeats}")
    if tokens := str(one.values.get("class_tokens") or "").strip():
        source["instance_prompt"] = tokens
        own.along("class_tokens", f"instance_prompt = {tokens}")
    if masks := str(one.values.get("conditioning_data_dir") or ""):
        if (found := places.find(masks)) is not None:
            source["masks"] = places.written(found)
            own.along("conditioning_data_dir", f"masks = {source['masks']}")
        else:
            own.unsupported("conditioning_data_dir", "not on this machine; masks in [[data.sources]]")
    return source
