"""Layers that a file holds as rows of one weight: put together block-diagonally, and taken apart again.

Of layers with `down` A_i [r_i, in] and `up` B_i [out_i, r_i] the fused one has A_1, A_2, ... one below the
other, and B_1, B_2, ... along a diagonal: its change is theirs, one below the other, exactly.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING

import numpy as np

from lora_studio.errors import StudioError
from lora_studio.families.layer_names.transformers import TransformerLayout, row_counts
from lora_studio.lora_file.kinds.base import ALPHA, BIAS, MAGNITUDE, Array
from lora_studio.lora_file.kinds.lora import DOWN, MID, UP
from lora_studio.lora_file.layer import LayerTensors, LoraLayer
from lora_studio.tensor_file.header import TensorEntry

if TYPE_CHECKING:
    from torch import Tensor

    from lora_studio.lora_file.factors import PlainLora

# Tensors whose first side is that of the weight's rows; the others are those of every row.
_BY_ROWS = (UP, "hada_w1_a", "hada_w2_a", "diff", BIAS, "set_weight", "b1.weight", MAGNITUDE)
_CORES = (MID, "hada_t1", "hada_t2", "bm.weight")


_NOT_APART = (
    "{} has {} of several layers in one, which cannot be taken apart; get the file with one layer each."
)


def fuse(layers: Sequence[PlainLora | None], rows: Sequence[int], columns: int, scale: float) -> PlainLora:
    """Plain LoRA of a weight [sum of rows, columns] whose rows are these layers; None: one that is unchanged.

    Its scale is `scale`; what a layer's own is beside that goes into its `up`.
    """
    import torch

    from lora_studio.lora_file.factors import PlainLora, in_range

    present = [one for one in layers if one is not None and one.up.any()]
    ranks = [len(one.down) if one is not None and one.up.any() else 0 for one in layers]
    if not present:
        return PlainLora(torch.zeros(1, columns), torch.zeros(sum(rows), 1), scale)
    downs, up = [], torch.zeros(sum(rows), sum(ranks))
    row_ends, rank_ends = (list(accumulate(counts)) for counts in (rows, ranks))
    for one, rank, row_end, rank_end in zip(layers, ranks, row_ends, rank_ends, strict=True):
        if one is None or not rank:
            continue
        down, own = (tensor.detach().float().cpu().flatten(1) for tensor in (one.down, one.up))
        share = one.scale / scale
        down, own = in_range(down, own if share == 1 else own * share)
        downs.append(down)
        up[row_end - len(own) : row_end, rank_end - rank : rank_end] = own
    return PlainLora(torch.cat(downs), up, scale, max(one.left_out for one in present))


def taken_apart(layer: LoraLayer, layout: TransformerLayout) -> list[LoraLayer]:
    """The layers that are its rows, read from the file when they are asked for; itself, if it is one.

    Raises StudioError where it cannot be told which rows are whose, or what of it is whose.
    """
    if not layer.rows:
        return [layer]
    if layer.kind.name == "oft":
        raise StudioError(_NOT_APART.format(layer.written, "OFT"))
    if layer.missing or layer.size is None:
        raise StudioError(f"{layer.written} is not complete, or its tensors do not fit together.")
    counts = row_counts(len(layer.rows), layer.size, grouped=layout.grouped)
    if counts is None:
        raise StudioError(
            f"{layer.written} changes a weight of {layer.size}, which is not that of {len(layer.rows)} "
            "layers in one; it is for another kind of base."
        )
    ends = list(accumulate(counts, initial=0))
    whole = _Whole(layer, tuple(pairwise(ends)))
    if MAGNITUDE in layer.entries and layer.shapes[MAGNITUDE][:1] != (layer.size[0],):
        raise StudioError(_NOT_APART.format(layer.written, "a magnitude along the inputs"))
    return [
        replace(layer, name=layout.name(place), tensors=Rows(whole, number), place=place, rows=())
        for number, place in enumerate(layer.rows)
    ]


@dataclass(frozen=True)
class _Whole:
    """A fused layer, and the first and the last row of each of its layers."""

    layer: LoraLayer
    spans: tuple[tuple[int, int], ...]

    def change(self) -> Tensor:
        """Of the whole weight, [out, in]. Raises StudioError if its tensors do not go together."""
        try:
            change = self.layer.delta().flatten(1)
        except (RuntimeError, ArithmeticError, LookupError, ValueError):  # torch's, of shapes and numbers
            change = None
        if change is None or tuple(change.shape) != self.layer.size:
            raise StudioError(f"the tensors of {self.layer.written} do not fit together; get the file again.")
        return change

    @cached_property
    def is_dense(self) -> bool:
        """Whether rows of its change are no change of the same kind."""
        is_core = any(end in self.layer.entries for end in _CORES)
        return self.layer.kind.name == "lokr" or (is_core and self.layer.kind.name != "glora")

    @cached_property
    def ranks(self) -> list[Array | None]:
        """Of plain LoRA: which ranks each layer has, as numbers; None: all of them.

        If each has its own share, as many as the others, these; else those that have numbers in its rows.
        """
        shapes, number = self.layer.shapes, len(self.spans)
        if self.layer.kind.name != "lora" or MID in shapes:
            return [None] * number
        rank = shapes[DOWN][0]
        up = self.layer.tensors.array(UP).reshape(-1, rank) != 0
        used = [up[first:last].any(axis=0) for first, last in self.spans]
        if rank % number == 0 and rank:
            shares = np.arange(rank) // (rank // number)
            if not any((one & (shares != place)).any() for place, one in enumerate(used)):
                return [np.flatnonzero(shares == place) for place in range(number)]
        return [np.flatnonzero(one) if one.any() else np.arange(1) for one in used]


class Rows(LayerTensors):
    """Tensors of a layer that is the rows of a fused one."""

    def __init__(self, whole: _Whole, number: int) -> None:
        self._whole, self._number = whole, number
        self._first, self._last = whole.spans[number]
        stored = whole.layer.tensors
        self.keys_of = {} if isinstance(stored, dict) else dict(stored.keys_of)
        self.entries = self._entries()

    def _entries(self) -> dict[str, TensorEntry]:
        layer, rows = self._whole.layer, self._last - self._first
        if self._whole.is_dense:
            columns = (layer.size or (0, 0))[1]
            bias = {BIAS: self._cut(BIAS, layer.entries[BIAS])} if BIAS in layer.entries else {}
            return {"diff": TensorEntry("float32", (rows, columns)), **bias}
        return {end: self._cut(end, entry) for end, entry in layer.entries.items()}

    def _cut(self, end: str, entry: TensorEntry) -> TensorEntry:
        ranks, shape = self._whole.ranks[self._number], list(entry.shape)
        if end in _BY_ROWS:
            shape[0] = self._last - self._first
        if ranks is not None and end in (DOWN, UP):
            shape[end == UP] = len(ranks)
        return TensorEntry(entry.dtype, tuple(shape))

    def array(self, end: str) -> Array:
        """As `Stored.array`."""
        if self._whole.is_dense and end != BIAS:
            return np.asarray(self[end].numpy())
        return self._taken(self._whole.layer.tensors.array(end), end)

    def __getitem__(self, end: str) -> Tensor:
        import torch

        if self._whole.is_dense and end != BIAS:
            if end != "diff":
                raise KeyError(end)
            return self._whole.change()[self._first : self._last].clone()
        tensor = self._whole.layer.tensors[end]
        ranks = self._whole.ranks[self._number]
        if end == ALPHA:
            return tensor if ranks is None else tensor.double() * self._share
        if end in _BY_ROWS:
            tensor = tensor[self._first : self._last]
        if ranks is not None and end in (DOWN, UP):
            tensor = tensor.index_select(int(end == UP), torch.from_numpy(np.asarray(ranks)))
        return tensor

    def _taken(self, array: Array, end: str) -> Array:
        ranks = self._whole.ranks[self._number]
        if end == ALPHA:
            return array if ranks is None else array.astype(np.float64) * self._share
        if end in _BY_ROWS:
            array = array[self._first : self._last]
        if ranks is not None and end in (DOWN, UP):
            array = array[ranks] if end == DOWN else array[:, ranks]
        return array

    @property
    def _share(self) -> float:
        """How much smaller its rank is: alpha is as much smaller, so that the scale stays."""
        ranks = self._whole.ranks[self._number]
        return 1.0 if ranks is None else len(ranks) / self._whole.layer.shapes[DOWN][0]

    def __contains__(self, end: object) -> bool:
        return end in self.entries

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)
