"""OneTrainer's concepts: folders with settings of their images and captions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from lora_studio.recipe.migrate.draft import Settings, rules
from lora_studio.recipe.migrate.folders import Places, put_sources, views_in
from lora_studio.recipe.migrate.meanings import sides_in
from lora_studio.recipe.migrate.reading import read_settings
from lora_studio.recipe.migrate.values import is_off, tables_in, yes_in


def is_concepts(content: Sequence[Any]) -> bool:
    """Whether a list is one of concepts."""
    return bool(content) and all(isinstance(one, dict) and "path" in one for one in content)


def put_concepts(given: Settings, places: Places, data: Any) -> int:
    """The folders; how many views an epoch has, 0 if that is not known."""
    listed = given.get("concepts") or data
    if not listed and given.has("concept_file_name"):
        path = places.find(given.text("concept_file_name"))
        listed = read_settings(path) if path is not None and path.is_file() else None
    for key in ("concepts", "concept_file_name"):
        if key in given.values:
            given.in_parts(key) if listed else given.moved(key, "not here: --images")
    concepts = tables_in(listed, "concepts")
    used = [one for one in concepts if yes_in(one.get("enabled", True), "enabled")]
    sides = sides_in(given.get("resolution"), "resolution")
    given.exactly("resolution", "data.resolution", sides[0])
    if len(sides) > 1:
        given.changed("resolution", "data.extra_resolutions", sides[1:], "each image at each of them")
    values = given.draft.values
    values |= {"data.caption_dropout": 0.0, "data.max_upscale": 16.0}
    if not used:
        source = places.instead(given.text("concept_file_name") or "concepts")
        put_sources(values, [source], [])
        return views_in(places.images) if places.images else 0
    return _put_used(given, places, used)


def _put_used(given: Settings, places: Places, used: Sequence[dict[str, Any]]) -> int:
    sources, lost, views = [], [], 0
    learned = [one for one in used if not yes_in(one.get("validation_concept", False), "validation_concept")]
    for number, one in enumerate(used):
        inner = Settings(given.draft, one, prefix=f"concepts[{number}].", source=given.source)
        folder = places.folder(str(one.get("path", "")), alone=len(learned) == 1 and one in learned)
        if folder is None:
            lost.append(str(one.get("path", "")))
            continue
        source, repeats = _concept(inner, places, folder)
        sources.append(source)
        views += (
            math.ceil(repeats * views_in(folder, recursive=source.get("recursive", False)))
            if one in learned
            else 0
        )
    put_sources(given.draft.values, sources, lost)
    return views


def _concept(inner: Settings, places: Places, folder: Any) -> tuple[dict[str, Any], float]:
    """A table of data.sources, and how often an epoch shows its images."""
    source: dict[str, Any] = {"images": places.written(folder)}
    inner.along("path", f"images = {source['images']}")
    kind = inner.text("type").upper()
    if inner.yes("validation_concept") or kind == "VALIDATION":
        source["role"] = "validation"
    elif kind == "PRIOR_PREDICTION":
        source["role"] = "prior"
    for key in ("validation_concept", "type"):
        if key in inner.values:
            inner.along(key, f"role = {source.get('role', 'instance')}")
    if inner.yes("include_subdirectories"):
        source["recursive"] = True
    if "include_subdirectories" in inner.values:
        inner.along("include_subdirectories", f"recursive = {str('recursive' in source).lower()}")
    key = "balancing" if "balancing" in inner.values else "repeats"
    repeats = inner.number(key) or 1.0
    strategy = inner.text("balancing_strategy") or "REPEATS"
    if strategy == "SAMPLES":
        inner.moved(key, "all images are shown; a number of samples an epoch is not there")
        repeats = 1.0
    elif repeats != round(repeats) or repeats < 1:
        inner.moved(key, f"repeats = {max(1, round(repeats))}, a whole number")
    elif key in inner.values:
        inner.along(key, f"repeats = {round(repeats)}")
    if "balancing_strategy" in inner.values:
        inner.along("balancing_strategy", key)
    if (whole := max(1, round(repeats))) != 1:
        source["repeats"] = whole
    if (weight := inner.number("loss_weight")) not in (None, 1.0):
        source["weight"] = weight
    if "loss_weight" in inner.values:
        inner.along("loss_weight", "weight")
    _concept_image(inner)
    if prompt := _concept_text(inner, places):
        source["instance_prompt"] = prompt
    inner.finish(rules("one_trainer", "concept"))
    return source, repeats


def _concept_image(inner: Settings) -> None:
    given = inner.part("image")
    if given.values.get("enable_random_flip", True):
        inner.draft.values["data.flip"] = 0.5
    if "enable_random_flip" in given.values:
        if given.yes("enable_random_flip"):
            given.exactly("enable_random_flip", "data.flip", 0.5)
        else:
            given.needless("enable_random_flip", "off")
    if is_off(given.get("enable_resolution_override")) and "resolution_override" in given.values:
        given.needless("resolution_override", "off")
    given.finish(rules("one_trainer", "image"))
    if "image" in inner.values:
        inner.in_parts("image")


def _concept_text(inner: Settings, places: Places) -> str:
    """What captions are made of; the prompt of images without one."""
    given = inner.part("text")
    prompt, kind = "", given.text("prompt_source") or "sample"
    if kind == "concept" and (path := places.find(given.text("prompt_path"))) is not None and path.is_file():
        lines = [line.strip() for line in path.read_text("utf-8", "replace").splitlines() if line.strip()]
        prompt = lines[0] if lines else ""
        given.moved(
            "prompt_source", f"instance_prompt = {prompt}, of images without a caption; the first line"
        )
    elif kind == "concept":
        given.unsupported(
            "prompt_source", "that file is not here; data.instance_prompt is one caption for all"
        )
    elif kind == "filename":
        given.unsupported("prompt_source", "lora-studio caption FOLDER --with filename writes such captions")
    elif given.has("prompt_source"):
        given.along("prompt_source", "the .txt beside each image")
    if "prompt_path" in given.values:
        given.along("prompt_path", "prompt_source")
    values = inner.draft.values
    if given.yes("enable_tag_shuffling"):
        given.exactly("enable_tag_shuffling", "data.shuffle_tags", True)
        values["data.keep_tags"] = 1 if (kept := given.whole("keep_tags_count")) is None else kept
    elif "enable_tag_shuffling" in given.values:
        given.needless("enable_tag_shuffling", "off")
    if "keep_tags_count" in given.values:
        given.along("keep_tags_count", "data.keep_tags")
    if given.yes("tag_dropout_enable") and (share := given.number("tag_dropout_probability")):
        given.exactly("tag_dropout_probability", "data.tag_dropout", min(0.99, share))
        given.along("tag_dropout_enable", "data.tag_dropout")
    for key in ("tag_dropout_enable", "tag_dropout_probability"):
        if key in given.values and key not in given.told:
            given.needless(key, "off")
    given.finish(rules("one_trainer", "text"))
    if "text" in inner.values:
        inner.in_parts("text")
    return prompt
