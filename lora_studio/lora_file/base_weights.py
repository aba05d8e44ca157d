"""A whole base read tensor by tensor, by our own names: a single file or a diffusers folder, never whole."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from lora_studio.errors import BaseModelError
from lora_studio.families.base import ModelFamily
from lora_studio.families.loading import load_base
from lora_studio.families.loading.hub import hub_folder, is_hub_id
from lora_studio.families.loading.single_file import open_single_file
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
        lacking = [name for name, _ in module.named_parameters() if _key(family, part, name) not in places]
        if lacking:
            raise BaseModelError(
                f"{model} lacks {plural(len(lacking), 'tensor')} of its {part}, first {lacking[0]}."
            )
    return Weights(model, path, family, places)


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a part that loaders take: the fp16 variant only if there is no other."""
    files = sorted(folder.glob("*.safetensors"))
    return [file for file in files if ".fp16" not in file.name] or files


def _key(family: ModelFamily, part: str, name: str) -> str:
    path, _, end = name.rpartition(".")
    return f"{part}.{family.canonical_path(part, path)}.{end}"


def _in_file(path: Path, family: ModelFamily) -> Iterator[tuple[str, tuple[Path, TensorOrigin]]]:
    file = open_single_file(path)
    for part, names in origins(file.kind, file.checkpoint.shapes, file.configurations).items():
        for name, origin in names.items():
            yield _key(family, part, name), (path, origin)


def _in_folder(path: Path, family: ModelFamily) -> Iterator[tuple[str, tuple[Path, TensorOrigin]]]:
    for part in family.parts:
        for file in weight_files(path / part):
            for name in read_header(file).entries:
                yield _key(family, part, name), (file, TensorOrigin(name))
