"""The plan of `lora-studio plan --json` in rows for a page."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lora_studio.errors import preview_names
from lora_studio.text import duration, file_size, memory_size, plural

Rows = list[tuple[str, str]]


def plan_rows(found: Mapping[str, Any]) -> tuple[Rows, str]:
    """Titles and texts, and why it would not fit, or ""."""
    training, memory, disk = found["training"], found["memory"], found["disk"]
    rows = [
        ("base", f"{training['base']} on {training['device']}, {training['precision']}"),
        ("images", _images(training)),
        ("steps", f"{training['steps']}, each image {training['views_per_image']:.0f} times"),
        ("learns", f"{training['num_parameters']:,} numbers in {plural(training['num_layers'], 'layer')}"),
        ("time", f"about {duration(_seconds(found))}, {training['seconds_per_step']:.2f} s a step"),
        ("memory", f"{memory_size(memory['total'])} of {memory_size(memory['room'])}"),
        ("disk", f"{file_size(disk['total'])}; the file {file_size(disk['file'])}"),
        *(("trigger", one.partition(": ")[2]) for one in training["triggers"]),
        *(("note", one) for one in [*training["base_notes"], *training["notes"], *training["adapter_notes"]]),
        *(("warning", one) for one in training["caption_warnings"]),
    ]
    if training["captions_without_trigger"]:
        rows.append(("warning", f"{training['captions_without_trigger']} captions lack the trigger"))
    fault = "" if memory["fits"] else "It does not fit into the memory that is free here."
    if disk["total"] > disk["free"]:
        fault = f"The disk has {file_size(disk['free'])} left, and {file_size(disk['total'])} are needed."
    return [(title, words) for title, words in rows if words], fault


def _images(training: Mapping[str, Any]) -> str:
    words = [f"{training['images_used']} are trained on"]
    if excluded := training["images_excluded"]:
        names = (one if isinstance(one, str) else str(one[0]) for one in excluded)
        words.append(f"{len(excluded)} not used: {preview_names(names)}")
    return ", ".join(words)


def _seconds(found: Mapping[str, Any]) -> float:
    training, timing = found["training"], found["timing"]
    if "total" in timing:
        return float(timing["total"])
    more = ("seconds_of_validation", "seconds_of_previews", "seconds_of_evaluation")
    steps = training["steps"] - training["first_step"] + 1
    return float(training["seconds_per_step"] * steps + sum(training[name] for name in more))
