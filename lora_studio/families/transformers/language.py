"""Language models that read captions: as messages of a chat, up to the last layer whose states are used."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from lora_studio.errors import BaseModelError, reason_of
from lora_studio.processes import to_device

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

Message = Mapping[str, object]


def user_message(content: object) -> Message:
    return {"role": "user", "content": content}


def chat_prompts(
    tokenizer: PreTrainedTokenizerBase,
    chats: Sequence[Sequence[Message]],
    *,
    thinks: bool,
    answers: bool = True,
) -> list[str]:
    """Each chat as the tokenizer's own template writes it; `answers`: with the answer begun.

    Raises BaseModelError for a template that fails.
    """
    found = []
    for chat in chats:
        try:
            prompt = tokenizer.apply_chat_template(
                list(chat), tokenize=False, add_generation_prompt=answers, enable_thinking=thinks
            )
        except Exception as error:  # of a template from a file: whatever that one makes of it
            fault = f"the base's tokenizer has no chat template that works ({reason_of(error)})"
            raise BaseModelError(f"{fault}; download the base again.") from None
        found.append(str(prompt))
    return found


def shorten(encoder: Any, layers: int) -> None:
    """Leave a language model that many layers, and take the norm behind them: what nothing reads.

    Raises BaseModelError for what has not so many.
    """
    if (found := len(getattr(encoder, "layers", ()))) < layers:
        raise BaseModelError(
            f"the base's text encoder ({type(encoder).__name__}) has {found} layers, and its transformer "
            f"reads what comes out of the {layers}th; they are parts of different models."
        )
    encoder.layers = encoder.layers[:layers]
    encoder.norm = torch.nn.Identity()


def states_side_by_side(
    encoder: Any,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    *,
    length: int,
    layers: Sequence[int],
) -> Tensor:
    """[B, length, len(layers) D]: the states behind these many layers, of padding, too.

    That is on the side which the tokenizer's configuration names, and no caption's token attends to it.
    """
    given = tokenizer(
        list(prompts),
        padding="max_length",
        max_length=length,
        truncation=True,
        add_special_tokens=False,  # the template has them
        return_tensors="pt",
    )
    device = next(encoder.parameters()).device
    ids, read = (to_device(given[name], device) for name in ("input_ids", "attention_mask"))
    states = encoder(input_ids=ids, attention_mask=read, output_hidden_states=True).hidden_states
    return torch.cat([states[number] for number in layers], dim=-1)


def states_before_last(
    encoder: Any, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], *, most: int
) -> tuple[Tensor, Tensor]:
    """[B, L, D]: the states before the last layer, and [B, L]: which are a prompt's own, and not zeros.

    They come first; L is the longest prompt's number of tokens, which are cut behind `most`.
    """
    given = tokenizer(
        list(prompts),
        padding="longest",
        padding_side="right",
        truncation=True,
        max_length=most,
        return_tensors="pt",
    ).to(next(encoder.parameters()).device)
    mask = given["attention_mask"].bool()
    states = encoder(input_ids=given["input_ids"], attention_mask=mask, output_hidden_states=True)
    return states.hidden_states[-2] * mask[:, :, None], mask
