"""For which base a file is, told from the names and widths in its header."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING

from lora_studio.families.layer_names import path_name
from lora_studio.families.layer_names.published import OWN, PUBLISHED, PublishedBase, PublishedLayer
from lora_studio.lora_file.fit import fits
from lora_studio.lora_file.layer import LoraLayer

if TYPE_CHECKING:
    from lora_studio.families.base import ModelFamily


@dataclass(frozen=True)
class Base:
    """The base that a file's layers fit best, and where each of them is in it."""

    layout: PublishedBase | None  # None: no base that is known has such names
    is_published: bool  # else its widths are of no published base, and only names are compared
    places: Mapping[str, PublishedLayer]  # of the layers that it has

    @property
    def title(self) -> str:
        """In words."""
        if self.layout is None:
            return "any known base"
        return self.layout.title if self.is_published else f"a base built like {self.layout.title}"

    def has(self, quirk: str) -> bool:
        """Whether a row of the table of UIs that is true of some bases is true of it."""
        return self.layout is not None and quirk in self.layout.quirks


def base_of_layers(layers: Mapping[str, LoraLayer]) -> Base:
    """The published base in which most layers have the shape they change, or else the same kind of names."""
    best, most = PUBLISHED[0], (0, 0)
    for layout in PUBLISHED:
        fitting = [layout.places[name] for name, one in layers.items() if _fits(one, layout.places.get(name))]
        score = len(fitting), sum(place.how == OWN for place in fitting)
        if score > most:
            best, most = layout, score
    if most[0]:
        return Base(best, True, {name: best.places[name] for name in layers if name in best.places})
    named = {layout: _named_alike(layout, layers) for layout in PUBLISHED}
    best = max(named, key=lambda layout: _score(named[layout]))
    return Base(best if named[best] else None, False, named[best])


def _fits(layer: LoraLayer, place: PublishedLayer | None) -> bool:
    return place is not None and layer.size is not None and fits(layer.size, place.shape)


def _score(places: Mapping[str, PublishedLayer]) -> tuple[int, int]:
    return len(places), sum(place.how == OWN for place in places.values())


def _named_alike(layout: PublishedBase, layers: Mapping[str, LoraLayer]) -> dict[str, PublishedLayer]:
    patterns = _patterns(layout)
    return {name: patterns[key] for name in layers if (key := _pattern(name)) in patterns}


@cache
def _patterns(layout: PublishedBase) -> dict[str, PublishedLayer]:
    found: dict[str, PublishedLayer] = {}
    for name, place in layout.places.items():
        found.setdefault(_pattern(name), place)
    return found


def _pattern(name: str) -> str:
    """A name without its numbers: other bases have more or fewer blocks."""
    return re.sub(r"\d+", "#", name)


def base_of_family(family: ModelFamily, alike: Base, layers: Mapping[str, LoraLayer]) -> Base:
    """The base that is really there: its shapes, by the names of UIs and by diffusers' paths."""
    from torch import nn

    two = len(family.text_encoders) > 1
    shapes: dict[str, tuple[int, ...]] = {}
    for part in family.targets:
        for path, module in family.parts[part].named_modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                own = family.canonical_path(part, path)
                shape = tuple(module.weight.shape)
                shapes[path_name(part, own, two_encoders=two)] = shapes[family.ui_name(part, own)] = shape
    other = {n: one for n, one in alike.places.items() if alike.is_published and one.how != OWN}
    known = {
        n: replace(alike.places.get(n, PublishedLayer(())), shape=shapes[n]) for n in layers if n in shapes
    }
    return Base(alike.layout, True, other | known)
