"""SimpleTuner's data backends: those of images become folders."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from lora_studio.recipe.migrate.draft import Settings, rules
from lora_studio.recipe.migrate.folders import Places, put_sources, views_in
from lora_studio.recipe.migrate.reading import read_settings
from lora_studio.recipe.migrate.values import is_off


def is_backends(content: Sequence[Any]) -> bool:
    """Whether a list is one of data backends."""
    return bool(content) and all(isinstance(one, dict) and "id" in one and "type" in one for one in content)


def put_backends(given: Settings, places: Places, data: Any) -> int:
    """The folders among the data backends; an epoch's views, 0 if they are not known."""
    listed = data
    said = given.text("data_backend_config")
    if listed is None and said:
        path = places.find(said)
        listed = read_settings(path) if path is not None and path.is_file() else None
        if listed is None:
            given.moved("data_backend_config", "not here: --images")
    values = given.draft.values
    values["data.caption_dropout"] = given.number("caption_dropout_probability") or 0.0
    values["data.max_upscale"] = 16.0
    tables = [one for one in listed or [] if isinstance(one, dict)]
    sources, lost, views = [], [], 0
    learned = [one for one in tables if _is_images(one)]
    for number, one in enumerate(tables):
        inner = Settings(given.draft, one, prefix=f"backends[{number}].", source=given.source)
        if one not in learned:
            for key in one:
                inner.needless(key, "of a cache, or switched off")
            continue
        named = str(one.get("instance_data_dir") or "")
        folder = places.folder(named, alone=len(learned) == 1)
        if folder is None:
            lost.append(named or str(one.get("id")))
            continue
        source = _backend(inner, places, folder)
        sources.append(source)
        views += source.get("repeats", 1) * views_in(folder, recursive=True) if "role" not in source else 0
    if not sources and not lost and places.images:
        views = views_in(places.images)
    put_sources(values, sources or ([] if lost else [places.instead(said or "the data backends")]), lost)
    values.setdefault("data.resolution", given.whole("resolution") or 1024)
    if "resolution" in given.values:
        given.exactly("resolution", "data.resolution", values["data.resolution"])
    return views


def _is_images(one: Mapping[str, Any]) -> bool:
    off = not is_off(one.get("disabled")) or not is_off(one.get("disable"))
    return str(one.get("dataset_type", "image")) in ("image", "eval") and not off


def _backend(inner: Settings, places: Places, folder: Any) -> dict[str, Any]:
    """A table of data.sources; resolution and crop go into the draft unless another has set them."""
    values = inner.draft.values
    source: dict[str, Any] = {"images": places.written(folder), "recursive": True}
    if "instance_data_dir" in inner.values:
        inner.along("instance_data_dir", f"images = {source['images']}")
    repeats = (inner.whole("repeats") or 0) + 1
    if repeats != 1:
        source["repeats"] = repeats
    if "repeats" in inner.values:
        inner.moved("repeats", f"repeats = {repeats}: theirs counts from 0")
    for key in ("is_regularisation_data", "is_regularization_data"):
        if key in inner.values and inner.yes(key):
            source["role"] = "prior"
            source.pop("repeats", None)
            inner.moved(key, "role = prior: the images are learned as they are, not the base's prediction")
        elif key in inner.values:
            inner.needless(key, "off")
    if inner.text("dataset_type") == "eval":
        source["role"] = "validation"
    _captions(inner, source)
    _resolution(inner)
    crop = inner.yes("crop")
    if "crop" in inner.values:
        style = inner.text("crop_style") or "random"
        if crop and style in ("random", "center", "centre"):
            mode = "random" if style == "random" else "centre"
            inner.changed("crop", "data.crop", mode, "of a bucket's shape, not a square")
        elif crop:
            inner.unsupported("crop", "data.crop knows centre, random and focus")
        else:
            inner.needless("crop", "images keep their shapes, in buckets")
    values.setdefault("data.resolution", 1024)
    inner.finish(rules("simple_tuner", "backend"))
    return source


def _captions(inner: Settings, source: dict[str, Any]) -> None:
    strategy, prompt = inner.text("caption_strategy") or "textfile", inner.text("instance_prompt")
    if prompt and (strategy == "instanceprompt" or inner.yes("only_instance_prompt")):
        source["instance_prompt"] = prompt
        inner.moved("instance_prompt", "instance_prompt of images without a caption; .txt files count here")
    elif prompt and inner.yes("prepend_instance_prompt"):
        inner.exactly("instance_prompt", "data.caption_prefix", prompt)
    elif "instance_prompt" in inner.values:
        inner.needless("instance_prompt", "not used with such captions")
    if "caption_strategy" in inner.values:
        if strategy in ("textfile", "instanceprompt"):
            inner.along("caption_strategy", "the .txt beside each image, or instance_prompt")
        else:
            how = (
                "lora-studio caption FOLDER --with filename" if strategy == "filename" else "a metadata.jsonl"
            )
            inner.unsupported("caption_strategy", f"{how} makes such captions")
    for key in ("only_instance_prompt", "prepend_instance_prompt"):
        if key in inner.values:
            inner.along(key, "instance_prompt")


def _resolution(inner: Settings) -> None:
    if not inner.has("resolution"):
        return
    side, kind = inner.number("resolution") or 1024.0, inner.text("resolution_type") or "pixel_area"
    if kind == "area":
        whole = round(math.sqrt(side * 1e6) / 64) * 64
        inner.changed("resolution", "data.resolution", whole, f"the side of a square of {side:g} megapixels")
    elif kind == "pixel":
        why = "the side of a square of a bucket's area, not the shorter edge"
        inner.changed("resolution", "data.resolution", round(side), why)
    else:
        inner.exactly("resolution", "data.resolution", round(side))
