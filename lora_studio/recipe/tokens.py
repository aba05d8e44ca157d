"""The recipe's [[tokens]]: new words that the text encoders learn, alone or together with an adapter."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field, field_validator

from lora_studio.recipe.adapter import AdapterConfig, Stopping

NO_ADAPTER = "none"  # as adapter.kind: the tokens alone are trained
MOST_VECTORS = 75  # a text encoder's window


class TokenConfig(Stopping):
    """New words that the text encoders learn: textual inversion, arXiv 2208.01618."""

    token: str = Field(description='the new word as captions have it, such as "vkq"; it names the file')
    start: str = Field(description='what it means before the first step: one or more words, such as "robot"')
    vectors: int | None = Field(
        None,
        ge=1,
        le=MOST_VECTORS,
        description="tokens of a prompt that it takes up; as many as start by default",
    )
    learning_rate: float = Field(
        5e-4,  # the text encoders' other rates are for whole layers: 1e-5 hardly moves a few numbers
        gt=0,
        le=1,
        description="for AdamW, as diffusers' textual_inversion has it; 3e-4 in its pivotal recipes",
    )
    keep_norm: bool = Field(
        True,
        description="rescale each vector to the usual norm of the encoder's: longer ones drown the rest of "
        "the prompt, arXiv 2512.13672",
    )

    @field_validator("token")
    @classmethod
    def _a_word_that_can_name_a_file(cls, token: str) -> str:
        allowed = set("abcdefghijklmnopqrstuvwxyz0123456789_-")
        if not token or not set(token) <= allowed or not token[0].isalnum() or len(token) > 64:
            raise ValueError(
                f"tokens.token is {token!r}: it must be a word of at most 64 small letters, digits, _ and -, "
                'as text encoders read capitals as small letters and it names a file; take one like "vkq".'
            )
        return token

    @field_validator("start")
    @classmethod
    def _means_something(cls, start: str) -> str:
        if not start.strip():
            raise ValueError(
                "tokens.start is empty; give a word for what the token is to become, such as robot or fox."
            )
        return start


def token_faults(
    tokens: Sequence[TokenConfig],
    adapter: AdapterConfig,
    *,
    name: str,
    steps: int | None,
    without_tokens: Sequence[str] = (),
) -> list[str]:
    """What of [[tokens]] does not go together, or not with [adapter] and the recipe's name.

    `steps`: None while they are not known. `without_tokens`: options at work that show captions without any
    token, which tokens cannot learn from.
    """
    words = [one.token for one in tokens]
    faults = _word_faults(words)
    if adapter.kind == NO_ADAPTER:
        return [*faults, *_alone_faults(tokens, adapter, steps=steps, without_tokens=without_tokens)]
    if name.casefold() in words:
        faults.append(
            f"name is {name!r} and so is a token: the LoRA and the token's embedding would be one file; "
            "give the recipe another name."
        )
    return faults


def _word_faults(words: Sequence[str]) -> list[str]:
    """Words that cannot be told from each other."""
    different = list(dict.fromkeys(words))
    faults = [f"tokens: {word!r} is given twice; keep one." for word in different if words.count(word) > 1]
    for word in different:
        longer = [other for other in different if word in other and word != other]
        if longer:
            faults.append(
                f"tokens: {word!r} is a part of {longer[0]!r}, so tokenizers would split that; "
                "take words that do not contain each other."
            )
    return faults


def _alone_faults(
    tokens: Sequence[TokenConfig], adapter: AdapterConfig, *, steps: int | None, without_tokens: Sequence[str]
) -> list[str]:
    """What does not go with tokens that are all that learns."""
    faults = []
    if not tokens:
        faults.append(
            f'adapter.kind is "{NO_ADAPTER}" and there are no [[tokens]], so nothing learns; give one.'
        )
    elif steps is not None and all((one.last_step(steps) or steps) < steps for one in tokens):
        faults.append(
            f'adapter.kind is "{NO_ADAPTER}" and every token stops before the last step, after which nothing '
            "would learn; take a stop_at away."
        )
    idle = [
        f"adapter.{key}"
        for key, field in AdapterConfig.model_fields.items()
        if key != "kind" and getattr(adapter, key) != field.default
    ]
    if idle or without_tokens:
        faults.append(
            f'adapter.kind is "{NO_ADAPTER}", so {", ".join([*idle, *without_tokens])} would change nothing; '
            "leave that out, or take another kind."
        )
    return faults
