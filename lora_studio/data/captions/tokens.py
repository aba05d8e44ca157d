"""How long captions are in tokens, and what a text encoder does not see of them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from lora_studio.families.chunks import Tokenizer, caption_chunks, caption_tokens


@dataclass(frozen=True)
class Cut:
    """A caption that is longer than the text encoder's window, and the end that it will not see."""

    name: str
    num_tokens: int  # with the begin and end marks
    read: int  # of these
    lost: str

    def __str__(self) -> str:
        return f'{self.name} is cut: {self.num_tokens} tokens, so "{self.lost}" is not seen'


def num_tokens(tokenizer: Tokenizer, caption: str) -> int:
    """The caption's tokens, with the begin and end marks."""
    return len(caption_tokens(tokenizer, caption)) + tokenizer.num_special_tokens_to_add()


def find_cut(tokenizers: Iterable[Tokenizer], name: str, caption: str, *, max_chunks: int = 1) -> Cut | None:
    """What the first tokenizer for which the caption is too long cuts off; None if all fits.

    `name` is its picture's. A caption may fill `max_chunks` windows.
    """
    for tokenizer in tokenizers:
        _, lost = caption_chunks(tokenizer, caption, max_chunks=max_chunks)
        if lost:
            words = tokenizer.decode(lost, skip_special_tokens=True).strip()
            total = num_tokens(tokenizer, caption)
            return Cut(name, total, total - len(lost), words)
    return None
