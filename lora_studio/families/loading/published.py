"""A published base without a file of it: its configuration ships with the package."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lora_studio.families import FAMILIES
from lora_studio.families.base import ModelFamily
from lora_studio.families.configuration import CONDITIONER, WORDS
from lora_studio.families.loading.single_file import empty_part
from lora_studio.families.loading.text_encoders import CHAT, CHATS, PADS
from lora_studio.families.original.configurations import clip_tokenizer, tokenizers_for
from lora_studio.families.original.published import PUBLISHED, published_configurations
from lora_studio.families.original.transformers import OF_WORDS, TextPart
from lora_studio.families.original.transformers.published import (
    KnownTransformer,
    known_transformer,
    published_transformer,
)
from lora_studio.families.original.transformers.text import text_kinds

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def published_base(model: str) -> ModelFamily | None:
    """The base with that id on the hub, its networks of shapes alone; None for one that is not known."""
    if (transformer := known_transformer(model)) is not None:
        return _transformer(transformer)
    if (base := PUBLISHED.get(model)) is None:
        return None
    configurations = published_configurations(base)
    names = ("unet", "vae", *(encoder.part for encoder in base.kind.text_encoders))
    tokenizers = tokenizers_for(base.kind, configurations)
    return _family(configurations, names, tokenizers)


def _transformer(base: KnownTransformer) -> ModelFamily:
    texts = base.kind.text
    tokenizers = {one.part.replace("text_encoder", "tokenizer"): _tokenizer(one) for one in texts}
    names = ("transformer", "vae", *(one.part for one in texts))
    if base.kind.conditioner:
        names, tokenizers[WORDS] = (*names, CONDITIONER), _tokenizer(OF_WORDS)
    return _family(published_transformer(base), names, tokenizers)


def _family(
    configurations: dict[str, dict[str, Any]],
    names: tuple[str, ...],
    tokenizers: dict[str, PreTrainedTokenizerBase],
) -> ModelFamily:
    parts = {name: empty_part(name, configurations[name]) for name in names}
    family = next(FAMILIES[one] for one in FAMILIES.names() if FAMILIES[one].recognises(configurations))
    return family(parts, tokenizers, source="", scheduler=configurations["scheduler"])


_MARKED = {
    "t5": "",
    "mistral": "",
    "qwen3_vl": r"|\n",
    "qwen3": r"|\n",
    "qwen2_5_vl": r"|\n",
}  # what else is a token


def _tokenizer(text: TextPart) -> PreTrainedTokenizerBase:
    """CLIP's own, or in place of another a token for each word and mark: about a fifth too few."""
    if text.kind in PADS:
        return clip_tokenizer(None, PADS[text.kind], 77)
    from tokenizers import Regex, Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Split
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(WordLevel({"<pad>": 0, "</s>": 1, "<unk>": 2}, unk_token="<unk>"))
    kind = text_kinds()[text.kind]
    marks = kind.marks or _MARKED.get(text.kind, "")
    words.pre_tokenizer = Split(Regex(r"\w+|[^\w\s]+" + marks), "removed", invert=True)
    if text.kind == "t5" or kind.begins:  # a mark behind or in front of every caption
        around = "</s> $A" if kind.begins else "$A </s>"
        words.post_processor = TemplateProcessing(single=around, special_tokens=[("</s>", 1)])
    named = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    found = PreTrainedTokenizerFast(tokenizer_object=words, **named, model_max_length=512)
    found.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    found.chat_template = CHATS.get(text.kind, CHAT)
    return found
