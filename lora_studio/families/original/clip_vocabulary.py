"""CLIP's vocabulary, which every Stable Diffusion 1, 2 and XL reads with; needs no download.

`clip_merges.txt.gz` holds the 48,894 merges that CLIP uses of the list in OpenAI's CLIP repository (MIT
licence, copyright (c) 2021 OpenAI); the vocabulary follows from them.
"""

from __future__ import annotations

import gzip
from importlib.resources import files

BEGIN, END = "<|startoftext|>", "<|endoftext|>"
END_OF_WORD = "</w>"


def clip_merges() -> list[tuple[str, str]]:
    """The pairs that are joined to one token, the most common first."""
    lines = gzip.decompress(files(__package__).joinpath("clip_merges.txt.gz").read_bytes()).decode("utf-8")
    return [(first, second) for first, _, second in (line.partition(" ") for line in lines.split("\n"))]


def clip_vocabulary() -> dict[str, int]:
    """Token -> number, 49,408 of them."""
    letters = _letters()
    endings = (letter + END_OF_WORD for letter in letters)
    words = [*letters, *endings, *map("".join, clip_merges()), BEGIN, END]
    return {word: place for place, word in enumerate(words)}


def _letters() -> list[str]:
    """A printable letter for each of the 256 bytes, in the order of CLIP's vocabulary."""
    printable = [
        *range(ord("!"), ord("~") + 1),
        *range(ord("¡"), ord("¬") + 1),
        *range(ord("®"), ord("ÿ") + 1),
    ]
    others = (chr(256 + place) for place in range(256 - len(printable)))
    return [*map(chr, printable), *others]
