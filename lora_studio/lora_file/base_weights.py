"""A whole base read tensor by tensor, by our own names: a single file or a diffusers folder, never whole."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from lora_studio.errors import BaseModelError
from lora_studio.families.base import ModelFamily
from lora_studio.families.loading import load_base
from lora_studio.families.loading.folder import stored_part, weight_files
from lora_studio.families.loading.hub import hub_folder, is_hub_id
from lora_studio.families.loading.single_file import open_single_file
from lora_studio.families.loading.transformer_file import open_transformer_file
from lora_studio.families.original.checkpoint import open_checkpoint
from lora_studio.families.original.names import TensorOrigin, origins
from lora_studio.files import expanded
from lora_studio.pocket import EMBEDDED
from lora_studio.tensor_file.header import Header, read_header
from lora_studio.text import plural


@dataclass(frozen=True)
class WeightPlace:
    file: Path
    origin: TensorOrigin
    shape: tuple[int, ...]  # that its part has


@dataclass(frozen=True)
class Weights:
    """A base's tensors by `<part>.<canonical path>.<tensor>`."""

    name: str  # as its user calls it
    path: Path  # a file or a folder
    family: ModelFamily  # with shapes alone
    places: Mapping[str, WeightPlace]
    _headers: dict[Path, Header] = field(default_factory=dict, repr=False)

    def read(self, key: str) -> Tensor:
        """A tensor in its file's own dtype, in the shape that its part has."""
        place = self.places[key]
        return place.origin.take(self.header(place.file).tensor(place.origin.name)).reshape(place.shape)

    def header(self, file: Path) -> Header:
        """One of the base's files, looked at once. Raises StudioError if it is damaged."""
        if file not in self._headers:
            self._headers[file] = read_header(file)
        return self._headers[file]


def open_weights(model: str) -> Weights:
    """The base called `model`: a file, a diffusers folder, "pocket" or a hub id; no tensor is read yet.

    Raises BaseModelError as load_base, and for a part whose files lack a tensor; StudioError for a damaged
    file.
    """
    family = load_base(model, weights=False)
    path = EMBEDDED[model] if model in EMBEDDED else expanded(model)
    if model not in EMBEDDED and is_hub_id(model):
        path = hub_folder(model)
    found = dict(_in_file(path, family) if path.is_file() else _in_folder(path, family))
    places: dict[str, WeightPlace] = {}
    for part, module in family.parts.items():
        for name, tensor in module.state_dict().items():
            key = _key(family, part, name)
            if key in found:
                places[key] = WeightPlace(*found[key], tuple(tensor.shape))
        same: Mapping[str, str] = getattr(module, "_tied_weights_keys", None) or {}  # as T5's embeddings
        lacking = [
            name
            for name, _ in module.named_parameters()
            if not {_key(family, part, name), _key(family, part, same.get(name, name))} & places.keys()
        ]
        if lacking:
            raise BaseModelError(
                f"{model} lacks {plural(len(lacking), 'tensor')} of its {part}, first {lacking[0]}."
            )
    return Weights(model, path, family, places)


def _key(family: ModelFamily, part: str, name: str) -> str:
    path, _, end = name.rpartition(".")
    return f"{part}.{family.canonical_path(part, path)}.{end}"


def _in_file(path: Path, family: ModelFamily) -> Iterator[tuple[str, tuple[Path, TensorOrigin]]]:
    if transformer := open_transformer_file(path):
        found = transformer.origins(family.parts)
    else:
        file = open_single_file(path)
        found = origins(file.kind, file.checkpoint.shapes, file.configurations)
    for part, names in found.items():
        for name, origin in names.items():
            yield _key(family, part, name), (path, origin)


def _in_folder(path: Path, family: ModelFamily) -> Iterator[tuple[str, tuple[Path, TensorOrigin]]]:
    """By the names that loading knows; tensors that are one and the same lie in one place."""
    for part, module in family.parts.items():
        files = [open_checkpoint(file) for file in weight_files(path / part)]
        try:
            stored = stored_part(module, {name: file for file in files for name in file.shapes})
        except ValueError as error:
            raise BaseModelError(f"the {part} of {path} cannot be read: {error}.") from None
        for name, (file, origin, _) in stored.tensors.items():
            yield _key(family, part, name), (file.path, origin)
