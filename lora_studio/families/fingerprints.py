"""What a base's conditioning depends on, as a key for the cache."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from lora_studio.families.base import ModelFamily


def text_fingerprint(family: ModelFamily) -> str:
    """Of all that conditioning depends on but the caption: every text encoder, and how it reads.

    Trained ones or not; and with what weights do not show, such as the token that fills a window up, in which
    SD2 and SDXL differ from SD1.
    """
    encoders = sorted(family.text_encoders)
    digest = hashlib.sha256()
    for name in encoders:
        encoder: PreTrainedModel = family.parts[name]
        config = encoder.config
        digest.update(f"{name} {config.hidden_act} {config.num_attention_heads}".encode())
    for name, tokenizer in sorted(family.tokenizers.items()):
        digest.update(f"{name} {_reading(tokenizer)}".encode())
    reading = [digest.hexdigest(), f"{family.max_chunks} chunks"]
    return "+".join([*(family.fingerprint(name) for name in encoders), *reading])


def _reading(tokenizer: PreTrainedTokenizerBase) -> str:
    """How a tokenizer makes numbers of words; without the padding that its last call left in it."""
    stored = json.loads(tokenizer.backend_tokenizer.to_str())
    marks = [tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id]
    kept = [stored[key] for key in ("model", "normalizer", "pre_tokenizer", "added_tokens")]
    return json.dumps([marks, tokenizer.model_max_length, kept], sort_keys=True)
