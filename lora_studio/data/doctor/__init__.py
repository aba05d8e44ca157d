"""The doctor: what is wrong with a set of images, said before it is trained on. It changes nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from lora_studio.data.buckets import assign
from lora_studio.data.captioners import CAPTIONERS, Captioner
from lora_studio.data.captions import find_captions
from lora_studio.data.captions.trigger import tokens_in_words
from lora_studio.data.doctor.finding import DoctorReport, Finding, bucket_plan, worst_first
from lora_studio.data.doctor.look import Case, Looks, Requirements
from lora_studio.data.manifest import Manifest, Record
from lora_studio.data.scan import ScanOptions, survey
from lora_studio.data.sources import Source, in_one_count, in_one_manifest, source_labels
from lora_studio.families.original.configurations import BEGIN, END, END_OF_WORD, clip_merges, clip_vocabulary
from lora_studio.recipe.data import DataConfig
from lora_studio.registry import Registry
from lora_studio.text import same_text

if TYPE_CHECKING:
    import tokenizers

Check = Callable[[Case], Iterable[Finding]]
OnProgress = Callable[[int, int], None]  # images looked at, images to look at

_PLACES = """
files:refused captions:caption_missing captions:caption_empty captions:caption_unreadable files:same_name
images:leakage files:too_few files:unusable captions:trigger_missing captions:trigger_known
captions:trigger_read_otherwise captions:other_syntax captions:caption_too_long captions:caption_identical
files:orphan_caption
images:exact_duplicate images:near_duplicate images:blank images:blur images:upscaled images:tiny
images:heavy_compression images:border images:extreme_aspect images:crop_loss files:ignored files:read_note
"""  # in the order of reports: the module check_<...> and its function, whose name is the finding's kind
CHECKS: Registry[Check] = Registry(
    "check", {place.split(":")[1]: f"{__name__}.check_{place}" for place in _PLACES.split()}
)


def examine(
    manifest: Manifest,
    requirements: Requirements,
    *,
    faults: Sequence[str] = (),
    written: Mapping[str, Sequence[str]] = MappingProxyType({}),
    looks: Looks | None = None,
    on_progress: OnProgress = lambda done, total: None,
) -> DoctorReport:
    """All findings about a manifest with buckets, and its plan.

    `faults`: what the reading found that would stop a training. `written`: by name the captions that an
    image may be shown with, where they are not those beside it. `looks`: has seen the images while they were
    decoded; those that it has not are read again. Raises DatasetError if such a file has changed since.
    """
    if looks is None:
        data = DataConfig.model_construct(resolution=requirements.resolution)
        looks = Looks(data, requirements.stride)
    seen = looks.of(manifest.usable, on_progress)
    case = Case(manifest, seen, requirements, faults, written)
    findings = [replace(one, kind=kind) for kind in CHECKS.names() for one in CHECKS[kind](case)]
    plan = bucket_plan(manifest, requirements.resolution, requirements.stride)
    triggers = dict.fromkeys(record.trigger for record in manifest.used if record.trigger)
    plan["triggers"] = [tokens_in_words(trigger, requirements.tokenizers) for trigger in triggers]
    plan["base_notes"] = list(requirements.base_notes)
    return DoctorReport(worst_first(findings, CHECKS.names()), plan, manifest.usable)


@dataclass(frozen=True)
class DoctorOptions:
    """What a recipe would say of a folder."""

    base: str = ""  # "pocket", a folder, a file or a hub id; empty: bases of 512 pixels that read with CLIP
    resolution: int = 0  # pixels; 0: what the base was made for
    trigger: str = ""
    recursive: bool = False


def examine_folder(
    folder: Path,
    options: DoctorOptions = DoctorOptions(),
    *,
    on_progress: OnProgress = lambda done, total: None,
) -> tuple[DoctorReport, Manifest]:
    """The report on a folder without a recipe, and what it is about. DatasetError: there is nothing in it."""
    if options.base:
        from lora_studio.families.loading import load_base

        family = load_base(options.base, weights=False)
        facts = family.native_side, family.stride, family.tokenizers
        asked = Requirements(*facts, base_notes=family.notes)
    else:
        asked = Requirements(512, 64, {"CLIP": ClipTokenizer()})  # those of the most common bases
    asked = replace(asked, resolution=options.resolution or asked.resolution)
    source = Source(folder, ScanOptions(recursive=options.recursive), trigger=same_text(options.trigger))
    data = DataConfig.model_construct(images=folder, resolution=asked.resolution)
    looks = Looks(data, asked.stride)
    manifest, faults = read_anyway([source], CAPTIONERS["sidecar"], looks=looks, on_progress=on_progress)
    manifest = assign(manifest, data, stride=asked.stride)
    return examine(manifest, asked, faults=faults, looks=looks), manifest


def read_anyway(
    sources: Sequence[Source],
    captioner: Captioner,
    *,
    looks: Looks | None = None,
    on_progress: OnProgress | None = None,
) -> tuple[Manifest, list[str]]:
    """As `read_sources`, with "" as caption where there is none, and sentences about masks that do not fit.

    `looks` gets the images while they are decoded, which is then done to no more pixels than it needs.
    Raises DatasetError for a folder that cannot be read at all and for a list of captions that is none.
    """
    records: list[Record] = []
    faults: list[str] = []
    each = zip(sources, source_labels(sources), in_one_count(sources, on_progress), strict=True)
    for source, label, told_of in each:
        reading, told = source.reading_as(label), None
        if looks:
            reading, told = replace(reading, enough_pixels=looks.enough_pixels), source.told(looks.take)
        manifest, fault = survey(
            source.folder, reading, repeats=source.repeats, on_image=told, on_progress=told_of
        )
        records += source.labelled(_captioned(manifest, source, captioner), label)
        faults += [fault] if fault else []
    return in_one_manifest(sources, records), faults


def _captioned(manifest: Manifest, source: Source, captioner: Captioner) -> Manifest:
    """With the captions that training would read; the captioner does not get what it would refuse.

    An image whose caption file is unreadable has no caption, even if its folder's name would do.
    """
    readable = tuple(
        record
        for record, file in zip(manifest.used, find_captions(manifest.used), strict=True)
        if not file.fault and (file.text or record.caption or source.instance_prompt.strip())
    )
    captioned = captioner(Manifest(readable), instance_prompt=source.instance_prompt)
    by_name = {record.name: record for record in captioned.records}

    def known(record: Record) -> Record:
        if record.excluded or record.name in by_name:
            return by_name.get(record.name, record)
        return replace(record, caption="", captioned_by="")

    return Manifest(tuple(map(known, manifest.records)))


class ClipTokenizer:
    """Counts and cuts as the text encoders of Stable Diffusion 1 and XL do, without torch or a download."""

    model_max_length = 77
    added_tokens_encoder: Mapping[str, int] = MappingProxyType({})

    def __init__(self) -> None:
        self._tokenizer = _tokenizer()

    def __call__(
        self, text: str, *, add_special_tokens: bool = True, verbose: bool = True
    ) -> dict[str, list[int]]:
        """All tokens, with the marks of begin and end if wanted; nothing is cut off."""
        return {"input_ids": self._tokenizer.encode(text, add_special_tokens=add_special_tokens).ids}

    def decode(self, token_ids: list[int], skip_special_tokens: bool = False) -> str:
        """In small letters, as that is how it was read."""
        text = self._tokenizer.decode(token_ids, skip_special_tokens=skip_special_tokens)
        return text.replace(END_OF_WORD, " ").strip()

    def get_vocab(self) -> dict[str, int]:
        return self._tokenizer.get_vocab()

    def num_special_tokens_to_add(self) -> int:
        return self._tokenizer.num_special_tokens_to_add(is_pair=False)


@cache
def _tokenizer() -> tokenizers.Tokenizer:
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    numbers, suffix = clip_vocabulary(), END_OF_WORD
    tokenizer = Tokenizer(models.BPE(numbers, clip_merges(), unk_token=END, end_of_word_suffix=suffix))
    clip_merges.cache_clear()  # 8 MB of pairs, which the tokenizer has now
    one_space = normalizers.Replace(Regex(r"\s+"), " ")
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), one_space, normalizers.Lowercase()])
    words = Regex(r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+")
    split = pre_tokenizers.Split(words, behavior="removed", invert=True)
    in_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, in_bytes])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([BEGIN, END])
    marks = [(mark, numbers[mark]) for mark in (BEGIN, END)]
    tokenizer.post_processor = processors.TemplateProcessing(f"{BEGIN} $A {END}", special_tokens=marks)
    return tokenizer
