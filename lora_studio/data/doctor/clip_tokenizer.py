"""The tokenizer of CLIP, for a folder of pictures without a base model; needs neither torch nor a download.

`clip_merges.txt.gz` holds the 48,894 merges that CLIP uses of the list in OpenAI's CLIP repository (MIT
licence, copyright (c) 2021 OpenAI); the vocabulary follows from them.
"""

from __future__ import annotations

import gzip
from functools import cache
from importlib.resources import files

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

_BEGIN, _END = "<|startoftext|>", "<|endoftext|>"
_END_OF_WORD = "</w>"
_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


class ClipTokenizer:
    """Counts and cuts as the text encoders of Stable Diffusion 1 and XL do."""

    model_max_length = 77

    def __init__(self) -> None:
        self._tokenizer = _tokenizer()

    def __call__(
        self, text: str, *, add_special_tokens: bool = True, verbose: bool = True
    ) -> dict[str, list[int]]:
        """{"input_ids": all tokens, with the marks of begin and end if wanted}, nothing cut off."""
        return {"input_ids": self._tokenizer.encode(text, add_special_tokens=add_special_tokens).ids}

    def decode(self, token_ids: list[int], skip_special_tokens: bool = False) -> str:
        """The text of tokens, in small letters, as that is how they were read."""
        text = self._tokenizer.decode(token_ids, skip_special_tokens=skip_special_tokens)
        return text.replace(_END_OF_WORD, " ").strip()

    def get_vocab(self) -> dict[str, int]:
        """Token -> number."""
        return self._tokenizer.get_vocab()

    def num_special_tokens_to_add(self) -> int:
        """The marks of begin and end."""
        return self._tokenizer.num_special_tokens_to_add(is_pair=False)


@cache
def _tokenizer() -> Tokenizer:
    lines = gzip.decompress(files(__package__).joinpath("clip_merges.txt.gz").read_bytes()).decode("utf-8")
    merges = [(first, second) for first, _, second in (line.partition(" ") for line in lines.split("\n"))]
    letters = _letters()
    words = [*letters, *(letter + _END_OF_WORD for letter in letters), *map("".join, merges), _BEGIN, _END]
    vocabulary = {word: place for place, word in enumerate(words)}
    model = models.BPE(
        vocab=vocabulary, merges=merges, end_of_word_suffix=_END_OF_WORD, unk_token=_END, fuse_unk=False
    )
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORDS), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([_BEGIN, _END])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{_BEGIN} $A {_END}",
        special_tokens=[(_BEGIN, vocabulary[_BEGIN]), (_END, vocabulary[_END])],
    )
    return tokenizer


def _letters() -> list[str]:
    """A printable letter for each of the 256 bytes, in the order of CLIP's vocabulary."""
    printable = [
        *range(ord("!"), ord("~") + 1),
        *range(ord("¡"), ord("¬") + 1),
        *range(ord("®"), ord("ÿ") + 1),
    ]
    others = (chr(256 + place) for place in range(256 - len(printable)))
    return [*map(chr, printable), *others]
