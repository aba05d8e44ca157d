"""New words in a base's tokenizers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from lora_studio.families.chunks import spelled

if TYPE_CHECKING:
    from lora_studio.families.base import ModelFamily


def add_words(family: ModelFamily, words: Mapping[str, int]) -> None:
    """Every tokenizer reads these words as tokens of their own: word -> how many it is made of."""
    for part in family.embedding_keys:
        tokenizer = family.tokenizer_of(part)
        tokenizer.add_tokens([token for word, vectors in words.items() for token in spelled(word, vectors)])
    answer_at_end(family)


def answer_at_end(family: ModelFamily) -> None:
    """A text encoder's pooled answer is that at the end mark, as UIs have it.

    The configurations of published bases (`eos_token_id` 2) make transformers look for the largest number
    instead, which is a new token's as soon as there is one. Without any the answer stays the same.
    """
    for part in family.embedding_keys:
        end = family.tokenizer_of(part).eos_token_id
        for module in family.parts[part].modules():
            if hasattr(module, "eos_token_id"):
                module.eos_token_id = end
