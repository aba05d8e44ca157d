"""A layer of a LoRA file, of whatever kind and spelling: what its shapes say, and what its numbers do."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Literal

import numpy as np

from lora_studio.errors import StudioError
from lora_studio.families.layer_names.writers import Spelling
from lora_studio.lora_file.keys import any_key
from lora_studio.lora_file.kinds import kind_of
from lora_studio.lora_file.kinds.base import ALPHA, BESIDE, BIAS, MAGNITUDE, Array, LayerKind, decomposed
from lora_studio.tensor_file.header import Header, TensorEntry, itemsize

if TYPE_CHECKING:
    from torch import Tensor

    from lora_studio.families.layer_names.spellings import LayerPlace
    from lora_studio.families.layer_names.transformers import FileForm
    from lora_studio.lora_file.factors import PlainLora

DTYPES = ("float16", "bfloat16", "float32")
EIGHT_BITS = ("float8_e4m3fn", "float8_e5m2")  # which readers widen
READABLE = (*DTYPES, *EIGHT_BITS, "float64")
MAX_RANK = 4096
# What is set in numbers that are not finite, of the bits of each dtype; of whole numbers all are finite.
_EXPONENTS = {"float64": 0x7FF << 52, "float32": 0xFF << 23, "float16": 0x1F << 10, "bfloat16": 0xFF << 7}
_EXPONENTS |= {"float8_e4m3fn": 0x7F, "float8_e5m2": 0x1F << 2}


class LayerTensors(Mapping[str, "Tensor"]):
    """A layer's tensors by their endings, each read from a file when it is asked for."""

    entries: Mapping[str, TensorEntry]
    keys_of: Mapping[str, str]  # in the file

    def array(self, end: str) -> Array:
        """For numpy, which has no bfloat16 and no 8 bits: those are float32 then."""
        raise NotImplementedError


class Stored(LayerTensors):
    """As they stand in the file."""

    def __init__(self, header: Header, keys: Mapping[str, str]) -> None:
        self.header, self.keys_of = header, keys
        self.entries = {end: header.entries[key] for end, key in keys.items()}

    def __getitem__(self, end: str) -> Tensor:
        return self.header.tensor(self.keys_of[end])

    def __contains__(self, end: object) -> bool:
        return end in self.keys_of  # what Mapping does would read the tensor

    def array(self, end: str) -> Array:
        return self.header.array(self.keys_of[end])

    def __iter__(self) -> Iterator[str]:
        return iter(self.keys_of)

    def __len__(self) -> int:
        return len(self.keys_of)


class Held(dict[str, "Tensor"]):
    """Tensors that were made of others and lie in memory."""

    @property
    def entries(self) -> dict[str, TensorEntry]:
        from lora_studio.lora_file.write import entry_of

        return {end: entry_of(one) for end, one in self.items()}

    def array(self, end: str) -> Array:
        return self[end].detach().float().numpy()


@dataclass(frozen=True)
class LoraLayer:
    name: str  # as kohya spells it; of a transformer family as it stands in the file
    tensors: LayerTensors | Held  # by kohya's and LyCORIS's endings
    spelling: Spelling = Spelling.KOHYA
    place: LayerPlace | None = None  # of a layer that a known base could have
    said_alpha: float | None = None  # apart from its tensors
    rows: tuple[LayerPlace, ...] = ()  # of the layers that it is, if it is several in one
    form: FileForm | None = None  # how a transformer family's file names it

    @cached_property
    def entries(self) -> Mapping[str, TensorEntry]:
        return self.tensors.entries

    @property
    def keys(self) -> list[str]:
        return [] if isinstance(self.tensors, Held) else list(self.tensors.keys_of.values())

    @property
    def written(self) -> str:
        """Its name as it stands in the file, in whatever spelling."""
        found = any_key(self.keys[0]) if self.keys else None
        return found[0] if found else self.name

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {end: one.shape for end, one in self.entries.items()}

    @cached_property
    def kind(self) -> LayerKind:
        """Raises StudioError if nothing but an alpha or the like is there."""
        kind = kind_of(self.entries)
        if kind is None:
            raise StudioError(f"{self.name} is of a kind that is not known.")
        return kind

    @property
    def is_no_matrix(self) -> bool:
        """Whether it changes a norm or a bias alone, which plain LoRA cannot hold."""
        return self.kind.name == "norm" or (self.kind.name == "full" and len(self.shapes.get("diff", ())) < 2)

    @property
    def is_beside(self) -> bool:
        """Whether it is of a norm, a bias alone or an embedding that bases have: no layer of plain LoRA."""
        return self.place is not None and (self.is_no_matrix or self.place.path.endswith("_embedding"))

    @cached_property
    def missing(self) -> list[str]:
        return self.kind.missing(self.entries)

    @cached_property
    def rank(self) -> int | None:
        return self.kind.rank(self.shapes)

    @cached_property
    def size(self) -> tuple[int, int] | None:
        """[out, in * k * k] of the weight that it changes, or None where tensors do not fit or do not say."""
        if self.missing:
            return None
        try:
            return self.kind.size(self.shapes)
        except (IndexError, KeyError):
            return None

    @property
    def shape(self) -> tuple[int, ...]:
        """Of plain LoRA: of its weight, [out, in], or with the sides of a kernel."""
        return (self.shapes["lora_up.weight"][0], *self.shapes["lora_down.weight"][1:])

    @cached_property
    def alpha(self) -> float | None:
        """None without one, and where it is not one number."""
        if ALPHA not in self.entries or math.prod(self.shapes[ALPHA]) != 1:
            return self.said_alpha
        return float(self.tensors.array(ALPHA).item())

    @property
    def uses_alpha(self) -> bool:
        """Whether it has an alpha that counts; LyCORIS writes one beside whole factors, too."""
        return ALPHA in self.entries and self.kind.uses_alpha(self.shapes)

    @property
    def scale(self) -> float:
        return self.kind.scale(self.alpha, self.shapes)

    @property
    def needs_base(self) -> bool:
        """Whether the frozen weight is part of what its change is."""
        return self.kind.reads_weight or MAGNITUDE in self.entries

    def faults(self, *, any_dtype: bool = False) -> list[str]:
        """What of it is not as its kind has it, from shapes, dtypes and alpha; empty if it is complete."""
        if self.missing:
            return [f"{', '.join(self.missing)} is missing"]
        faults = [
            f"{end} has dtype {one.dtype}"
            for end, one in self.entries.items()
            if one.dtype not in READABLE and end != ALPHA and not any_dtype
        ]
        if any(0 in shape for shape in self.shapes.values()):
            faults.append("a tensor is empty")
        if self.rank is not None and not 1 <= self.rank <= MAX_RANK:
            faults.append(f"its rank is {self.rank}; 1 to {MAX_RANK} are possible")
        if self.uses_alpha and self.alpha is None:
            faults.append(f"alpha has the shape {self.shapes[ALPHA]}; it must be one number")
        if self.size is None and self.kind.tells_size and not self.is_no_matrix:
            shapes = " and ".join(str(shape) for end, shape in self.shapes.items() if end != ALPHA)
            faults.append(f"the shapes {shapes} do not fit together")
        return faults

    @cached_property
    def state(self) -> Literal["zero", "not finite", ""]:
        """Whether it changes nothing; all of its numbers are looked at, a piece of a tensor at a time."""
        ends = [end for end in self.entries if end != ALPHA or self.uses_alpha]
        if isinstance(self.tensors, Stored):
            header, keys = self.tensors.header, self.tensors.keys_of
            looks = {end: _look(header, keys[end]) for end in ends}
        else:
            arrays = ((end, self.tensors.array(end)) for end in ends)
            looks = {end: (bool(np.isfinite(one).all()), bool(one.any())) for end, one in arrays}
        counted = (end for end in looks if end not in BESIDE and (end != BIAS or not self.kind.is_product))
        zero = [not looks[end][1] for end in counted]
        if not all(finite for finite, _ in looks.values()):
            return "not finite"
        return "zero" if (any(zero) if self.kind.is_product else all(zero)) else ""

    def delta(self, weight: Tensor | None = None) -> Tensor:
        """Its change in float32, [out, in, k, k] or, where the file does not tell k, [out, in * k * k].

        `weight` is the base's. Raises StudioError if that is needed and not there.
        """
        if self.needs_base and weight is None:
            said = f"the change of {self.name} depends on the base's weight; name the base that it is for."
            raise StudioError(said)
        values = {end: self.tensors[end].float() for end in self.entries if end not in (ALPHA, BIAS)}
        frozen = None if weight is None else weight.detach().float()
        change = self.kind.delta(values, self.scale, frozen)
        if MAGNITUDE not in values or frozen is None:
            return change
        return decomposed(change, frozen, values[MAGNITUDE])

    def plain(self, weight: Tensor | None = None) -> PlainLora:
        """Exact where that takes no more ranks than the weight has itself; else cut as `factorise` cuts.

        Raises StudioError as `delta`, and for a change that is not finite.
        """
        from lora_studio.lora_file.factors import cut_plain

        values = {end: _widened(self.tensors[end]) for end in self.entries if end not in (ALPHA, BIAS)}
        exact = None if self.needs_base else self.kind.low_rank(values, self.scale)
        numbers = [self.delta(weight)] if exact is None else [exact.down, exact.up]
        if not all(one.isfinite().all() for one in numbers):
            raise StudioError(f"the change of {self.name} has numbers beyond float32; the file is damaged.")
        return exact or cut_plain(numbers[0], numbers[0].shape)

    def equals(self, other: LoraLayer) -> bool:
        """Whether it has the same numbers, in whatever dtypes and with as many sides, and the same scale."""
        ends = self.entries.keys() - {ALPHA}
        if ends != other.entries.keys() - {ALPHA} or self.scale != other.scale:
            return False
        pairs = ((self.tensors.array(end), other.tensors.array(end)) for end in ends)
        return all(a.size == b.size and np.array_equal(a.ravel(), b.ravel()) for a, b in pairs)

    def norm(self) -> float | None:
        """Frobenius norm of its change, or None if it cannot be told from the file alone."""
        is_small = self.rank is None or 1 <= self.rank <= MAX_RANK
        if self.size is None or not is_small or self.entries.keys() & set(self.kind.opaque):
            return None
        with np.errstate(all="ignore"):  # a damaged file may hold anything
            try:
                norm = self.kind.norm(lambda end: self.tensors.array(end).astype(np.float32), self.shapes)
            except (ValueError, StudioError):  # its tensors do not go together
                return None
        return None if norm is None else abs(self.scale) * norm


def _widened(tensor: Tensor) -> Tensor:
    """With 8 bits as float32: torch does not compute with them."""
    return tensor.float() if str(tensor.dtype).removeprefix("torch.") in EIGHT_BITS else tensor


def _look(header: Header, key: str) -> tuple[bool, bool]:
    """Whether all numbers of a tensor are finite, and whether any is not zero: told from their bits."""
    dtype = header.entries[key].dtype
    exponent, finite, something = _EXPONENTS.get(dtype, 0), True, False
    for chunk in header.chunks(key):
        bits = np.frombuffer(chunk, f"uint{8 * itemsize(dtype)}")
        finite = finite and not (exponent and ((bits & exponent) == exponent).any())
        something = something or bool((bits << 1 if exponent else bits).any())  # without the sign
    return finite, something
