"""Adapters that begin as a finished LoRA file: a new run from its own first step, and no resume."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import torch

from lora_studio.adapters import ADAPTERS
from lora_studio.adapters.adapter_set import AdapterSet
from lora_studio.adapters.layer import shape_of
from lora_studio.adapters.rules import LayerOptions
from lora_studio.errors import preview_names
from lora_studio.families.base import ModelFamily
from lora_studio.lora_file.lora_file import LoraFile, base_layers
from lora_studio.lora_file.open import read_plain, unfit_layers, unknown_layers
from lora_studio.recipe.adapter import AdapterConfig

OPTION = "adapter.init_from"


def start_faults(
    config: AdapterConfig, family: ModelFamily, places: Mapping[tuple[str, str], LayerOptions]
) -> Iterator[str]:
    """Why the adapters that go into these places cannot begin as the recipe's file; nothing if they can."""
    assert config.init_from is not None
    kind = ADAPTERS[config.kind]
    if kind.trains_layers:
        yield (
            f"{OPTION} is of LoRA files, and adapter.kind = {config.kind!r} begins as its base is: name the "
            "folder of an earlier full run as base.model, or a LoRA file in [[base.loras]]."
        )
        return
    if not kind.begins_as_lora or config.start != "default":
        yield (
            f"{OPTION} does not go with adapter.kind = {config.kind!r} and adapter.start = {config.start!r}; "
            "a LoRA file can be what plain LoRA begins with: lora and locon, with their default start."
        )
        return
    file = read_plain(config.init_from, OPTION)
    base = base_layers(family)
    shapes = {name: shape_of(layer) for name, layer in base.items()}
    for fault in (unknown_layers(file, base), unfit_layers(file, shapes)):
        if fault:
            yield f"{OPTION}: {fault}"
    ranks = {
        family.ui_name(part, family.canonical_path(part, path)): one.rank
        for (part, path), one in places.items()
    }
    lost = [
        name for name in file.layers if name in base and name not in ranks and _does_something(file, name)
    ]
    if lost:
        yield (
            f"{OPTION}: {file.path.name} changes {len(lost)} layers that this recipe does not train, "
            f"{preview_names(lost)}; train them, too (adapter.text_encoder, adapter.kind = 'locon', "
            "adapter.layers), or merge the file into the base with [[base.loras]]."
        )
    yield from _larger_ranks(file, ranks)


def _larger_ranks(file: LoraFile, ranks: Mapping[str, int]) -> Iterator[str]:
    larger = {name: rank for name, rank in file.ranks.items() if name in ranks and rank > ranks[name]}
    if larger:
        most, name = max(larger.values()), next(iter(larger))
        yield (
            f"{OPTION}: {name} has rank {larger[name]} in {file.path.name}, but {ranks[name]} in the "
            f"recipe, as have {len(larger)} layers in all; set adapter.rank = {most} or more."
        )


def load_initial_weights(adapters: AdapterSet, family: ModelFamily, path: Path) -> str:
    """Give the adapters the file's numbers, and say so: at step 0 the change of every weight is the file's.

    Ranks that the file does not have keep their random `down`, and an `up` of zero. To be called for what
    has no `start_faults`.
    """
    file, begun = read_plain(path, OPTION), 0
    for layer in adapters.layers:
        name = family.ui_name(layer.part, layer.path)
        if name not in file.layers:
            continue
        found, (down, up) = file.layers[name], (layer.tensors["down"], layer.tensors["up"])
        rank, tensors = file.ranks[name], found.tensors
        share = found.scale / layer.scale
        with torch.no_grad():
            if not down.is_meta:
                down[:rank] = tensors["lora_down.weight"].float().view(rank, *down.shape[1:]).to(down)
                above = tensors["lora_up.weight"].float().view(len(up), rank, *up.shape[2:])
                up[:, :rank] = (above * share).to(up)
        begun += 1
    others = len(adapters.layers) - begun
    fresh = f", the other {others} as ever" if others else ""
    return f"{begun} layers begin as {path.name} has them{fresh}; it is a new run from its first step"


def _does_something(file: LoraFile, name: str) -> bool:
    """Layers that UIs look for, and that were not trained, are in files as zero."""
    return not file.layers[name].numbers.zero
