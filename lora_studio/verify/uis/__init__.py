"""How each UI loads a file: completely, partly or not at all, and why; and for which base the file is."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING

from lora_studio.families.layer_names import (
    OWN,
    POCKET_BASE,
    PUBLISHED,
    PublishedBase,
    PublishedLayer,
    path_name,
)
from lora_studio.families.layer_names.published_transformers import PublishedTransformer
from lora_studio.lora_file.layer import LoraLayer
from lora_studio.lora_file.lora_file import LoraFile
from lora_studio.lora_file.open import fits
from lora_studio.verify.uis.table import UIS, Loss, UiFinding, table
from lora_studio.verify.uis.transformers import base_of_transformer, places_in

if TYPE_CHECKING:
    from lora_studio.families.base import ModelFamily

COMPLETELY, PARTLY, NOT_AT_ALL, NOT_KNOWN = "completely", "partly", "not at all", "not known"
NO_BASE = "no base for it"


@dataclass(frozen=True)
class Reason:
    what: str
    consequence: str
    loss: Loss
    keys: tuple[str, ...]  # the first three
    is_gap: bool = False


@dataclass(frozen=True)
class UiVerdict:
    ui: str
    loads: str  # completely, partly, not at all, no base for it, not known
    reasons: tuple[Reason, ...] = ()

    @property
    def is_files_fault(self) -> bool:
        """Whether another file for the same base would be loaded better."""
        return any(one.loss not in (Loss.NONE, Loss.UNKNOWN) and not one.is_gap for one in self.reasons)


def verdicts(findings: Sequence[UiFinding], layers: Collection[str], base: str) -> list[UiVerdict]:
    return [_verdict(ui, findings, layers, base) for ui in UIS]


def _verdict(ui: str, findings: Sequence[UiFinding], layers: Collection[str], base: str) -> UiVerdict:
    reasons, lost = [], set()
    for found in findings:
        row = table()[found.row]
        if ui in row.does:
            loss, words = row.does[ui]
            lost |= set(found.concerns) if loss is Loss.LAYERS else set()
            reasons.append(Reason(found.in_words(base), words, loss, tuple(found.concerns[:3]), row.is_gap))
    losses = {one.loss for one in reasons}
    if Loss.NO_BASE in losses:
        loads = NO_BASE
    elif Loss.FILE in losses or (lost and lost >= set(layers)):
        loads = NOT_AT_ALL
    elif losses & {Loss.LAYERS, Loss.WRONG}:
        loads = PARTLY
    else:
        loads = NOT_KNOWN if Loss.UNKNOWN in losses else COMPLETELY
    return UiVerdict(ui, loads, tuple(reasons))


def loaded_by(judged: Sequence[UiVerdict], how: str = COMPLETELY) -> list[str]:
    return [one.ui for one in judged if one.loads == how]


@dataclass(frozen=True)
class Base:
    """The base that a file's layers fit best, and where each of them is in it."""

    layout: PublishedBase | PublishedTransformer | None  # None: no base that is known has such names
    is_published: bool  # or the pocket base; else its widths are of none, and only names are compared
    places: Mapping[str, PublishedLayer]  # of the layers that it has

    @property
    def title(self) -> str:
        if self.layout is None:
            return "any known base"
        return self.layout.title if self.is_published else f"a base built like {self.layout.title}"

    def is_of_another(self, family: ModelFamily) -> bool:
        """Whether its layers are those of another kind of base than this."""
        version = family.traits.base_model_version
        return self.layout is not None and not version.startswith(self.layout.version)

    def has(self, quirk: str) -> bool:
        """Whether a row of the table of UIs that is true of some bases is true of it."""
        return self.layout is not None and quirk in self.layout.quirks


def base_of_file(file: LoraFile) -> Base:
    """As `base_of_layers`; of a file for a transformer family the published one of it."""
    if file.transformer is None:
        return base_of_layers(file.layers)
    return Base(*base_of_transformer(file))


def base_of_layers(layers: Mapping[str, LoraLayer]) -> Base:
    """The published base in which most layers have the shape they change, or else the same kind of names.

    The pocket base if most are its layers and none has another shape there: a miniature may share a width.
    """
    pocket = {name: POCKET_BASE.places[name] for name in layers if name in POCKET_BASE.places}
    sizes = [(size, place.shape) for name, place in pocket.items() if (size := layers[name].size)]
    if 2 * len(sizes) > len(layers) and all(fits(*one) for one in sizes):
        return Base(POCKET_BASE, True, pocket)
    best, most = PUBLISHED[0], (0, 0)
    for layout in PUBLISHED:
        found = ((one.size, layout.places.get(name)) for name, one in layers.items())
        score = _score(place for size, place in found if size and place and fits(size, place.shape))
        if score > most:
            best, most = layout, score
    if most[0]:
        return Base(best, True, {name: best.places[name] for name in layers if name in best.places})
    named = {layout: _named_alike(layout, layers) for layout in PUBLISHED}
    best = max(named, key=lambda layout: _score(named[layout].values()))
    return Base(best if named[best] else None, False, named[best])


def _score(places: Iterable[PublishedLayer]) -> tuple[int, int]:
    own = [place.how == OWN for place in places]
    return len(own), sum(own)


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

    if isinstance(alike.layout, PublishedTransformer):
        return Base(alike.layout, True, places_in(family, layers))

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
