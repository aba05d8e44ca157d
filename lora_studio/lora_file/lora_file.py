"""A LoRA file, opened: its layers, its metadata and whatever else is in it. No tensor is read yet."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from lora_studio.errors import StudioError
from lora_studio.families.layer_names import reads_text
from lora_studio.families.layer_names.published_transformers import layout_of_file
from lora_studio.families.layer_names.spellings import (
    ONE_ENCODER,
    TWO_ENCODERS,
    KohyaLayout,
    LayerPlace,
    layout_of,
)
from lora_studio.families.layer_names.transformers import TransformerLayout
from lora_studio.families.layer_names.writers import Spelling
from lora_studio.lora_file.fused import taken_apart
from lora_studio.lora_file.keys import Key, any_key, read_key, read_transformer_key
from lora_studio.lora_file.kinds.base import BESIDE, BIAS
from lora_studio.lora_file.kinds.lora import DOWN, UP
from lora_studio.lora_file.layer import LoraLayer, Stored
from lora_studio.tensor_file.header import Header, read_header
from lora_studio.tensor_file.shards import Shard, shard_of
from lora_studio.text import plural, same_text

if TYPE_CHECKING:
    from torch import Tensor, nn

    from lora_studio.adapters.layer import Factors
    from lora_studio.families.base import ModelFamily

ENDINGS = (DOWN, UP, "alpha")  # of a layer of plain LoRA in the kohya format
BUNDLED, SCALAR = "bundle_emb.", ".scalar"
VERSION = "ss_base_model_version"
_WITHOUT_ALPHA = (".lora_A.weight", ".lora_B.weight")


@dataclass(frozen=True)
class LoraFile:
    path: Path
    layers: Mapping[str, LoraLayer]  # by their names
    metadata: Mapping[str, str]
    header: Header | None = None  # none of a file that was put into other words
    bundled: list[str] = field(default_factory=list)  # keys of embeddings beside the layers
    scalars: list[str] = field(
        default_factory=list
    )  # keys of LyCORIS' `scalar`, which its tensors have in them
    extras: list[str] = field(default_factory=list)  # keys of anything else
    twins: list[LoraLayer] = field(default_factory=list)  # layers whose names others have in another spelling
    said: tuple[str, ...] = ()  # what was done to it when it was opened, in short sentences
    shard: Shard | None = None  # if it holds a part of the layers only
    transformer: TransformerLayout | None = None  # of a file for a transformer family

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def trigger(self) -> str:
        return same_text(self.metadata.get("modelspec.trigger_phrase", "").strip())

    @property
    def version(self) -> str:
        return self.metadata.get(VERSION, "")

    @cached_property
    def stray(self) -> list[str]:
        """Keys that are no part of plain LoRA in the kohya format; for a transformer family in any."""
        keys = self.header.entries if self.header else ()
        if self.transformer is not None:
            plain = [
                one for one in self.layers.values() if one.place and set(ENDINGS).issuperset(one.entries)
            ]
            return sorted(set(keys) - {key for one in plain for key in one.keys})
        return [key for key in keys if key.partition(".")[2] not in ENDINGS]

    @property
    def ranks(self) -> dict[str, int]:
        return {name: one.rank for name, one in self.layers.items() if one.rank is not None}

    @cached_property
    def alphas(self) -> dict[str, float]:
        """Those that count."""
        used = {
            name: one for name, one in self.layers.items() if one.uses_alpha or one.said_alpha is not None
        }
        return {name: one.alpha for name, one in used.items() if one.alpha is not None}

    @cached_property
    def not_finite(self) -> list[str]:
        return [name for name, one in self.layers.items() if one.state == "not finite"]

    @cached_property
    def zero(self) -> list[str]:
        return [name for name, one in self.layers.items() if one.state == "zero"]

    @cached_property
    def _text_widths(self) -> set[int]:
        reading = [one.size for one in self.layers.values() if one.place and reads_text(one.place.path)]
        return {size[1] for size in reading if size}

    @cached_property
    def layout(self) -> KohyaLayout | None:
        """How UIs name the layers of the base that it is for; None if nothing in it tells."""
        placed = [one.place for one in self.layers.values() if one.place is not None]
        return layout_of(placed, widths=self._text_widths, version=self.version)

    @property
    def has_linear_projections(self) -> bool | None:
        """Whether its base's projections are linear layers and not convolutions; None if nothing tells."""
        if self.transformer is not None:
            return True
        if (self.layout or self._layout_of_names()).original or 1024 in self._text_widths:
            return True
        return False if 768 in self._text_widths else None

    @property
    def notes(self) -> tuple[str, ...]:
        """What was made of it; a transformer's layers by PEFT's names never have an alpha beside them."""
        known = () if self.transformer is None else _WITHOUT_ALPHA
        lacking = sum(
            one.alpha is None and not any(key.endswith(known) for key in one.keys)
            for one in self.layers.values()
        )
        said = f"{self.name}: no alpha in {lacking} of {plural(len(self.layers), 'layer')}"
        return (*self.said, f"{said}; taken as a scale of 1, as UIs do") if lacking else self.said

    def delta(self, name: str) -> Tensor:
        """A layer's weight change in float32, in the shape of its weight. Raises KeyError if it has none."""
        return self.layers[name].delta()

    def factors(self, name: str, strength: float = 1.0) -> Factors:
        """A layer's change in float64: `up @ down`, with alpha / rank and the strength in `up`.

        Raises StudioError if it holds a number that is not finite.
        """
        from lora_studio.adapters.layer import Factors

        layer = self.layers[name]
        down, up = (layer.tensors[end].double().flatten(1) for end in ENDINGS[:2])
        if not (down.isfinite().all() and up.isfinite().all()):
            raise StudioError(
                f"{self.name}: {name} holds numbers that are not finite; the file is damaged or its training "
                "diverged. Take another checkpoint of it."
            )
        return Factors(down, up * (layer.scale * strength))

    @property
    def metadata_bytes(self) -> int:
        return sum(len(key.encode()) + len(value.encode()) for key, value in self.metadata.items())

    def doubles(self) -> Iterator[tuple[LoraLayer, LoraLayer]]:
        """Layers that stand for one of the base under two names, each time the second with the first."""
        first: dict[LayerPlace | str, LoraLayer] = {}
        for layer in (*self.layers.values(), *self.twins):
            before = first.setdefault(layer.place or layer.name, layer)
            if before is not layer:
                yield before, layer

    def in_one_spelling(self, layout: KohyaLayout | None = None) -> LoraFile:
        """With the names that UIs know, those of `layout` if nothing in the file tells; a double is said.

        Of a transformer family with the names of single layers: fused ones are taken apart. Raises
        StudioError for one layer under two names with different contents, and for what cannot be taken apart.
        """
        if self.transformer is not None:
            return self._taken_apart(self.transformer)._renamed(self.transformer)
        return self._renamed(self.layout or layout or self._layout_of_names())

    def _taken_apart(self, layout: TransformerLayout) -> LoraFile:
        layers: dict[str, LoraLayer] = {}
        twins = []
        for whole in (*self.layers.values(), *self.twins):
            for one in taken_apart(whole, layout):
                if layers.setdefault(one.name, one) is not one:
                    twins.append(one)
        return replace(self, layers=layers, twins=twins)

    def _renamed(self, layout: KohyaLayout | TransformerLayout) -> LoraFile:
        said = list(self.said)
        doubles = list(self.doubles())
        if unlike := [pair for pair in doubles if not pair[0].equals(pair[1])]:
            names = " and ".join(one.written for one in unlike[0])
            raise StudioError(
                f"{self.name} holds {plural(len(unlike), 'layer')} twice, under two names and with different "
                f"contents, first {names}; UIs take one of them. Get the file again, or take out one of the "
                "two."
            )
        if doubles:
            names = " and ".join(one.written for one in doubles[0])
            what = plural(len(doubles), "layer")
            said.append(f"{self.name} holds {what} twice, first {names}; each is taken once")
        second = {id(one) for _, one in doubles}
        layers = {ui_name(one, layout): one for one in self.layers.values() if id(one) not in second}
        renamed = {name: one if one.name == name else replace(one, name=name) for name, one in layers.items()}
        return replace(self, layers=renamed, twins=[], said=tuple(said))

    def _layout_of_names(self) -> KohyaLayout:
        """That of a file which nothing but its names tells of."""
        layers = [(name, one.place) for name, one in self.layers.items() if one.place is not None]
        spelled = [one for one in layers if not ONE_ENCODER.spells(*one) and TWO_ENCODERS.spells(*one)]
        return TWO_ENCODERS if spelled else ONE_ENCODER


def refuse_part(file: LoraFile, beside: Collection[Path] = ()) -> None:
    """Raise StudioError for one of several files that are one LoRA, unless the others are `beside` it."""
    if file.shard is None:
        return
    given = {path.name for path in beside if path.resolve().parent == file.path.resolve().parent}
    if not file.shard.others or not given.issuperset(file.shard.others):
        raise StudioError(
            f"{file.name} is {file.shard}. Get the LoRA as one file, or make it one: lora-studio combine "
            "with all of them."
        )


def ui_name(layer: LoraLayer, layout: KohyaLayout | TransformerLayout) -> str:
    """What UIs call a layer; its own name if that is one already, or if no base has such a layer."""
    if layer.place is None or (layer.spelling is Spelling.KOHYA and layout.spells(layer.name, layer.place)):
        return layer.name
    try:
        return layout.name(layer.place)
    except (KeyError, ValueError):  # of a part that such a base has not
        return layer.name


def open_lora(path: Path) -> LoraFile:
    """Open a file; raises StudioError if it does not exist or is no valid safetensors file."""
    return lora_file(read_header(path))


def lora_file(header: Header) -> LoraFile:
    """Sort a file's keys, in whatever spelling they are."""
    layout = layout_of_file(_sizes(header), header.metadata.get(VERSION, ""))
    if layout is not None:
        others = {key: read_transformer_key(key, layout) for key in header.entries}
    else:
        starts = ("text_encoder_2.", "lora_te2_", "text_encoders.clip_g.")
        two = any(key.startswith(starts) for key in header.entries)
        others = {key: read_key(key, two_encoders=two) for key in header.entries}
    shard = shard_of(header.path, header.entries)
    file = LoraFile(header.path, {}, header.metadata, header, shard=shard, transformer=layout)
    known: dict[str, Key] = {}
    for key, found in others.items():
        if key.startswith(BUNDLED):
            file.bundled.append(key)
        elif found is not None:
            known[key] = found
        elif key.endswith(SCALAR):
            file.scalars.append(key)
        else:
            file.extras.append(key)
    layers: dict[str, LoraLayer] = {}
    for (name, spelling), keys in _grouped(known, file.extras).items():
        first = known[next(iter(keys.values()))]
        tensors = Stored(header, keys)
        layer = LoraLayer(name, tensors, spelling, first.place, rows=first.rows, form=first.form)
        if layers.setdefault(name, layer) is not layer:
            file.twins.append(layer)
    return replace(file, layers=layers)


def _sizes(header: Header) -> dict[str, tuple[int, int] | None]:
    """Stem of a layer's keys -> the size of the weight that it changes, where plain LoRA tells it."""
    sides: dict[str, dict[str, int]] = {}
    for key, entry in header.entries.items():
        stem, end = any_key(key) or ("", "")
        if end:
            side = sides.setdefault(stem, {})
            if end in (DOWN, UP) and len(entry.shape) > 1:
                side[end] = entry.shape[end == DOWN]
    return {
        stem: (side[UP], side[DOWN]) if side.keys() == {UP, DOWN} else None for stem, side in sides.items()
    }


def _grouped(known: Mapping[str, Key], extras: list[str]) -> dict[tuple[str, Spelling], dict[str, str]]:
    """Layer -> ending -> key; what is beside a layer's tensors goes to it in whatever spelling."""
    groups: dict[tuple[str, Spelling], dict[str, str]] = {}
    beside = []
    for key, (name, end, spelling, *_) in known.items():
        if end in (*BESIDE, BIAS):
            beside.append(key)
        elif groups.setdefault((name, spelling), {}).setdefault(end, key) != key:
            extras.append(key)
    named: dict[str, Spelling] = {}
    for name, spelling in groups:
        named.setdefault(name, spelling)
    for key in beside:
        name, end, own, *_ = known[key]
        group = (name, own if (name, own) in groups else named.get(name, own))
        if (group not in groups and end != BIAS) or end in groups.setdefault(group, {}):
            extras.append(key)
        else:
            groups[group][end] = key
    for group in [one for one, keys in groups.items() if "lora_magnitude_vector" in "".join(keys.values())]:
        groups[group[0], Spelling.OTHER] = groups.pop(group)
    return groups


def base_layers(family: ModelFamily) -> dict[str, nn.Linear | nn.Conv2d]:
    """UI name -> layer, for every linear layer and convolution of the base that a LoRA file can name."""
    from torch import nn

    found: dict[str, nn.Linear | nn.Conv2d] = {}
    for part in family.targets:
        for path, module in family.parts[part].named_modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                found[family.ui_name(part, family.canonical_path(part, path))] = module
    return found
