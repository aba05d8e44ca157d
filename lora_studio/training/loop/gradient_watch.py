"""Whether every trained tensor gets a gradient: one that never does would be exported as it began."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lora_studio.adapters.adapter_set import AdapterSet
from lora_studio.errors import TrainingDiverged, preview_names

FIRST_STEPS = 3  # `down` has a gradient from the second on, because `up` begins as zero
LONGEST_WAIT = 100  # steps without any gradient: images that only preserve the base have none at first


class GradientWatch:
    """Looks at the first steps after a start or a resume, and costs nothing after them."""

    def __init__(self, adapters: AdapterSet, *, half: bool = False) -> None:
        """`half`: in float16 `up` rounds to zero while a long warm-up has hardly moved it."""
        self._silent = dict(adapters.named_parameters())
        self._words = {f"{one.name}.{end}": end for one in adapters.tokens for end in one.tensors}
        dropping = adapters.options.rank_dropout or adapters.options.module_dropout
        self._patience = LONGEST_WAIT if dropping or half else FIRST_STEPS
        self._of = len(self._silent)
        self._steps = self._waited = 0

    def sizes(self) -> Tensor:
        """[N]: the largest gradient in each tensor that has had none so far; N is 0 once all have."""
        self._silent = {name: one for name, one in self._silent.items() if one.requires_grad}
        device = next((one.device for one in self._silent.values()), torch.device("cpu"))
        none = torch.zeros((), device=device)
        found = [none if one.grad is None else one.grad.abs().amax() for one in self._silent.values()]
        return torch.stack(found) if found else torch.zeros(0)

    def update(self, sizes: Sequence[float], norm: float) -> None:
        """Take in a step's `sizes()`. Raises TrainingDiverged if some stay zero in the first steps."""
        self._silent = {
            name: tensor for (name, tensor), size in zip(self._silent.items(), sizes, strict=True) if not size
        }
        self._steps += norm > 0
        self._waited += 1
        late = self._late() if self._steps == self._patience or self._waited == LONGEST_WAIT else []
        if late:
            raise TrainingDiverged(
                f"{len(late)} of {self._of} trained tensors had no gradient in the first "
                f"{self._waited} steps, so they would not learn: {preview_names(late)}; the images "
                "are not to blame: please report it with recipe.toml"
            )

    def _late(self) -> list[str]:
        """Those that are silent without a reason.

        A new token has none before a caption that holds it is shown, which `verify` looks for at the end; but
        then it has one in every text encoder.
        """
        heard = {word for name, word in self._words.items() if name not in self._silent}
        return [name for name in self._silent if name not in self._words or self._words[name] in heard]
