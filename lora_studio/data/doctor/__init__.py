"""The doctor: what is wrong with a set of images, said before it is trained on. It changes nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

from lora_studio.data.captions.trigger_tokens import tokens_in_words
from lora_studio.data.doctor.finding import DoctorReport, Finding, bucket_plan, worst_first
from lora_studio.data.doctor.look import Case, look_at
from lora_studio.data.manifest import Manifest
from lora_studio.families.text_chunks import Tokenizer
from lora_studio.registry import Registry

Check = Callable[[Case], Iterable[Finding]]

_PLACE = "lora_studio.data.doctor.checks"
CHECKS: Registry[Check] = Registry(
    "check",
    {
        "refused": f"{_PLACE}.files:refused",
        "caption_missing": f"{_PLACE}.captions:caption_missing",
        "caption_empty": f"{_PLACE}.captions:caption_empty",
        "caption_unreadable": f"{_PLACE}.captions:caption_unreadable",
        "same_name": f"{_PLACE}.files:same_name",
        "leakage": f"{_PLACE}.duplicates:leakage",
        "too_few": f"{_PLACE}.files:too_few",
        "unusable": f"{_PLACE}.files:unusable",
        "trigger_missing": f"{_PLACE}.captions:trigger_missing",
        "trigger_known": f"{_PLACE}.captions:trigger_known",
        "trigger_read_otherwise": f"{_PLACE}.captions:trigger_read_otherwise",
        "caption_too_long": f"{_PLACE}.captions:caption_too_long",
        "caption_identical": f"{_PLACE}.captions:caption_identical",
        "orphan_caption": f"{_PLACE}.files:orphan_caption",
        "exact_duplicate": f"{_PLACE}.duplicates:exact_duplicate",
        "near_duplicate": f"{_PLACE}.duplicates:near_duplicate",
        "blank": f"{_PLACE}.detail:blank",
        "blur": f"{_PLACE}.detail:blur",
        "upscaled": f"{_PLACE}.detail:upscaled",
        "tiny": f"{_PLACE}.detail:tiny",
        "heavy_compression": f"{_PLACE}.detail:heavy_compression",
        "border": f"{_PLACE}.detail:border",
        "extreme_aspect": f"{_PLACE}.detail:extreme_aspect",
        "crop_loss": f"{_PLACE}.detail:crop_lost",
        "ignored": f"{_PLACE}.files:ignored",
        "read_note": f"{_PLACE}.files:read_note",
    },
)


def examine(
    manifest: Manifest,
    *,
    resolution: int,
    stride: int,
    tokenizers: Mapping[str, Tokenizer],
    faults: Sequence[str] = (),
    written: Mapping[str, Sequence[str]] = {},
    max_chunks: int = 1,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> DoctorReport:
    """All findings about a manifest with buckets, and its plan.

    `faults`: what the reading found that would stop a training. `written`: by name the captions that a
    image may be shown with, where they are not those beside it; `max_chunks`: how many windows of the text
    encoders one may fill. `on_progress` hears how many of how many images were looked at.
    Raises DatasetError if a file changed since it was scanned.
    """
    usable = [record for record in manifest.records if not record.excluded]
    case = Case(
        manifest.records, look_at(usable, on_progress), tokenizers, resolution, faults, written, max_chunks
    )
    findings = [replace(one, kind=kind) for kind in CHECKS.names() for one in CHECKS[kind](case)]
    plan = bucket_plan(manifest.records, resolution=resolution, stride=stride)
    triggers = dict.fromkeys(record.trigger for record in case.trained if record.trigger)
    plan["triggers"] = [tokens_in_words(trigger, tokenizers) for trigger in triggers]
    return DoctorReport(worst_first(findings, CHECKS.names()), plan)
