"""The way from a base's images to reference images, as an encoder sees them, and how far images went it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

SHRUNK = 0.1  # of the mean variance, as added to each dimension's: few images do not tell it well


@dataclass(frozen=True)
class Way:
    """Fisher's linear discriminant with a variance for each dimension: what scatters little counts for more.

    A question's own images of the base are left out of where its way begins. Tuned images are measured from
    them, so that chance in them would count as progress; and so it would with images of the same prompt.
    """

    weights: Tensor  # [D]: one over the variance within base and references
    starts: Tensor  # [Q, D]: the mean of the base's images of all other questions
    steps: Tensor  # [Q, D]: from there to the mean of the references
    length: (
        float  # squared; an estimate without bias, so that it is below 0 in half of the cases without a way
    )

    @classmethod
    def between(cls, base: Tensor, references: Tensor) -> Way:
        """Of features, base [Q, S, D] with Q > 1 questions and references [R, D] with R > 1."""
        seeds, rows, number = base.shape[1], base.flatten(0, 1), len(references)
        within = (len(rows) * rows.var(dim=0) + number * references.var(dim=0)) / (len(rows) + number)
        weights = 1 / (within + SHRUNK * within.mean()).clamp(min=1e-12)
        sums, reference = base.sum(dim=1), references.mean(dim=0)
        starts = (sums.sum(dim=0) - sums) / (len(rows) - seeds)
        of_base = (sums * starts * weights).sum(dim=-1).mean() / seeds
        others = (references.sum(dim=0) - references) / (number - 1)
        of_references = (references * others * weights).sum(dim=-1).mean()
        across = (rows.mean(dim=0) * reference * weights).sum()
        return cls(weights, starts, reference - starts, (of_base + of_references - 2 * across).item())

    def gone(self, images: Tensor) -> Tensor:
        """[Q, S, D] -> [Q, S]: 0 at the base's images and 1 at the references, on average."""
        moved = images - self.starts[:, None]
        return torch.einsum("qsd,qd->qs", moved, self.steps * self.weights) / self.length

    def is_clear(self, base: Tensor) -> bool:
        """Whether it is longer than one standard deviation of the base's images along it."""
        return self.length > 0 and self.gone(base).std().item() < 1
