"""Textual inversion (arXiv 2208.01618): new tokens of frozen text encoders, each a few trained vectors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lora_studio.errors import RecipeError
from lora_studio.families.text_chunks import add_words

if TYPE_CHECKING:
    from lora_studio.families.base import ModelFamily
    from lora_studio.recipe.adapter import TokenConfig

PULL = 0.1  # of the way, in logarithms, at each update: diffusers' advanced scripts, retract_embeddings


class TokenTable(nn.Module):
    """A text encoder's frozen table of tokens, and behind it the rows of new ones.

    Those are float32 whatever the table is. Disabled, a new token is its start's, so that the base alone
    takes "a vkq" for "a robot": untrained tokens make no difference, and what a preview, a
    measurement or a preserved image compares with is something that the base knows.
    """

    def __init__(self, base_layer: nn.Embedding, first: int, starts: Mapping[str, Tensor]) -> None:
        """`starts`: token -> its rows [n, D] of the table; their numbers count on from `first`."""
        super().__init__()
        self.base_layer, self.first = base_layer, first  # the first parameter tells the encoder's dtype
        self.register_buffer("starts", torch.cat(list(starts.values())), persistent=False)
        self.rows = nn.ParameterDict({key: nn.Parameter(one.float().clone()) for key, one in starts.items()})
        self.words = list(starts)  # in the order of their numbers; a ParameterDict has the alphabet's
        self.enabled = True

    @property
    def weight(self) -> Tensor:
        """The frozen table: libraries look at its size and dtype."""
        return self.base_layer.weight

    def get_base_layer(self) -> nn.Embedding:
        return self.base_layer

    def enable_adapters(self, enabled: bool) -> None:
        self.enabled = enabled

    def forward(self, ids: Tensor) -> Tensor:
        """[..., L] -> [..., L, D]"""
        new = ids >= self.first
        known = self.base_layer(ids.masked_fill(new, 0))
        starts: Tensor = self.starts  # type: ignore[assignment]
        rows = torch.cat([self.rows[word] for word in self.words]) if self.enabled else starts
        learned = F.embedding((ids - self.first).clamp(min=0), rows.to(known.dtype))
        return torch.where(new[..., None], learned, known)


@dataclass(frozen=True)
class Token:
    """A new token of one text encoder, and how it is trained."""

    part: str
    word: str
    module: TokenTable
    start: Tensor  # [n, D], the table's rows
    norm: float | None  # that its vectors are pulled to; None: they may have any
    learning_rate: float | None = None  # None: its part's
    last_step: int | None = None  # it is trained to; None: the end

    @property
    def name(self) -> str:
        """`<part>.tokens`: the canonical key without the word."""
        return f"{self.part}.tokens"

    @property
    def rows(self) -> nn.Parameter:
        """[n, D], float32."""
        return self.module.rows[self.word]

    @property
    def tensors(self) -> dict[str, nn.Parameter]:
        return {self.word: self.rows}

    @property
    def moved(self) -> float:
        """How far the vectors are from where they began, relative to their size."""
        start = self.start.to(self.rows.device).float()
        return ((self.rows.detach() - start).norm() / start.norm()).item()

    @torch.no_grad()
    def pull(self, share: Tensor | float) -> None:
        """Bring each vector's norm nearer to the table's; not at all if `share` is 0 and not 1."""
        if self.norm is not None:
            off = self.norm / self.rows.norm(dim=1, keepdim=True)
            self.rows.mul_(off ** (PULL * share))


def inject_tokens(family: ModelFamily, wanted: Sequence[TokenConfig], *, steps: int = 0) -> list[Token]:
    """Teach tokenizers the new words, and put their rows behind the tables; raises as `check_tokens` does.

    `steps`: of the run, by which some stop before its end.
    """
    if not wanted:
        return []
    sizes = check_tokens(family, wanted)
    starts = {part: _starts(family, part, wanted, sizes) for part in family.embedding_keys}
    firsts = {part: len(family.tokenizer_of(part)) for part in starts}
    add_words(family, sizes)
    found = []
    for part, rows in starts.items():
        table = _put_in(family.parts[part], firsts[part], rows)
        usual = table.weight.detach().float().norm(dim=1).mean().item()
        for one in wanted:
            norm, last = usual if one.keep_norm else None, one.stops_after(steps)
            found.append(Token(part, one.token, table, rows[one.token], norm, one.learning_rate, last))
    return found


def check_tokens(family: ModelFamily, wanted: Sequence[TokenConfig]) -> dict[str, int]:
    """Word -> the number of its vectors. Raises RecipeError for words that this base cannot learn."""
    faults, sizes = [], {}
    if wanted and not family.embedding_keys:
        faults.append("tokens: no token can be learned for this base; leave [[tokens]] out.")
    for one in wanted:
        needed = max((len(_ids(family, part, one.start)) for part in family.embedding_keys), default=0)
        sizes[one.token] = one.vectors or needed
        if any(len(_ids(family, part, one.token)) == 1 for part in family.embedding_keys):
            faults.append(
                f"tokens.token {one.token!r} is one token of this base, so it has a meaning already; "
                f"take a word that has none, such as {one.token + 'vkq'!r}."
            )
        if not needed:
            faults.append(f"tokens.start {one.start!r} has no tokens for this base; give a word.")
        if one.vectors and needed > one.vectors:
            faults.append(
                f"tokens.start {one.start!r} has {needed} tokens for this base, but tokens.vectors is "
                f"{one.vectors}; make that {needed}, leave it out, or take a shorter start."
            )
    if faults:
        raise RecipeError("\n".join(faults))
    return sizes


def _ids(family: ModelFamily, part: str, words: str) -> list[int]:
    return list(family.tokenizer_of(part)(words, add_special_tokens=False)["input_ids"])


def _starts(
    family: ModelFamily, part: str, wanted: Sequence[TokenConfig], sizes: Mapping[str, int]
) -> dict[str, Tensor]:
    """Word -> the table's rows of its start's tokens, over and over."""
    table: Tensor = family.parts[part].get_input_embeddings().weight  # type: ignore[operator]
    found = {}
    for one in wanted:
        ids = islice(cycle(_ids(family, part, one.start)), sizes[one.token])
        found[one.token] = table.detach()[list(ids)].clone()
    return found


def _put_in(encoder: nn.Module, first: int, starts: Mapping[str, Tensor]) -> TokenTable:
    frozen: nn.Embedding = encoder.get_input_embeddings()  # type: ignore[operator]
    path = next(name for name, module in encoder.named_modules() if module is frozen)
    above, _, name = path.rpartition(".")
    table = TokenTable(frozen, first, starts)
    setattr(encoder.get_submodule(above), name, table)
    return table
