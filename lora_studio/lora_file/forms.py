"""The tensors of a transformer family's file in any of its forms: fused with alphas, or with alpha folded in.

In the form with underscores, kohya's, layers have `lora_down`, `lora_up` and `alpha`; with a dotted prefix
they have `lora_A` and `lora_B`, and never an alpha, which diffusers ignores or refuses there.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from lora_studio.errors import StudioError
from lora_studio.families.layer_names.published_transformers import fitting_base
from lora_studio.families.layer_names.spellings import LayerPlace
from lora_studio.families.layer_names.transformers import (
    TRANSFORMER,
    FileForm,
    OriginalLayer,
    TransformerLayout,
    row_counts,
)
from lora_studio.lora_file.factors import PlainLora, in_range
from lora_studio.lora_file.fused import fuse
from lora_studio.lora_file.kinds.lora import DOWN, UP

if TYPE_CHECKING:
    from torch import Tensor

    from lora_studio.families.base import ModelFamily

A, B = "lora_A.weight", "lora_B.weight"
ALPHAS = (2.0**-8, 2.0**12)  # that any dtype has; others go into the factors
Plain = Mapping[LayerPlace, PlainLora]
SizeOf = Callable[[str], tuple[int, int] | None]


@dataclass(frozen=True)
class LayerSizes:
    """[out, in] of a family's layers by their paths in diffusers: of a base, or as a file tells them."""

    layout: TransformerLayout
    known: Mapping[str, tuple[int, int]]  # of the layers that are there
    family: ModelFamily | None = None
    version: str = ""  # that the file says it is for

    def __call__(self, path: str) -> tuple[int, int] | None:
        """None where neither a base nor a published one nor the layers beside it tell."""
        if path in self.known:
            return self.known[path]
        if self.family is not None:
            from lora_studio.adapters.layer import shape_of

            out, columns, *_ = shape_of(self.family.layer(TRANSFORMER, path))
            return out, columns
        if published := fitting_base(self.layout, self.known, self.version):
            return published.shapes.get(path)
        return self._beside(path)

    def _beside(self, path: str) -> tuple[int, int] | None:
        """All but the last of more than three rows are square; so are three, or the first of grouped ones."""
        whole = self.layout.original(path)
        if whole is None or (len(whole.rows) > 3 and path == whole.rows[-1]):
            return None
        if self.layout.grouped and path != whole.rows[0]:
            return next((self.known[one] for one in whole.rows[1:] if one in self.known), None)
        columns = {self.known[one][1] for one in whole.rows if one in self.known}
        return (side := columns.pop(), side) if len(columns) == 1 else None


def rows_of_fused(family: ModelFamily, path: str) -> int:
    """How many rows the weight has that a layer is a part of in the family's main file; 0 if it is none."""
    layout = family.file_layout
    whole = layout.original(path) if layout is not None and layout.best.original else None
    if layout is None or whole is None or not whole.is_fused:
        return 0
    sizes = LayerSizes(layout, {}, family)
    return sum(size[0] for one in whole.rows if (size := sizes(one)) is not None)


def spell_form(plain: Plain, layout: TransformerLayout, form: FileForm, size_of: SizeOf) -> dict[str, Tensor]:
    """Key -> float32 tensor; layers that UIs look for are added, as zero.

    Raises StudioError for a layer that the form has no name for, or if rows of a fused one are not known.
    """
    scale = _common_scale(plain)
    whole = {path: one for (part, path), one in plain.items() if part == TRANSFORMER}
    for path in layout.companions(whole, form):
        if (size := size_of(path)) is not None:  # of a base that is published, which alone UIs know
            whole[path] = PlainLora(torch.zeros(1, size[1]), torch.zeros(size[0], 1), 1.0)
    if form.original:
        named = _in_original(whole, layout, scale, size_of)
    else:
        named = {path: _scaled(one, scale) for path, one in whole.items()}
    found = {form.stem(path): one for path, one in named.items()}
    for (part, path), one in plain.items():
        if part != TRANSFORMER:
            found[form.stem(path, part)] = _scaled(one, scale)
    return _with_alphas(found) if form.is_kohya else _folded(found)


def _common_scale(plain: Plain) -> float:
    """alpha / rank of most layers that do something; 1 where that is no number to write down."""
    changed = [one for one in plain.values() if one.up.any()] or list(plain.values())
    scale, _ = Counter(one.scale for one in changed).most_common(1)[0]
    ranks = [len(one.down) for one in changed]
    in_reach = ALPHAS[0] <= abs(scale) * min(ranks) and abs(scale) * max(ranks) <= ALPHAS[1]
    return scale if in_reach else 1.0


def _size(path: str, size_of: SizeOf) -> tuple[int, int]:
    size = size_of(path)
    if size is None:
        raise StudioError(
            f"{path} is rows of one weight with other layers, and nothing tells how many; name the base with "
            "--base."
        )
    return size


def _in_original(
    whole: Mapping[str, PlainLora], layout: TransformerLayout, scale: float, size_of: SizeOf
) -> dict[str, PlainLora]:
    originals: dict[str, OriginalLayer] = {}
    for path in whole:
        layer = layout.original(path)
        if layer is None:
            raise StudioError(
                f"{path} has no name of its own in the original checkpoint; take the target diffusers."
            )
        originals[layer.path] = layer
    found = {}
    for layer in originals.values():
        if not layer.is_fused:
            found[layer.path] = _scaled(whole[layer.rows[0]], scale)
            continue
        one = next(whole[path] for path in layer.rows if path in whole)
        sizes = [_size(path, size_of) if path not in whole else _shape(whole[path]) for path in layer.rows]
        rows, columns = tuple(out for out, _ in sizes), one.down[0].numel()
        if row_counts(len(rows), (sum(rows), columns), grouped=layout.grouped) != rows:
            raise StudioError(f"the sizes of the layers that are {layer.path} do not go together.")
        found[layer.path] = fuse([whole.get(path) for path in layer.rows], rows, columns, scale)
    return found


def _shape(plain: PlainLora) -> tuple[int, int]:
    return len(plain.up), plain.down[0].numel()


def _scaled(plain: PlainLora, scale: float) -> PlainLora:
    """With that scale; what its own is beside that goes into `up`."""
    down, up = (one.detach().float().cpu() for one in (plain.down, plain.up))
    share = plain.scale / scale
    down, up = in_range(down, up if share == 1 else up * share)
    return PlainLora(down, up, scale, plain.left_out)


def _with_alphas(named: Mapping[str, PlainLora]) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for stem, (down, up, scale, _) in named.items():
        found[f"{stem}.{DOWN}"], found[f"{stem}.{UP}"] = down.contiguous(), up.contiguous()
        found[f"{stem}.alpha"] = torch.tensor(scale * len(down))
    return found


def _folded(named: Mapping[str, PlainLora]) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for stem, (down, up, scale, _) in named.items():
        down, up = in_range(down, up * scale)
        found[f"{stem}.{A}"], found[f"{stem}.{B}"] = down.contiguous(), up.contiguous()
    return found
