"""Text encoders beside a transformer that is a file of its own: from folders, files, or the hub."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_studio.errors import BaseModelError, reason_of
from lora_studio.families.configuration import read_json, text_alone
from lora_studio.families.fingerprints import Stamp, stamps_of
from lora_studio.families.loading.folder import INDEX, BaseFolder, stored_part, weight_files
from lora_studio.families.loading.hub import hub_text_encoders, is_hub_id
from lora_studio.families.loading.single_file import empty_part
from lora_studio.families.original.checkpoint import Checkpoint, open_checkpoint
from lora_studio.families.original.configurations import clip_tokenizer
from lora_studio.families.original.names import TensorOrigin
from lora_studio.families.original.quantized import in_plain_numbers
from lora_studio.families.original.transformers import OF_WORDS, TextPart, TransformerKind
from lora_studio.families.original.transformers.text import (
    FoundText,
    find_text,
    text_configuration,
    text_kinds,
    text_origins,
    title_of,
)
from lora_studio.families.stored import StoredPart, StoredTensor, shapes_of
from lora_studio.files import expanded
from lora_studio.tensor_file import FILE_ENDINGS

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedTokenizerBase

CONFIG = "config.json"
_PROJECTION, _NORM = "text_projection.weight", "norm.weight"
_MODEL_TYPES = {
    **{"t5": "t5", "qwen3": "qwen3", "clip_text_model": "clip_l"},
    **dict.fromkeys(("qwen2_5_vl", "qwen2_5_vl_text"), "qwen2_5_vl"),
    **dict.fromkeys(("mistral", "mistral3"), "mistral"),
    **dict.fromkeys(("qwen3_vl", "qwen3_vl_text"), "qwen3_vl"),
}
_CLASSES = {
    **{"t5": "T5EncoderModel", "qwen3": "Qwen3Model", "qwen2_5_vl": "Qwen2_5_VLTextModel"},
    **{"mistral": "MistralModel", "qwen3_vl": "Qwen3VLTextModel"},
}
_TOKENIZERS = {
    **dict.fromkeys(("qwen3", "qwen3_vl", "qwen2_5_vl"), "Qwen2TokenizerFast"),
    **{"t5": "T5TokenizerFast", "mistral": "PreTrainedTokenizerFast"},
}
_TOKENIZER_FILES = ("tokenizer.json", "spiece.model", "vocab.json")
PADS = {"clip_l": "<|endoftext|>", "clip_g": "!"}
# As Qwen3's own, for messages of users alone; a tokenizer without one has lost it with its configuration.
CHAT = (
    "{% for one in messages %}<|im_start|>{{ one.role }}\n{{ one.content }}<|im_end|>\n{% endfor %}"
    "<|im_start|>assistant\n{% if enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}"
)
CHATS = {  # kind -> of one that has another
    "mistral": "{{ bos_token }}{% for one in messages %}{% set text = one.content[0].text %}"
    "{% if one.role == 'system' %}[SYSTEM_PROMPT]{{ text }}[/SYSTEM_PROMPT]"
    "{% else %}[INST]{{ text }}[/INST]{% endif %}{% endfor %}"
}
_T5_TOKENS = 512
_TEXT_WIDTHS = ("source_dim", "cap_feat_dim", "text_hidden_dim", "joint_attention_dim")  # of what reads it


@dataclass(frozen=True)
class TextSource:
    """A text encoder of which headers and configurations alone were read."""

    model: str  # what its user calls it
    kind: str  # of `KINDS`
    configuration: Callable[[bool], dict[str, Any]]  # with its projection or without
    stored: Callable[[nn.Module], StoredPart]
    stamps: Mapping[Path, Stamp]
    tokenizer: Path | None = None  # a folder, if it has one of its own
    named: bool = False  # whether its own name says which of two CLIPs it is

    def width(self) -> int:
        values = self.configuration(False)
        return int(values.get("hidden_size") or values["d_model"])


def text_sources(names: Sequence[str], *, allow_pickle: bool) -> list[TextSource]:
    """All text encoders in what `base.text_encoder` names. Raises BaseModelError for what holds none."""
    return [source for name in names for source in _sources_of(name, allow_pickle=allow_pickle)]


def _sources_of(name: str, *, allow_pickle: bool) -> list[TextSource]:
    path = expanded(name)
    if is_hub_id(name) and path.suffix not in FILE_ENDINGS:
        path = hub_text_encoders(name)
    found: list[TextSource] = []
    try:
        if path.is_file():
            found = sources_in(open_checkpoint(path, allow_pickle=allow_pickle))
        elif (path / INDEX).is_file():
            parts = [one for one in BaseFolder(path, name).present if one.startswith("text_encoder")]
            found = [_in_folder(path / one, name) for one in parts]
        elif (path / CONFIG).is_file():
            found = [_in_folder(path, name)]
    except (ValueError, OSError, KeyError, TypeError) as error:
        raise BaseModelError(f"the text encoder {name} cannot be loaded: {reason_of(error)}.") from None
    if not found:
        raise BaseModelError(
            f"there is no text encoder at base.text_encoder = {name!r}; give a diffusers folder of a base, a "
            f"folder of its text encoder (one that holds {CONFIG}), a .safetensors file, or a hub id."
        )
    return found


def sources_in(file: Checkpoint) -> list[TextSource]:
    """Of a file's tensors, which may have 8 bits."""
    file = in_plain_numbers(file)
    return [_in_file(file, one) for one in find_text(file.path.name, file.shapes)]


def _in_file(file: Checkpoint, found: FoundText) -> TextSource:
    name = file.path.name

    def stored(part: nn.Module) -> StoredPart:
        wanted = shapes_of(part)
        places = {
            key: StoredTensor(file, origin, wanted[key])
            for key, origin in text_origins(found, wanted).items()
        }
        for key in (_PROJECTION, *[_NORM] * (found.kind == "mistral")):
            if key in places and places[key].origin.name not in file.shapes:
                places[key] = _changing_nothing(file.path, key, wanted[key])
        if missing := [key for key, one in places.items() if one.origin.name not in one.file.shapes]:
            raise BaseModelError(
                f"{name} lacks {len(missing)} tensors of {title_of(found.kind)}, first {missing[0]}; "
                "download it again."
            )
        return StoredPart(places).checked()

    return TextSource(
        name,
        found.kind,
        lambda projects: text_configuration(name, found, projects=projects),
        stored,
        stamps_of([file.path]),
        named=found.kind in found.prefix,
    )


def _changing_nothing(path: Path, key: str, shape: tuple[int, ...]) -> StoredTensor:
    """A projection of a CLIP-L whose file has none, as ComfyUI and diffusers take it, or an unread norm."""
    import torch

    def tensors() -> dict[str, torch.Tensor]:
        return {key: torch.eye(*shape) if len(shape) > 1 else torch.ones(shape)}

    return StoredTensor(Checkpoint(path, {key: shape}, {}, tensors, False), TensorOrigin(key), shape)


def _in_folder(folder: Path, name: str) -> TextSource:
    values = text_alone(read_json(folder / CONFIG))
    said = str(values.get("model_type"))
    brought = (key for key, one in text_kinds().items() if said in one.model_types)
    kind = next(brought, _MODEL_TYPES.get(said, ""))
    if not kind:
        raise BaseModelError(
            f"the text encoder {name} is of the kind {said!r:.60}; those of the transformers "
            f"that can be trained are {', '.join(one.title for one in text_kinds().values())}."
        )
    paths = weight_files(folder)

    def configuration(projects: bool) -> dict[str, Any]:
        clip = "CLIPTextModelWithProjection" if projects else "CLIPTextModel"
        return values | {"architectures": [text_kinds()[kind].class_name or _CLASSES.get(kind, clip)]}

    def stored(part: nn.Module) -> StoredPart:
        if not paths:
            raise BaseModelError(f"the text encoder {name} has no weights, which are in safetensors files.")
        files = [open_checkpoint(path) for path in paths]
        try:
            return stored_part(part, {key: one for one in files for key in one.shapes})
        except ValueError as error:
            raise BaseModelError(f"the text encoder {name} cannot be loaded: {error}.") from None

    places = (folder, folder.parent / folder.name.replace("text_encoder", "tokenizer"))
    own = next((one for one in places if any((one / file).is_file() for file in _TOKENIZER_FILES)), None)
    return TextSource(name, kind, configuration, stored, stamps_of(paths), own)


def assign(kind: TransformerKind, found: Sequence[TextSource]) -> dict[str, TextSource]:
    """Part -> the text encoder that it is; parts of which there is none are left out.

    Of two CLIPs whose names do not say it the narrower is CLIP-L. Raises BaseModelError for one that the
    family has no use for.
    """
    clips = sorted((one for one in found if one.kind.startswith("clip")), key=TextSource.width)
    chosen: dict[str, TextSource] = {}
    for part in kind.text:
        own = [one for one in found if one.kind == part.kind]
        if len(clips) > 1 and part.kind.startswith("clip") and not any(one.named for one in clips):
            own = [clips[0] if part.kind == "clip_l" else clips[-1]]
        if own:
            chosen[part.part] = own[-1]
    used = {id(one) for one in chosen.values()}
    for one in found:
        if id(one) not in used and not any(part.kind == one.kind for part in kind.text):
            wanted = " and ".join(title_of(part.kind) for part in kind.text)
            raise BaseModelError(
                f"the text encoder {one.model} is {title_of(one.kind)}; {kind.title} reads {wanted}."
            )
    return chosen


def check_widths(
    kind: TransformerKind, transformer: Mapping[str, Any], texts: Mapping[str, Mapping[str, Any]]
) -> None:
    """Raise BaseModelError for text encoders that are not as wide as what the transformer reads."""
    wide = next((transformer[one] for one in _TEXT_WIDTHS if one in transformer), None)
    pooled, pools = 0, transformer.get("pooled_projection_dim")
    for part in kind.text:
        values = texts[part.part]
        width = int(values.get("hidden_size") or values["d_model"])
        if part.kind.startswith("clip"):
            pooled += values["projection_dim"] if part.projects else width
        elif part.layers * width != wide:
            of = f" ({part.layers} layers of {wide / part.layers:g})" if wide and part.layers > 1 else ""
            raise BaseModelError(
                f"the text encoder is {title_of(part.kind)} {width} wide, but this {kind.title} reads "
                f"text {wide} wide{of}; they are parts of different models."
            )
    if pools is not None and pooled != pools:
        raise BaseModelError(
            f"CLIP gives {pooled} numbers for a whole text, but this {kind.title} reads {pools}; they are "
            "parts of different models."
        )


def part_of(source: TextSource, part: TextPart) -> nn.Module:
    """With shapes only."""
    return empty_part(part.part, source.configuration(part.projects))


def tokenizer_for(part: TextPart, source: TextSource, folder: Path | None) -> PreTrainedTokenizerBase:
    """CLIP's is in the package; others lie in the user's `folder`, or beside the text encoder.

    Raises BaseModelError that says which is missing.
    """
    values = source.configuration(part.projects)
    if part.kind in PADS:
        own = next(_with_tokenizer(part, folder), source.tokenizer)
        return clip_tokenizer(own, PADS[part.kind], values["max_position_embeddings"])
    place = next(_with_tokenizer(part, folder), source.tokenizer)
    title = title_of(part.kind)
    if place is None:
        raise BaseModelError(
            f"the tokenizer of {title} is in no file of a text encoder: set base.tokenizer to a folder with "
            "its tokenizer.json and tokenizer_config.json (the folder tokenizer of a diffusers base), or "
            "base.text_encoder to a diffusers folder or the id of one on the hub, which has it."
        )
    return _load_tokenizer(part, place, values["vocab_size"])


def words_tokenizer(words: int, beside: Path | None, folder: Path | None) -> PreTrainedTokenizerBase:
    """Of T5, whose `words` a text conditioner knows: in the user's `folder`, or `beside` the text encoder's.

    Raises BaseModelError that says that it is missing.
    """
    near = None if beside is None else beside.parent / OF_WORDS.part
    own = near if near is not None and any((near / name).is_file() for name in _TOKENIZER_FILES) else None
    place = next(_with_tokenizer(OF_WORDS, folder), own)
    if place is None:
        raise BaseModelError(
            "the tokenizer of T5, whose tokens this base reads, too, is in no file: set base.tokenizer to a "
            f"folder that holds {OF_WORDS.part}/ and tokenizer/ (those of the diffusers folder of the same "
            "base), or base.text_encoder to a diffusers folder or the id of one on the hub, which has both."
        )
    return _load_tokenizer(OF_WORDS, place, words)


def _with_tokenizer(part: TextPart, folder: Path | None) -> Iterator[Path]:
    """The user's folder itself comes last: it may hold one for each text encoder."""
    if folder is None:
        return
    for place in (folder / part.part.replace("text_encoder", "tokenizer"), folder):
        names = _TOKENIZER_FILES if part.kind not in PADS else ("vocab.json",)
        if any((place / name).is_file() for name in names):
            yield place


def _load_tokenizer(part: TextPart, folder: Path, words: int) -> PreTrainedTokenizerBase:
    import transformers

    own = text_kinds()[part.kind].tokenizer
    loader = getattr(transformers, own or _TOKENIZERS[part.kind])
    title = title_of(part.kind)
    try:
        found: PreTrainedTokenizerBase = loader.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # libraries meet a configuration that somebody made up with any error
        raise BaseModelError(
            f"the tokenizer of {title} in {folder} cannot be loaded: {reason_of(error)}."
        ) from None
    if not words / 2 < len(found) <= words:
        raise BaseModelError(
            f"the tokenizer in {folder} has {len(found):,} tokens, and this {title} knows {words:,}; they "
            "belong to different models."
        )
    if part.kind == "t5":
        found.model_max_length = min(found.model_max_length, _T5_TOKENS)
    elif not own and not found.chat_template:
        found.chat_template = CHATS.get(part.kind, CHAT)
        found.padding_side = "left" if part.kind in CHATS else found.padding_side
    return found


def is_text_name(key: str) -> bool:
    """Whether a tensor of an all-in-one file is of its text encoders."""
    return bool(re.match(r"text_encoders\.\w+\.", key))
