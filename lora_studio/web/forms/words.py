"""What the base's tokenizers make of the trigger while it is typed, in the doctor's own words.

Tokenizers of transformers bring torch, so they are asked in a process of their own; CLIP's needs none.
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from functools import lru_cache

from lora_studio.data.captions.trigger import tokens_in_words
from lora_studio.data.doctor import CHECKS, ClipTokenizer
from lora_studio.data.doctor.look import Case, Requirements
from lora_studio.data.manifest import Manifest, Record
from lora_studio.errors import StudioError
from lora_studio.families.original import BaseKind
from lora_studio.families.original.glance import BaseGlance, glance_at_base
from lora_studio.families.text_chunks import Tokenizer
from lora_studio.files import expanded
from lora_studio.pocket import EMBEDDED
from lora_studio.text import same_text, with_class
from lora_studio.web.kept_process import KeptProcess

_CHECK = "trigger_known"


@dataclass(frozen=True)
class TriggerVerdict:
    reading: str  # 'trigger "vkq robot": 4 tokens (v, k, q, robot)'
    severity: str = ""  # "warning" or "note"; empty: a good one
    finding: str = ""
    advice: str = ""


def read_trigger(
    process: KeptProcess, base: str, trigger: str, class_words: str = ""
) -> Future[TriggerVerdict]:
    """The verdict, at once for bases that read with CLIP alone. StudioError: the base cannot be read."""
    words = with_class(same_text(trigger.strip()), same_text(class_words.strip()))
    if not words:
        return _done(TriggerVerdict(""))
    try:
        seen = glance_at_base(base)
    except StudioError as error:
        return _failed(error)
    if seen.doubt:
        return _failed(StudioError(seen.doubt))
    if reads_with_clip(seen):
        return _done(verdict(words, class_words, {"CLIP": ClipTokenizer()}))
    return process.call(_verdict_of, base, words, class_words)


def verdict(trigger: str, class_words: str, tokenizers: Mapping[str, Tokenizer]) -> TriggerVerdict:
    """What the doctor says of a set of images with this trigger."""
    record = Record(path="", name="", trigger=trigger, class_words=class_words)
    case = Case(Manifest((record,)), {}, Requirements(512, 8, tokenizers))
    reading = tokens_in_words(trigger, tokenizers)
    for finding in CHECKS[_CHECK](case):
        return TriggerVerdict(reading, finding.severity, finding.detail, finding.advice)
    return TriggerVerdict(reading)


def reads_with_clip(base: BaseGlance) -> bool:
    """Whether its text encoders are all CLIP's or OpenCLIP's, which read alike; folders have their own."""
    has_own = base.model in EMBEDDED or expanded(base.model).is_dir()
    return isinstance(base.kind, BaseKind) and not has_own


def _verdict_of(base: str, trigger: str, class_words: str) -> TriggerVerdict:
    return verdict(trigger, class_words, tokenizers_of(base))


@lru_cache(maxsize=4)
def tokenizers_of(base: str) -> Mapping[str, Tokenizer]:
    """A base's own, without its weights; brings torch."""
    from lora_studio.families.loading import load_base

    return load_base(base, weights=False).caption_tokenizers


def _done(found: TriggerVerdict) -> Future[TriggerVerdict]:
    future: Future[TriggerVerdict] = Future()
    future.set_result(found)
    return future


def _failed(error: Exception) -> Future[TriggerVerdict]:
    future: Future[TriggerVerdict] = Future()
    future.set_exception(error)
    return future
