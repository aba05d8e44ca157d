"""The recipe's [adapter] and [[tokens]]: what is trained inside the base, and the words that are learned."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import Field, field_validator, model_validator

from lora_studio.recipe.section import MOST_STEPS, Section, UserPath, file_name_fault

MOST_ALPHA = 65_504  # float16's largest number, as which other programs write it


class Stopping(Section):
    """What is trained, and may stop before the end."""

    stop_at: float | None = Field(
        None, gt=0, le=MOST_STEPS, description="not trained after this step; up to 1: this share of the steps"
    )

    def last_step(self, steps: int) -> int | None:
        """The last one that it is trained in; None: it is trained to the end."""
        if self.stop_at is None:
            return None
        return max(1, round(self.stop_at * steps if self.stop_at <= 1 else self.stop_at))

    def stops_after(self, steps: int) -> int | None:
        """The last step that it is trained in, if that is before the end."""
        last = self.last_step(steps)
        return last if last is not None and last < steps else None


class LayersConfig(Stopping):
    """Other settings for some layers. Of several tables for a layer, the last one of each option wins."""

    pattern: str = Field(
        min_length=1,
        description="the layers: <part>.<path> or the path alone, with * and ?, "
        'such as "text_encoder_2.*" or "*.to_v"',
    )
    rank: int | None = Field(None, ge=1, le=4096, description="their rank; without alpha, the scale stays")
    alpha: float | None = Field(None, gt=0, le=MOST_ALPHA, description="their alpha")
    learning_rate: float | None = Field(None, gt=0, le=1, description="their learning rate")
    train: bool | None = Field(
        None, description="false: they stay as the base has them; true takes an earlier false back"
    )

    @model_validator(mode="after")
    def _says_something(self) -> LayersConfig:
        settings = (self.rank, self.alpha, self.learning_rate, self.stop_at)
        if self.train is None and settings == (None,) * len(settings):
            raise ValueError(
                f"adapter.layers: {self.pattern!r} changes nothing; "
                "give a rank, alpha, learning_rate, stop_at or train."
            )
        if self.train is False and settings != (None,) * len(settings):
            raise ValueError(
                f"adapter.layers: {self.pattern!r} has train = false and other options; keep one of both."
            )
        return self


class AdapterConfig(Section):
    """What is trained inside the base."""

    kind: str = Field(
        "lora",
        description="lora, locon, dora, loha, lokr, oft; full: the base's own layers; none: [[tokens]] alone",
    )
    rank: int = Field(16, ge=1, le=4096, description="4 to 64 are common; for oft the size of a block")
    alpha: float = Field(
        16.0, gt=0, le=MOST_ALPHA, description="the update is scaled by alpha / rank; alpha = rank is 1"
    )
    rslora: bool = Field(
        False, description="scale by alpha / sqrt(rank), arXiv 2312.03732: a large rank is not slowed down"
    )
    conv: bool = Field(
        False,
        description="also adapt the residual blocks' convolutions, as locon does; an ablation found no gain",
    )
    conv_rank: int | None = Field(
        None, ge=1, le=4096, description="of convolutions larger than 1 x 1; rank if left out"
    )
    conv_alpha: float | None = Field(
        None,
        gt=0,
        le=MOST_ALPHA,
        description="of the same convolutions; if left out, the scale is that of other layers",
    )
    text_encoder: bool = Field(
        False, description="train the text encoders, too; an ablation found no gain (spacepxl, SD1.5)"
    )
    blocks: str = Field(
        "all", description="content or style: only that block of the denoiser, as in B-LoRA, arXiv 2403.14572"
    )
    layers: tuple[LayersConfig, ...] = Field((), description="other settings for some layers")
    init_from: UserPath | None = Field(
        None, description="a LoRA file whose weights a new run begins with; relative to the recipe's folder"
    )
    start: Literal["default", "pissa"] = Field(
        "default",
        description="pissa, arXiv 2404.02948: along the weights' main directions; a file of twice the rank",
    )
    lora_plus_ratio: float = Field(
        1.0, ge=1, le=100, description="LoRA+, arXiv 2402.12354: how much faster `up` learns; 4 to 16; 1: off"
    )
    rank_dropout: float = Field(0.0, ge=0, le=0.5, description="share of ranks left out of each micro-batch")
    module_dropout: float = Field(0.0, ge=0, le=0.5, description="share of layers left out of a micro-batch")
    max_norm: float = Field(
        0.0, ge=0, le=100_000, description="largest norm of a layer's update; 0: no limit"
    )


NO_ADAPTER = "none"  # as adapter.kind: the tokens alone are trained


class TokenConfig(Stopping):
    """New words that the text encoders learn: textual inversion, arXiv 2208.01618."""

    token: str = Field(description='the new word as captions have it, such as "vkq"; it names the file')
    start: str = Field(description='what it means before the first step: one or more words, such as "robot"')
    vectors: int | None = Field(  # at most a text encoder's window
        None, ge=1, le=75, description="tokens of a prompt that it takes up; as many as start by default"
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
        if fault := file_name_fault(token):
            raise ValueError(f'tokens.token is {token!r}, {fault}; take one like "vkq".')
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
    faults, alone = [], f'adapter.kind is "{NO_ADAPTER}"'
    if not tokens:
        faults.append(f"{alone} and there are no [[tokens]], so nothing learns; give one.")
    elif steps is not None and all((one.last_step(steps) or steps) < steps for one in tokens):
        faults.append(
            f"{alone} and every token stops before the last step, after which nothing would learn; "
            "take a stop_at away."
        )
    usual = {key: field.default for key, field in AdapterConfig.model_fields.items() if key != "kind"}
    idle = [f"adapter.{key}" for key, default in usual.items() if getattr(adapter, key) != default]
    if idle or without_tokens:
        faults.append(
            f"{alone}, so {', '.join([*idle, *without_tokens])} would change nothing; leave that out, or "
            "take another kind."
        )
    return faults
