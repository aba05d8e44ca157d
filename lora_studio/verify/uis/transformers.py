"""What is the matter with a file for a transformer base, in the rows of `transformers.toml`."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from lora_studio.families.layer_names import PublishedLayer
from lora_studio.families.layer_names.published_transformers import (
    PUBLISHED_TRANSFORMERS,
    PublishedTransformer,
    Size,
    fitting_base,
)
from lora_studio.families.layer_names.transformers import TRANSFORMER, TransformerLayout
from lora_studio.families.layer_names.writers import Spelling
from lora_studio.lora_file.kinds.base import ALPHA, MAGNITUDE
from lora_studio.lora_file.layer import LoraLayer
from lora_studio.lora_file.lora_file import LoraFile
from lora_studio.verify.uis.table import ANY, UiFinding, transformer_rows

if TYPE_CHECKING:
    from lora_studio.families.base import ModelFamily

_LETTERED = (Spelling.LETTERED, Spelling.PEFT)


def written_as(layers: Mapping[str, LoraLayer]) -> dict[str, str]:
    """Layer -> how it is written: whose path behind which prefix, in which letters, whether with alpha."""
    original = {one.form.prefix for one in layers.values() if one.form and one.form.original}
    return {name: _written(one, original) for name, one in layers.items() if one.form is not None}


def _written(layer: LoraLayer, original: set[str]) -> str:
    assert layer.form is not None
    prefix, lettered = layer.form.prefix, layer.spelling in _LETTERED
    is_original, has_alpha = prefix in original, ALPHA in layer.entries
    if prefix == "diffusion_model." and not is_original:
        return "model_diffusers"
    if prefix == "diffusion_model.":
        return "original_down" if not lettered else "original_alpha" if has_alpha else "original"
    if prefix == "transformer.":
        return "transformer" if lettered and not has_alpha else "transformer_alpha"
    if prefix.startswith("lora_"):
        if lettered:
            return "other"
        known = {True: "kohya_original", False: "kohya_diffusers"}
        return "old_diffusers" if TRANSFORMER in prefix else known[is_original]
    return "lycoris" if prefix.startswith("lycoris_") else "other"


def of_transformer(file: LoraFile, base: PublishedTransformer) -> Iterator[UiFinding]:
    """Every row that is true of how the file's layers are called, and of what kinds they are."""
    table, written = transformer_rows(), written_as(file.layers)
    paths = [place.path for one in file.layers.values() for place in one.rows or (one.place,) if place]
    for row, when in table.when.items():
        if not row.startswith(f"{base.family}."):
            continue
        concerns = [n for n, how in written.items() if not when.written or how in when.written]
        if not concerns or (when.titles and base.title not in when.titles):
            continue
        if when.lacks and all(any(re.fullmatch(one, path) for path in paths) for one in when.lacks):
            continue
        concerned = [name for name in concerns if not when.of or re.search(when.of, name)]
        if concerned:
            yield UiFinding(row, concerned)
    yield from _of_every_family(file, base.layout, written)


def _of_every_family(
    file: LoraFile, layout: TransformerLayout, written: Mapping[str, str]
) -> Iterator[UiFinding]:
    layers = file.layers
    by_rows = {n: one for n, one in layers.items() if one.form is not None and not one.rows}
    present = {one.place.path for one in by_rows.values() if one.place}
    groups = {n: layout.original(one.place.path) for n, one in by_rows.items() if one.place}
    usual = max(written.values(), key=list(written.values()).count) if written else ""
    found = {
        "part_of_fused": [n for n, whole in groups.items() if whole and not present.issuperset(whole.rows)],
        "mixed": [n for n, how in written.items() if how != usual],
        "kinds": [n for n, one in layers.items() if one.form is not None and one.kind.name != "lora"],
        "magnitudes": [n for n, one in layers.items() if MAGNITUDE in one.entries],
        "encoders": [n for n, one in layers.items() if one.form is None and one.place is not None],
    }
    for row, names in found.items():
        if names:
            yield UiFinding(f"{ANY}.{row}", names)


def base_of_transformer(file: LoraFile) -> tuple[PublishedTransformer, bool, dict[str, PublishedLayer]]:
    """The published base of its family that most layers fit; whether any does; and its layers' places."""
    assert file.transformer is not None
    sizes: dict[str, Size | None] = {}
    for one in file.layers.values():
        if one.form is not None and one.place is not None:
            sizes[one.place.path] = one.size
    best = fitting_base(file.transformer, sizes, file.version)
    base = best or next(one for one in PUBLISHED_TRANSFORMERS if one.layout is file.transformer)
    places = {}
    for name, one in file.layers.items():
        if one.place is None:
            continue
        shape = base.shapes.get(one.place.path)
        if best is None or one.form is None:
            places[name] = PublishedLayer(one.size or ())
        elif shape is not None:
            places[name] = PublishedLayer(shape)
    return base, best is not None, places


def places_in(family: ModelFamily, layers: Mapping[str, LoraLayer]) -> dict[str, PublishedLayer]:
    """The layers that are in the base that is really there, in the shapes of their weights."""
    from torch import nn

    shapes: dict[tuple[str, str], Sequence[int]] = {}
    for part, module in family.parts.items():
        for path, one in module.named_modules():
            if isinstance(one, nn.Linear):
                shapes[part, family.canonical_path(part, path)] = one.weight.shape
    found = {}
    for name, layer in layers.items():
        rows = layer.rows or (layer.place,)
        weights = [shapes.get(place) for place in rows if place is not None]
        whole = [one for one in weights if one is not None]
        if whole and len(whole) == len(rows):
            found[name] = PublishedLayer((sum(one[0] for one in whole), whole[0][1]))
    return found
