"""What a kind of adapter is, and one adapted layer: the frozen one, and the tensors of its kind beside it."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

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

    convolutions: ClassVar[bool] = False  # whether it goes into the family's convolutions without being asked
    reads_weight: ClassVar[bool] = False  # whether its change depends on the frozen weight
    has_ranks: ClassVar[bool] = False  # whether its change is a sum over ranks, of which some may be dropped
    is_product: ClassVar[bool] = False  # whether its change is a product with each of its tensors once in it
    degree: ClassVar[int]  # how many trained tensors are multiplied: the root by which the scale acts
    faster: ClassVar[frozenset[str]] = frozenset()  # the tensors that begin as zero, for LoRA+
    starts: ClassVar[tuple[str, ...]] = ("default",)  # what adapter.start may be
    trains_layers: ClassVar[bool] = False  # whether the layers' own tensors are trained
    begins_as_lora: ClassVar[bool] = False  # whether the numbers of a plain LoRA file can be its first values
    unused: ClassVar[frozenset[str]] = frozenset()  # options of [adapter] that mean nothing to it

    @abstractmethod
    def start(self, shape: torch.Size, rank: int, draws: Draws, weight: Tensor | None) -> dict[str, Tensor]:
        """First values of a layer's tensors, float32, without effect; `weight` is None if unreadable."""

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


def range_basis(matrix: Tensor, width: int, draw: torch.Generator, *, passes: int) -> Tensor:
    """An orthonormal basis [out, width] of nearly all that a matrix [out, in] writes.

    A random start and subspace iterations (Halko, Martinsson and Tropp 2011, arXiv 0909.4061, alg. 4.4).
    """
    basis = torch.linalg.qr(matrix @ torch.randn(matrix.shape[1], width, generator=draw)).Q
    for _ in range(passes):
        basis = torch.linalg.qr(matrix @ torch.linalg.qr(matrix.T @ basis).Q).Q
    return basis


class Toggleable(Protocol):
    """PEFT's layer or ours."""

    def get_base_layer(self) -> nn.Module: ...

    def enable_adapters(self, enabled: bool) -> None: ...


class Adapted(nn.Module):
    """base(x) + change(x); the change is made in float32 of its factors, so that no small one is lost.

    The backward pass makes it again: kept for all layers it would be as large as the base.
    """

    def __init__(
        self, base_layer: nn.Linear | nn.Conv2d, kind: AdapterKind, tensors: dict[str, Tensor], scale: float
    ) -> None:
        super().__init__()
        self.base_layer, self.kind, self.scale = base_layer, kind, scale
        trained = {end: nn.Parameter(one) for end, one in tensors.items() if not end.endswith("0")}
        setattr(self, NAME, nn.ParameterDict(trained))
        self._constants = [end for end in tensors if end.endswith("0")]
        for end in self._constants:
            self.register_buffer(f"{NAME}_{end}", tensors[end], persistent=False)
        self.enabled = True
        self.kept: Tensor | None = None  # [r]: what each rank counts in this pass
        self.share: Tensor | None = None  # []: what the change counts in this pass

    @property
    def weight(self) -> Tensor:
        return self.base_layer.weight

    @property
    def bias(self) -> Tensor | None:
        return self.base_layer.bias

    @property
    def constants(self) -> dict[str, Tensor]:
        return {end: getattr(self, f"{NAME}_{end}") for end in self._constants}

    def get_base_layer(self) -> nn.Module:
        return self.base_layer

    def enable_adapters(self, enabled: bool) -> None:
        self.enabled = enabled

    def forward(self, x: Tensor) -> Tensor:
        """The layer's output and the adapter's, whose inside is not kept but computed again backward."""
        output: Tensor = self.base_layer(x)
        if not self.enabled:
            return output
        tensors = tuple(getattr(self, NAME).values())
        if torch.is_grad_enabled():
            more = checkpoint(self._more, x, *tensors, use_reentrant=False, preserve_rng_state=False)
        else:
            more = self._more(x, *tensors)
        return output + more.to(output.dtype)

    def _more(self, x: Tensor, *tensors: Tensor) -> Tensor:
        named = dict(zip(getattr(self, NAME), tensors, strict=True))
        with torch.autocast(x.device.type, enabled=False):
            change = change_of(self, self.kind, named | self.constants, self.scale, kept=self.kept)
            if self.share is not None:
                change = change * self.share
        if not torch.is_autocast_enabled(x.device.type):
            change = change.to(x.dtype)
        base = self.base_layer
        if isinstance(base, nn.Conv2d):
            return F.conv2d(x, change, None, base.stride, base.padding, base.dilation)
        return F.linear(x, change)


def change_of(
    module: Toggleable,
    kind: AdapterKind,
    tensors: dict[str, Tensor],
    scale: float,
    *,
    kept: Tensor | None = None,
) -> Tensor:
    """A layer's change of weight, in the shape of its weight."""
    base = module.get_base_layer()
    frozen: Any = base.weight
    weight = frozen.detach().float().flatten(1) if kind.reads_weight else None
    return kind.change(tensors, scale, ChangeInputs(weight, kept)).view(shape_of(base))


def shape_of(base: nn.Module) -> torch.Size:
    """Of a layer's weight, also if that is quantised."""
    if isinstance(base, nn.Linear):
        return torch.Size((base.out_features, base.in_features))
    shape: torch.Size = base.weight.shape  # type: ignore[assignment]
    return shape


@dataclass(frozen=True)
class Layer:
    """One adapted layer and how it is trained."""

    part: str
    path: str  # canonical
    module: Any  # a `Toggleable`, and a module
    tensors: dict[str, nn.Parameter]  # that are trained, by their names in the kind
    kind: AdapterKind
    rank: int
    scale: float  # alpha / rank
    learning_rate: float | None = None  # None: its part's
    last_step: int | None = None  # it is trained to; None: the end

    @property
    def name(self) -> str:
        return f"{self.part}.{self.path}"

    @property
    def constants(self) -> dict[str, Tensor]:
        return getattr(self.module, "constants", {})

    @property
    def originals(self) -> Mapping[str, Tensor]:
        """What the base has in place of the trained tensors; nothing where those stand beside it."""
        return {}

    def _values(self) -> dict[str, Tensor]:
        return {end: one.detach().float() for end, one in (self.tensors | self.constants).items()}

    def delta(self) -> Tensor:
        """The layer's weight change in float32, in the shape of its weight."""
        return change_of(self.module, self.kind, self._values(), self.scale)

    def changes(self) -> dict[str, Tensor]:
        """Canonical name -> change in float32, of everything that is not as the base has it."""
        return {self.name: self.delta()}

    def factors(self) -> Factors | None:
        """The change as plain LoRA of scale 1, if its tensors say that exactly."""
        return self.kind.factors(self._values(), self.scale)

    @torch.no_grad()
    def limit(self, norm: float) -> Tensor:
        """Shrink the tensors alike until the change's norm is at most `norm`; [], whether that was needed."""
        share = (norm / self.delta().norm()).nan_to_num(nan=1.0).clamp(max=1.0)
        for tensor in self.tensors.values():
            tensor.mul_(share ** (1 / len(self.tensors)))
        return (share < 1).float()


NAME = "studio"  # PEFT's name for our adapter
