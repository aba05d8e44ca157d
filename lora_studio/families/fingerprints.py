"""What a base's conditioning and its images depend on, as keys for the caches."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from lora_studio.families.base import ModelFamily


def text_fingerprint(family: ModelFamily) -> str:
    """Of all that conditioning depends on but the caption: every text encoder, and how it reads.

    Trained ones or not; and with what weights do not show, such as the token that fills a window up, in which
    SD2 and SDXL differ from SD1.
    """
    encoders = [family.fingerprint(name) for name in sorted(family.text_encoders)]
    return "+".join([*encoders, _reading_of_all(family), f"{family.max_chunks} chunks"])


def drawing_fingerprint(family: ModelFamily) -> str:
    """Of all that the base's own images depend on but the call: every part, how it reads, and its noise.

    The noise as its pipeline steps through it, so that what a scheduler leaves unsaid is what it means.
    """
    scheduler: Mapping[str, object] = family.pipeline().scheduler.config
    noise = {key: value for key, value in scheduler.items() if not key.startswith("_")}
    digest = hashlib.sha256(json.dumps(noise, sort_keys=True).encode())
    parts = [family.fingerprint(part) for part in sorted(family.parts)]
    return "+".join([*parts, _reading_of_all(family), digest.hexdigest()])


def _reading_of_all(family: ModelFamily) -> str:
    """How the text encoders read, apart from their weights and from how many windows a caption fills."""
    digest = hashlib.sha256()
    for name in sorted(family.text_encoders):
        encoder: PreTrainedModel = family.parts[name]
        config = encoder.config
        digest.update(f"{name} {config.hidden_act} {config.num_attention_heads}".encode())
    for name, tokenizer in sorted(family.tokenizers.items()):
        digest.update(f"{name} {_reading(tokenizer)}".encode())
    return digest.hexdigest()


def _reading(tokenizer: PreTrainedTokenizerBase) -> str:
    """How a tokenizer makes numbers of words; without the padding that its last call left in it."""
    stored = json.loads(tokenizer.backend_tokenizer.to_str())
    marks = [tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id]
    kept = [stored[key] for key in ("model", "normalizer", "pre_tokenizer", "added_tokens")]
    return json.dumps([marks, tokenizer.model_max_length, kept], sort_keys=True)
