"""The tokenizer of CLIP, for a folder of images without a base; needs neither torch nor a download."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from types import MappingProxyType

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from lora_studio.families.original.tokenizers import BEGIN, END, END_OF_WORD, clip_merges, clip_vocabulary

_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


class ClipTokenizer:
    """Counts and cuts as the text encoders of Stable Diffusion 1 and XL do."""

    model_max_length = 77
    added_tokens_encoder: Mapping[str, int] = MappingProxyType({})

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
        return text.replace(END_OF_WORD, " ").strip()

    def get_vocab(self) -> dict[str, int]:
        """Token -> number."""
        return self._tokenizer.get_vocab()

    def num_special_tokens_to_add(self) -> int:
        """The marks of begin and end."""
        return self._tokenizer.num_special_tokens_to_add(is_pair=False)


@cache
def _tokenizer() -> Tokenizer:
    vocabulary = clip_vocabulary()
    model = models.BPE(
        vocab=vocabulary, merges=clip_merges(), end_of_word_suffix=END_OF_WORD, unk_token=END, fuse_unk=False
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
    tokenizer.add_special_tokens([BEGIN, END])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BEGIN} $A {END}",
        special_tokens=[(BEGIN, vocabulary[BEGIN]), (END, vocabulary[END])],
    )
    return tokenizer
