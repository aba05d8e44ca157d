"""Captions longer than a text encoder's window, in several windows as web UIs encode them.

The convention is A1111's (modules/sd_hijack_clip.py): the tokens are split into chunks, each gets its own
begin and end marks and padding, and the hidden states are put one behind the other. Brackets are no emphasis.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import count, takewhile
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

    from lora_studio.families.base import Conditioning, ModelFamily


class Tokenizer(Protocol):
    """What is asked of a tokenizer; those of transformers are such."""

    model_max_length: int

    @property
    def added_tokens_encoder(self) -> Mapping[str, int]:
        """Token -> number, of those that the vocabulary got later."""

    def __call__(self, text: str, *, add_special_tokens: bool = True, verbose: bool = True) -> Any:
        """{"input_ids": all tokens, nothing cut off}."""

    def decode(self, token_ids: list[int], skip_special_tokens: bool = False) -> Any: ...

    def get_vocab(self) -> dict[str, int]: ...

    def num_special_tokens_to_add(self) -> int:
        """How many marks of begin and end a caption gets."""


COMMA_BACKTRACK = 20  # A1111's default: a chunk ends at a comma if one is among its last 20 tokens
_COMMA = ",</w>"  # how CLIP's vocabulary spells a comma that ends a word
Chunks = tuple[list[list[int]], list[int]]  # of tokens, and the tokens left over


def split_tokens(ids: Sequence[int], *, size: int, max_chunks: int, comma: int | None) -> Chunks:
    """At least one and at most `max_chunks` chunks of up to `size` tokens, and the tokens left over.

    A chunk that another follows ends behind a comma if one is among its last `COMMA_BACKTRACK` tokens, unless
    it is full just before a comma. The last chunk allowed is filled up.
    """
    chunks: list[list[int]] = []
    rest = list(ids)
    while rest and len(chunks) < max_chunks:
        end = size
        if len(rest) > size and len(chunks) + 1 < max_chunks and rest[size] != comma:
            near = [at for at in range(max(1, size - COMMA_BACKTRACK), size) if rest[at] == comma]
            end = near[-1] + 1 if near else size
        chunks.append(rest[:end])
        rest = rest[end:]
    return chunks or [[]], rest


def spelled(token: str, vectors: int) -> list[str]:
    """The tokens that a word of several vectors is made of, as diffusers calls them."""
    return [token, *(f"{token}_{number}" for number in range(1, vectors))]


def caption_tokens(tokenizer: Tokenizer, caption: str) -> list[int]:
    """A caption's tokens without marks; a word of several vectors is all of these, as diffusers has it."""
    ids: list[int] = tokenizer(caption, add_special_tokens=False, verbose=False)["input_ids"]
    added = tokenizer.added_tokens_encoder
    rows = {added[word]: _rows(word, added) for word in added if f"{word}_1" in added}
    return [number for one in ids for number in rows.get(one, [one])] if rows else ids


def _rows(word: str, added: Mapping[str, int]) -> list[int]:
    parts = takewhile(added.__contains__, (f"{word}_{number}" for number in count(1)))
    return [added[word], *(added[part] for part in parts)]


def caption_chunks(tokenizer: Tokenizer, caption: str, *, max_chunks: int) -> Chunks:
    """The chunks of a caption without their marks, and the tokens that are cut off."""
    size = tokenizer.model_max_length - tokenizer.num_special_tokens_to_add()
    ids = caption_tokens(tokenizer, caption)
    comma = tokenizer.get_vocab().get(_COMMA) if len(ids) > size else None
    return split_tokens(ids, size=size, max_chunks=max_chunks, comma=comma)


def clip_ids(
    tokenizer: PreTrainedTokenizerBase, captions: Sequence[str], *, max_chunks: int, like: Sequence[str] = ()
) -> Tensor:
    """[B, chunks, L]: ids with CLIP's marks, and empty chunks up to the longest of `captions` and `like`."""
    import torch

    found = [caption_chunks(tokenizer, caption, max_chunks=max_chunks)[0] for caption in captions]
    others = (caption_chunks(tokenizer, caption, max_chunks=max_chunks)[0] for caption in like)
    longest = max(map(len, [*found, *others]))
    rows = [chunks + [[]] * (longest - len(chunks)) for chunks in found]
    return torch.tensor([[_window(tokenizer, chunk) for chunk in chunks] for chunks in rows])


def encode_chunks(ids: Tensor, encode: Callable[[Tensor], Tensor]) -> Tensor:
    """[B, chunks, L] -> [B, chunks * L, D], with `encode` from [N, L] to [N, L, D]."""
    states = encode(ids.flatten(0, 1))
    return states.reshape(len(ids), -1, states.shape[-1])


def join_windows(rows: Sequence[Conditioning], empty: Conditioning) -> Conditioning:
    """One batch of conditioning [1, ...]; shorter ones are filled up with `empty`, A1111's empty chunks."""
    import torch

    joined = {}
    for name in rows[0]:
        states = [row[name] for row in rows]
        if len({part.shape for part in states}) > 1:
            longest = max(part.shape[1] for part in states)
            states = [_filled(part, empty[name], longest) for part in states]
        joined[name] = torch.cat(states)
    return joined


def _filled(states: Tensor, empty: Tensor, length: int) -> Tensor:
    import torch

    missing, rest = divmod(length - states.shape[1], empty.shape[1])
    assert rest == 0, "the lengths are whole windows"
    return torch.cat([states, *[empty] * missing], dim=1)


def _window(tokenizer: PreTrainedTokenizerBase, chunk: list[int]) -> list[int]:
    ids = [tokenizer.bos_token_id, *chunk, tokenizer.eos_token_id]
    return ids + [tokenizer.pad_token_id] * (tokenizer.model_max_length - len(ids))


def add_words(family: ModelFamily, words: Mapping[str, int]) -> None:
    """Every tokenizer reads these words as tokens of their own: word -> how many it is made of."""
    for part in family.embedding_keys:
        tokenizer = family.tokenizer_of(part)
        tokenizer.add_tokens([token for word, vectors in words.items() for token in spelled(word, vectors)])
    pool_at_end_mark(family)


def pool_at_end_mark(family: ModelFamily) -> None:
    """A text encoder's pooled state is that at the end mark, as UIs have it.

    The configurations of published bases (`eos_token_id` 2) make transformers look for the largest number
    instead, which is a new token's as soon as there is one. Without any it stays the same.
    """
    for part in family.embedding_keys:
        end = family.tokenizer_of(part).eos_token_id
        for module in family.parts[part].modules():
            if hasattr(module, "eos_token_id"):
                module.eos_token_id = end
