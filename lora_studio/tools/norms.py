"""How large a file's change of weight is in every block, from its factors: no change is multiplied out."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from lora_studio.adapters.kind import Factors
from lora_studio.families.layer_names import block_of, block_order
from lora_studio.lora_file.contents import Contents, StoredLayer
from lora_studio.lora_file.factors import inner
from lora_studio.lora_file.header import Header
from lora_studio.lora_file.values import MAX_RANK, Values

MAX_DENSE = 2**28  # numbers of a layer's change whose norm is still taken by multiplying it out

Numbers = Callable[[str], Tensor]  # ending -> float32


def block_norms(header: Header, contents: Contents, values: Values) -> dict[str, float | None]:
    """Block -> Frobenius norm of all its layers' changes together; None if one of them is not known.

    What DoRA, OFT and changed norms come to depends on the base's own weights.
    """
    squares: dict[str, float | None] = {}
    for name, layer in contents.layers.items():
        block, norm = block_of(name), layer_norm(header, layer, values.alphas.get(name))
        so_far = squares.get(block, 0.0)
        squares[block] = None if norm is None or so_far is None else so_far + norm**2
    ordered = sorted(squares, key=block_order)
    return {block: None if (one := squares[block]) is None else math.sqrt(one) for block in ordered}


def layer_norm(header: Header, layer: StoredLayer, alpha: float | None) -> float | None:
    """Frobenius norm of a layer's change, or None if it cannot be told from the file alone."""
    beside = {"dora_scale", "rescale", "hada_t1", "hada_t2", "lokr_t2"}
    small = layer.rank is None or 1 <= layer.rank <= MAX_RANK
    if layer.kind not in _NORMS or layer.changes is None or not small or beside & set(layer.entries):
        return None

    def numbers(end: str) -> Tensor:
        return header.tensor(layer.keys[end]).float()

    scale = 1.0 if alpha is None or not layer.rank or layer.kind == "full" else alpha / layer.rank
    norm = _NORMS[layer.kind](layer, numbers)
    return None if norm is None else abs(scale) * norm


def product_norm(up: Tensor, down: Tensor) -> float:
    """||up @ down|| of [out, r] and [r, in], by way of two [r, r]: sum of (up^T up) * (down down^T)."""
    factors = Factors(down.double(), up.double())
    square = inner(factors, factors)
    return math.sqrt(max(square, 0.0)) if math.isfinite(square) else math.nan


def _lora(layer: StoredLayer, numbers: Numbers) -> float:
    down, up = numbers("lora_down.weight").flatten(1), numbers("lora_up.weight").flatten(1)
    if "lora_mid.weight" not in layer.entries:
        return product_norm(up, down)
    inner = numbers("lora_mid.weight").flatten(2).double()  # [r, r, k * k]
    left, right = up.double().T @ up.double(), down.double() @ down.double().T
    square = torch.einsum("ab,ack,bdk,cd->", left, inner, inner, right).item()
    return math.sqrt(max(square, 0.0)) if math.isfinite(square) else math.nan


def _loha(layer: StoredLayer, numbers: Numbers) -> float | None:
    """By pieces of rows: the product of two products has no small form."""
    assert layer.changes is not None
    out, inputs = layer.changes
    if out * inputs > MAX_DENSE:
        return None
    first, second = ((numbers(f"hada_w{one}_a"), numbers(f"hada_w{one}_b")) for one in (1, 2))
    square, step = 0.0, max(1, 2**22 // max(inputs, 1))
    for row in range(0, out, step):
        rows = slice(row, row + step)
        piece = (first[0][rows] @ first[1]) * (second[0][rows] @ second[1])
        square += piece.double().square().sum().item()
    return math.sqrt(square)


def _lokr(layer: StoredLayer, numbers: Numbers) -> float:
    """||kron(a, b)|| = ||a|| ||b||."""
    norm = 1.0
    for name in ("lokr_w1", "lokr_w2"):
        if name in layer.entries:
            norm *= numbers(name).double().norm().item()
        else:
            norm *= product_norm(numbers(f"{name}_a"), numbers(f"{name}_b").flatten(1))
    return norm


def _full(layer: StoredLayer, numbers: Numbers) -> float:
    return numbers("diff").double().norm().item()


_NORMS: dict[str, Callable[[StoredLayer, Numbers], float | None]] = {
    "lora": _lora,
    "loha": _loha,
    "lokr": _lokr,
    "full": _full,
}
