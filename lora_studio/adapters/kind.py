"""What a kind of adapter is: the tensors of a layer, how they begin, and the change of weight they make."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

Draws = Callable[[str], torch.Generator]  # of the first values of the tensor with that name


Tensors = Mapping[str, Tensor]  # of a layer, by their names in the kind


class ChangeInputs(NamedTuple):
    """What a change may depend on besides its own tensors."""

    weight: Tensor | None = None  # [out, in * k * k], float32: the frozen one
    kept: Tensor | None = None  # [r]: what each rank counts, of a kind with ranks; None: all of them


NO_INPUTS = ChangeInputs()


class Factors(NamedTuple):
    """A change of weight `up @ down` as plain LoRA."""

    down: Tensor  # [r, in * k * k]
    up: Tensor  # [out, r]


class AdapterKind(ABC):
    """Of a layer whose weight is [out, in] or, of a convolution, [out, in, k, k]."""

    convolutions: ClassVar[bool] = False
    """Whether it goes into the family's convolutions without being asked."""

    reads_weight: ClassVar[bool] = False
    """Whether its change depends on the frozen weight."""

    has_ranks: ClassVar[bool] = False
    """Whether its change is a sum over ranks, of which some may be dropped."""

    is_product: ClassVar[bool] = False
    """Whether its change is a product with each of its tensors once in it."""

    degree: ClassVar[int]
    """How many trained tensors are multiplied with each other; the root by which the scale acts on rates."""

    faster: ClassVar[frozenset[str]] = frozenset()
    """The tensors whose learning rate LoRA+ multiplies: those that begin as zero."""

    starts: ClassVar[tuple[str, ...]] = ("default",)
    """What adapter.start may be."""

    trains_layers: ClassVar[bool] = False
    """Whether the layers' own tensors are trained, and nothing stands beside them."""

    begins_as_lora: ClassVar[bool] = False
    """Whether the numbers of a plain LoRA file can be its first values."""

    unused: ClassVar[frozenset[str]] = frozenset()
    """Options of [adapter] that mean nothing to it."""

    @abstractmethod
    def start(self, shape: torch.Size, rank: int, draws: Draws, weight: Tensor | None) -> dict[str, Tensor]:
        """The first values of a layer's tensors, float32, without any effect; `weight` is `shape`, float32.

        There is no weight where that cannot be read, as of quantised layers.
        """

    @abstractmethod
    def change(self, tensors: Tensors, scale: float, inputs: ChangeInputs = NO_INPUTS) -> Tensor:
        """[out, in * k * k]: the change of the weight, in float32, for autograd."""

    def factors(self, tensors: Tensors, scale: float) -> Factors | None:
        """The change as plain LoRA, if its tensors say that exactly."""
        return None


def uniform(shape: tuple[int, ...], draw: torch.Generator) -> Tensor:
    """Within 1 / sqrt(inputs): PEFT's and torch's kaiming start, keyed."""
    bound = 1 / math.sqrt(math.prod(shape[1:]))
    return (2 * torch.rand(shape, generator=draw) - 1) * bound


def normal(shape: tuple[int, ...], draw: torch.Generator, *, std: float) -> Tensor:
    return torch.randn(shape, generator=draw) * std


def flat_size(shape: torch.Size) -> int:
    return math.prod(shape[1:])


def range_basis(matrix: Tensor, width: int, draw: torch.Generator, *, passes: int) -> Tensor:
    """An orthonormal basis [out, width] of nearly all that a matrix [out, in] writes.

    A random start and subspace iterations (Halko, Martinsson and Tropp 2011, arXiv 0909.4061, alg. 4.4).
    """
    basis = torch.linalg.qr(matrix @ torch.randn(matrix.shape[1], width, generator=draw)).Q
    for _ in range(passes):
        basis = torch.linalg.qr(matrix @ torch.linalg.qr(matrix.T @ basis).Q).Q
    return basis
