"""Where an encoder's files lie: a folder, or the hub's cache, into which a missing one is downloaded."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from lora_studio.errors import StudioError, reason_of
from lora_studio.families.loading.hub import is_hub_id
from lora_studio.files import digest, expanded
from lora_studio.text import shown

CONFIG, PREPROCESSOR = "config.json", "preprocessor_config.json"
WEIGHTS, PIECES = "model.safetensors", "model.safetensors.index.json"
TOKENIZER = ("tokenizer.json", "tokenizer_config.json")
_OF_TOKENIZERS = ("vocab.json", "merges.txt", "special_tokens_map.json", "added_tokens.json")
_MOST_BYTES = 1_000_000  # of a configuration


@dataclass(frozen=True)
class EncoderKind:
    """What is known of a kind of encoders before there is any file of it."""

    name: str  # in `ENCODERS`
    usual: str  # the hub id that is taken unless another is given
    model_type: str  # in its config.json
    reads_texts: bool = True

    @property
    def needed(self) -> tuple[str, ...]:
        """The files of its folder."""
        return (CONFIG, PREPROCESSOR, WEIGHTS, *(TOKENIZER if self.reads_texts else ()))

    @property
    def layout(self) -> str:
        """For a message: what the folder holds."""
        return f"a folder with {', '.join(self.needed[:-1])} and {self.needed[-1]}"


@dataclass(frozen=True)
class EncoderFolder:
    """A folder of an encoder as transformers saves it."""

    path: Path
    kind: EncoderKind

    def check(self) -> None:
        """Raise StudioError, with the layout that is needed, for the files that it lacks."""
        lacking = [name for name in self.kind.needed if not self._has(name)]
        if lacking:
            raise StudioError(
                f"the encoder {self.kind.name} lacks {', '.join(lacking)} in {shown(str(self.path))}: it "
                f"needs {self.kind.layout}; pickled weights (.bin) are not read."
            )
        if (found := self.json(CONFIG).get("model_type")) != self.kind.model_type:
            raise StudioError(
                f"{shown(str(self.path / CONFIG))} is of a model of type {shown(repr(found))}, but the "
                f"encoder {self.kind.name} is one of type {self.kind.model_type!r}, such as "
                f"{self.kind.usual}; give its folder, or name another encoder."
            )

    def _has(self, name: str) -> bool:
        if name == TOKENIZER[0]:  # a CLIP's may be in its parts
            parts = [self.path / one for one in _OF_TOKENIZERS[:2]]
            return (self.path / name).is_file() or all(one.is_file() for one in parts)
        return bool(self.weights) if name == WEIGHTS else (self.path / name).is_file()

    @cached_property
    def weights(self) -> list[Path]:
        """One file, or all pieces that the index names; none if any is missing."""
        if not (self.path / PIECES).is_file():
            return [self.path / WEIGHTS] if (self.path / WEIGHTS).is_file() else []
        try:
            named = sorted(set(self.json(PIECES, most=None)["weight_map"].values()))
        except (KeyError, AttributeError, TypeError):
            return []
        pieces = [self.path / Path(str(name)).name for name in named]
        return pieces if all(one.is_file() for one in pieces) else []

    @cached_property
    def digest(self) -> str:
        """The file's SHA-256; of several the SHA-256 over theirs, in the order of their names."""
        return digest_of_files(self.weights)

    def json(self, name: str, *, most: int | None = _MOST_BYTES) -> dict[str, Any]:
        """A configuration's values. Raises StudioError for what is none."""
        path = self.path / name
        try:
            if most is not None and path.stat().st_size > most:
                raise ValueError("it is larger than a configuration is")
            values = json.loads(path.read_text("utf-8"))
            if not isinstance(values, dict):
                raise ValueError("it holds no JSON object")
        except (OSError, ValueError, RecursionError) as error:
            what = f"{shown(str(path))} is not readable ({shown(reason_of(error))})"
            raise StudioError(f"{what}; download the encoder again.") from None
        return values


def digest_of_files(files: Sequence[Path]) -> str:
    """The file's SHA-256; of several files the SHA-256 over theirs, in their order."""
    each = [digest(path) for path in files]
    return each[0] if len(each) == 1 else hashlib.sha256("".join(each).encode()).hexdigest()


def encoder_folder(kind: EncoderKind, model: str) -> EncoderFolder:
    """The checked folder of `model`: a path or a hub id, or "" for the usual id of its kind.

    Of an id the hub's cache is taken, and what it lacks is downloaded into it. Raises StudioError.
    """
    model = model or kind.usual
    if is_hub_id(model):
        folder = EncoderFolder(_from_hub(kind, model), kind)
    elif expanded(model).is_dir():
        folder = EncoderFolder(expanded(model), kind)
    else:
        raise StudioError(
            f"the encoder {kind.name} is to be read from {shown(model)}, but there is no such folder; give "
            f"{kind.layout}, or a hub id such as {kind.usual}."
        )
    folder.check()
    return folder


def _from_hub(kind: EncoderKind, model: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.constants import HF_HUB_CACHE

    wanted = [*kind.needed, *_OF_TOKENIZERS, "model-*.safetensors", PIECES]
    try:
        cached = Path(snapshot_download(model, allow_patterns=wanted, local_files_only=True))
        EncoderFolder(cached, kind).check()
        return cached
    except Exception:  # not all of it is there, of whatever kind the library's error is
        pass
    try:
        return Path(snapshot_download(model, allow_patterns=wanted))
    except Exception as error:  # of which HTTP library it is depends on the version of the hub's own one
        raise StudioError(
            f"the encoder {kind.name} is the hub's {shown(model)}, which its cache ({HF_HUB_CACHE}) does not "
            f"hold all of and which cannot be fetched ({shown(reason_of(error))}); connect to the network "
            f"once, or give {kind.layout}."
        ) from None
