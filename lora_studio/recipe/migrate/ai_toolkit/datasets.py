"""ai-toolkit's list `datasets`: folders, each with its own settings."""

from __future__ import annotations

from typing import Any

from lora_studio.recipe.migrate.draft import Settings, rules
from lora_studio.recipe.migrate.folders import Places, put_sources, views_in
from lora_studio.recipe.migrate.meanings import sides_in
from lora_studio.recipe.migrate.values import is_off, tables_in


def put_datasets(given: Settings, places: Places, listed: object) -> int:
    """Folders, each with its own settings, and an epoch's views; what [data] has once is the first one's."""
    tables = tables_in(listed, "datasets")
    given.in_parts("datasets") if "datasets" in given.values else None
    lost, sources, views = [], [], 0
    learned = [one for one in tables if is_off(one.get("is_reg"))]
    for number, one in enumerate(tables):
        inner = Settings(given.draft, one, prefix=f"datasets[{number}].", source=given.source)
        said = str(one.get("folder_path") or one.get("dataset_path") or "")
        folder = places.folder(said, alone=len(learned) == 1 and one in learned)
        if folder is None:
            lost.append(said or "folder_path")
            continue
        source = _dataset(inner, places, folder)
        sources.append(source)
        views += source.get("repeats", 1) * views_in(folder) if one in learned else 0
    values = given.draft.values
    put_sources(values, sources or ([] if lost else [places.instead("datasets")]), lost)
    values.setdefault("data.caption_dropout", 0.0)
    values["data.max_upscale"] = 16.0
    return views


def _dataset(inner: Settings, places: Places, folder: Any) -> dict[str, Any]:
    """A table of data.sources; options of [data] go into the draft unless another dataset has set them."""
    source: dict[str, Any] = {"images": places.written(folder)}
    for key in ("folder_path", "dataset_path"):
        if inner.has(key):
            inner.along(key, f"images = {source['images']}")
    if not is_off(inner.get("is_reg")):
        source["role"] = "prior"
    elif (repeats := inner.whole("num_repeats") or 1) != 1:
        source["repeats"] = repeats
    for key in ("is_reg", "num_repeats"):
        if key in inner.values:
            inner.along(key, "data.sources")
    if (weight := inner.number("loss_multiplier")) not in (None, 1.0):
        source["weight"] = weight
    if "loss_multiplier" in inner.values:
        inner.along("loss_multiplier", "weight")
    if caption := inner.text("default_caption"):
        source["instance_prompt"] = caption
    if "default_caption" in inner.values:
        inner.along("default_caption", "instance_prompt")
    if masks := inner.text("mask_path"):
        if (found := places.find(masks)) is not None:
            source["masks"] = places.written(found)
            inner.along("mask_path", f"masks = {source['masks']}")
        else:
            inner.unsupported("mask_path", "not on this machine; masks in [[data.sources]]")
    _shared(inner)
    inner.finish(rules("ai_toolkit", "dataset"))
    return source


def _shared(inner: Settings) -> None:
    values = inner.draft.values
    sides = list(dict.fromkeys(sides_in(inner.get("resolution") or 512, "resolution")))
    first = max(sides)
    values.setdefault("data.resolution", first)
    rest = [one for one in sides if one != first]
    if rest:
        values.setdefault("data.extra_resolutions", rest)
    if "resolution" in inner.values:
        inner.exactly("resolution", "data.resolution", values["data.resolution"])
        if rest:
            inner.exactly("resolution", "data.extra_resolutions", values["data.extra_resolutions"])
    for key, option in (
        ("caption_dropout_rate", "data.caption_dropout"),
        ("token_dropout_rate", "data.tag_dropout"),
        ("shuffle_tokens", "data.shuffle_tags"),
        ("keep_tokens", "data.keep_tags"),
    ):
        if key in inner.values and not is_off(inner.get(key)):
            value: Any = (
                inner.number(key) if "rate" in key else inner.whole(key) if key[0] == "k" else inner.yes(key)
            )
            if option in values and values[option] != value:
                inner.changed(key, option, values[option], "the same for all folders")
            else:
                inner.exactly(key, option, value)
        elif key in inner.values:
            inner.needless(key, "off")
    for key, option, value in (
        ("flip_x", "data.flip", 0.5),
        ("random_crop", "data.crop", "random"),
        ("alpha_mask", "data.transparency", "mask"),
    ):
        if key in inner.values and inner.yes(key):
            inner.exactly(key, option, value)
        elif key in inner.values:
            inner.needless(key, "off")
