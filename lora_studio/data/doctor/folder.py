"""A folder that nobody has written a recipe for -> a report."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from lora_studio.data.buckets import assign
from lora_studio.data.captioners import CAPTIONERS
from lora_studio.data.doctor import examine
from lora_studio.data.doctor.clip_tokenizer import ClipTokenizer
from lora_studio.data.doctor.finding import Report
from lora_studio.data.doctor.reading import read_anyway
from lora_studio.data.manifest import Manifest
from lora_studio.data.scan import Reading
from lora_studio.data.sources import Source
from lora_studio.families.chunks import Tokenizer

_RESOLUTION, _STRIDE = 512, 64  # those of the most common base


@dataclass(frozen=True)
class Wishes:
    """What a recipe would say."""

    base: str = ""  # "pocket", a folder, a file or a hub id; empty: bases of 512 pixels that read with CLIP
    resolution: int = 0  # pixels; 0: what the base was made for
    trigger: str = ""
    recursive: bool = False


@dataclass(frozen=True)
class _Facts:
    """What a base asks of pictures and captions."""

    resolution: int
    stride: int
    tokenizers: dict[str, Tokenizer]


def examine_folder(
    folder: Path,
    wishes: Wishes = Wishes(),
    *,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[Report, Manifest]:
    """The report and what it is about. Raises DatasetError if there is nothing to look at."""
    facts = _facts(wishes.base)
    resolution = wishes.resolution or facts.resolution
    source = Source(folder, Reading(recursive=wishes.recursive), trigger=wishes.trigger)
    manifest, faults = read_anyway([source], CAPTIONERS["sidecar"])
    manifest = assign(manifest, resolution=resolution, stride=facts.stride)
    report = examine(
        manifest,
        resolution=resolution,
        stride=facts.stride,
        tokenizers=facts.tokenizers,
        faults=faults,
        on_progress=on_progress,
    )
    return report, manifest


def _facts(base: str) -> _Facts:
    if not base:
        return _Facts(_RESOLUTION, _STRIDE, {"CLIP": ClipTokenizer()})
    from lora_studio.families.loading import load_base

    family = load_base(base, weights=False)
    return _Facts(family.native_side, family.stride, dict(family.tokenizers))
