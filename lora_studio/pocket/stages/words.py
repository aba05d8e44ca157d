"""Byte-level byte-pair encoding, from which both bases' tokenizers are made."""

from __future__ import annotations

import itertools
from collections import Counter


def byte_letters() -> list[str]:
    """The 256 printable stand-ins for bytes, in the order of CLIP's vocabulary."""
    kept = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    moved = [b for b in range(256) if b not in kept]
    return [chr(b) for b in kept] + [chr(256 + n) for n in range(len(moved))]


def learn_merges(words: Counter[str], count: int, *, ending: str = "</w>") -> list[tuple[str, str]]:
    """Byte-pair encoding (arXiv 1508.07909): merge the most frequent neighbours, again and again.

    `ending` is what the last letter of a word is marked with: CLIP's "</w>", or nothing, as in Qwen's.
    """
    splits = {word: [*word[:-1], word[-1] + ending] for word in words}
    merges: list[tuple[str, str]] = []
    while len(merges) < count:
        pairs: Counter[tuple[str, str]] = Counter()
        for word, pieces in splits.items():
            for pair in itertools.pairwise(pieces):
                pairs[pair] += words[word]
        if not pairs or max(pairs.values()) < 2:
            break
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        for word, pieces in splits.items():
            splits[word] = _merge(pieces, best)
    return merges


def _merge(pieces: list[str], pair: tuple[str, str]) -> list[str]:
    merged: list[str] = []
    for piece in pieces:
        if merged and (merged[-1], piece) == pair:
            merged[-1] += piece
        else:
            merged.append(piece)
    return merged
