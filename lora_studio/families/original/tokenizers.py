"""The tokenizers of a base in the original layout, which holds none: CLIP's in the package, or a folder's."""

from __future__ import annotations

import gzip
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_studio.errors import BaseModelError, reason_of
from lora_studio.families.original import BaseKind

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


FILES = ("vocab.json", "merges.txt")
WHOLE = "tokenizer.json"


def tokenizers_for(
    kind: BaseKind, configurations: dict[str, dict[str, Any]], folder: Path | None = None
) -> dict[str, PreTrainedTokenizerBase]:
    """A tokenizer for each text encoder, as long as it reads.

    `folder` holds the files of one tokenizer, or subfolders tokenizer and tokenizer_2 as a diffusers folder.
    Raises BaseModelError that names the files that are missing, or a vocabulary of another size.
    """
    found = {}
    for encoder in kind.text_encoders:
        name = encoder.part.replace("text_encoder", "tokenizer")
        facts = configurations[encoder.part]
        length = facts["max_position_embeddings"]
        tokenizer = _load(_place(folder, name) if folder else None, encoder.pad_token, length)
        if len(tokenizer) != facts["vocab_size"]:
            whose = "base.tokenizer" if folder else "CLIP's vocabulary in the package"
            raise BaseModelError(
                f"{whose} has {len(tokenizer):,} tokens, the base's {encoder.part} {facts['vocab_size']:,}; "
                "set base.tokenizer to a folder with the base's own tokenizer."
            )
        found[name] = tokenizer
    return found


def _place(folder: Path, name: str) -> Path:
    """The folder of one tokenizer; a plain folder is that of all."""
    choices = (folder / name, folder / "tokenizer", folder)
    return next((choice for choice in choices if choice.is_dir()), folder)


def _load(folder: Path | None, pad_token: str, length: int) -> PreTrainedTokenizerBase:
    from transformers import CLIPTokenizer

    if folder is None:
        return CLIPTokenizer(
            clip_vocabulary(),
            clip_merges(),
            bos_token=BEGIN,
            eos_token=END,
            unk_token=END,
            pad_token=pad_token,
            model_max_length=length,
        )
    missing = [name for name in FILES if not (folder / name).is_file()]
    if missing and not (folder / WHOLE).is_file():
        raise BaseModelError(
            f"base.tokenizer: {folder} has no {' and no '.join(missing)}; put {' and '.join(FILES)} (or "
            f"{WHOLE}) of the base's tokenizer there, or leave base.tokenizer out to use CLIP's vocabulary."
        )
    try:
        return CLIPTokenizer.from_pretrained(
            folder, local_files_only=True, pad_token=pad_token, model_max_length=length
        )
    except (OSError, ValueError, RuntimeError, TypeError, KeyError) as error:
        raise BaseModelError(
            f"base.tokenizer: the files in {folder} cannot be loaded: {reason_of(error)}."
        ) from None


BEGIN, END = "<|startoftext|>", "<|endoftext|>"
END_OF_WORD = "</w>"


@cache
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
