"""A LoRA file, opened: its tensors' shapes, its metadata and its layers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from torch import Tensor, nn

from lora_studio.families.base import ModelFamily
from lora_studio.lora_file.contents import Contents, contents_of
from lora_studio.lora_file.header import Header, Stored, read_header
from lora_studio.lora_file.values import Values, values_of

ENDINGS = ("lora_down.weight", "lora_up.weight", "alpha")


@dataclass(frozen=True)
class LoraFile:
    """An opened file: its tensors by layer and ending, and what it says about itself."""

    path: Path
    layers: Mapping[str, Mapping[str, Tensor]]  # plain LoRA in the kohya format
    stray: list[str]  # keys that are no part of such a layer
    metadata: dict[str, str]
    header: Header | None = None

    def delta(self, name: str) -> Tensor:
        """A layer's weight change in float32: alpha / rank * up @ down, in the shape of its weight."""
        tensors = self.layers[name]
        down, up = tensors["lora_down.weight"].float(), tensors["lora_up.weight"].float()
        alpha = tensors["alpha"].item() if "alpha" in tensors else down.shape[0]
        change = up.flatten(1) @ down.flatten(1)
        return alpha / down.shape[0] * change.view(up.shape[0], *down.shape[1:])

    @cached_property
    def contents(self) -> Contents:
        """The layers of every kind and spelling, of a file that was opened."""
        assert self.header is not None
        return contents_of(self.header)

    @cached_property
    def values(self) -> Values:
        """What its numbers say; they are read once."""
        assert self.header is not None
        return values_of(self.header, self.contents)


def open_lora(path: Path) -> LoraFile:
    """Open a file; raises StudioError if it does not exist or is not a whole safetensors file."""
    return lora_file(read_header(path))


def lora_file(header: Header) -> LoraFile:
    """Of a header: tensors are read when they are asked for."""
    keys: dict[str, dict[str, str]] = {}
    stray: list[str] = []
    for key in header.entries:
        name, _, ending = key.partition(".")
        if ending in ENDINGS:
            keys.setdefault(name, {})[ending] = key
        else:
            stray.append(key)
    layers = {name: Stored(header, of_layer) for name, of_layer in keys.items()}
    return LoraFile(header.path, layers, stray, header.metadata, header)


def metadata_bytes(file: LoraFile) -> int:
    """Of what it says about itself."""
    return sum(len(key.encode()) + len(value.encode()) for key, value in file.metadata.items())


def base_layers(family: ModelFamily) -> dict[str, nn.Linear | nn.Conv2d]:
    """UI name -> layer, for every linear layer and convolution of the base that a LoRA file can name."""
    found: dict[str, nn.Linear | nn.Conv2d] = {}
    for part in family.targets:
        for path, module in family.parts[part].named_modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                found[family.ui_name(part, family.canonical_path(part, path))] = module
    return found
