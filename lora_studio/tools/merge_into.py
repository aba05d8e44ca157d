"""`lora-studio merge-into`: a base with LoRA files added to its weights, tensor by tensor."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from lora_studio.errors import ExportMismatch, StudioError
from lora_studio.families.loading.folder import INDEX
from lora_studio.files import sync
from lora_studio.lora_file.base_weights import WeightPlace, Weights, weight_files
from lora_studio.lora_file.lora_file import base_layers
from lora_studio.lora_file.open import check_same_family, unfit_layers, unknown_layers
from lora_studio.lora_file.write import write_tensors
from lora_studio.tools import Report
from lora_studio.tools.combine import Term

_KEPT = (".json", ".txt", ".model", ".md")  # of a folder, beside its weights


@dataclass(frozen=True)
class MergeReport(Report):
    file: str
    layers: int  # that were changed
    cast_error: float  # of the changes, relative to their norm: what the base's dtype rounds away
    notes: list[str] = field(default_factory=list)


def merge_into(base: Weights, terms: Sequence[Term], out: Path) -> MergeReport:
    """Write the base with the files' changes added: as it is, a file or a folder, every tensor in its dtype.

    The base is only read. Raises StudioError for files of another kind of base, ExportMismatch when a sum
    does not fit into the base's dtype.
    """
    files = [term.file for term in terms]
    notes, keys = check_same_family(files), layer_keys(base)
    shapes = {name: base.places[key].shape for name, key in keys.items()}
    for file in files:
        if fault := unknown_layers(file, shapes) or unfit_layers(file, shapes):
            raise StudioError(fault)
    adding = _Adding(base, terms, keys)
    if base.path.is_file():
        _write_file(base.path, out, adding)
    elif left_out := _write_folder(base.path, out, adding):
        notes.append(f"{left_out} files of the base's folder that loading does not need are left out")
    return MergeReport(out.name, len(adding.wanted), adding.cast_error, notes)


def layer_keys(base: Weights) -> dict[str, str]:
    """What UIs call a layer -> the key of its weight, for every layer that a LoRA file can name."""
    names = {id(layer): name for name, layer in base_layers(base.family).items()}
    found = {}
    for part in base.family.targets:
        for path, module in base.family.parts[part].named_modules():
            if id(module) in names:
                found[names[id(module)]] = f"{part}.{base.family.canonical_path(part, path)}.weight"
    return found


class _Adding:
    """Which tensors of the base's files get which changes, and what rounding took of those."""

    def __init__(self, base: Weights, terms: Sequence[Term], keys: Mapping[str, str]) -> None:
        self.terms, self.base = terms, base
        self.wanted: dict[tuple[Path, str], list[tuple[str, WeightPlace]]] = {}
        for name in dict.fromkeys(name for term in terms for name in term.file.layers):
            place = base.places[keys[name]]
            self.wanted.setdefault((place.file, place.origin.name), []).append((name, place))
        self._error = self._size = 0.0  # sums of squares

    @property
    def cast_error(self) -> float:
        return float((self._error / self._size) ** 0.5) if self._size else 0.0

    def tensor(self, file: Path, name: str) -> Tensor:
        """A tensor of the new file: the base's, with what is added to it."""
        kept = self.base.header(file).tensor(name)
        if (file, name) not in self.wanted:
            return kept
        exact = kept.double()
        for layer, place in self.wanted[file, name]:
            view = place.origin.take(exact)
            for term in self.terms:
                if layer in term.file.layers:
                    factors = term.file.factors(layer, term.strength)
                    view += (factors.up @ factors.down).view(view.shape)
        changed = exact.to(kept.dtype)
        if not changed.isfinite().all():
            raise ExportMismatch(f"{name} with the change added does not fit into the base's {kept.dtype}.")
        self._error += (changed.double() - exact).square().sum().item()
        self._size += (exact - kept.double()).square().sum().item()
        return changed


def _write_file(source: Path, out: Path, adding: _Adding) -> None:
    """A file of the base once more, with its own metadata but for hashes, which are not true any more."""
    header = adding.base.header(source)
    metadata = {k: v for k, v in header.metadata.items() if "hash" not in k}
    if source == adding.base.path:
        added = [f"{term.file.path.stem} at {term.strength:g}" for term in adding.terms]
        metadata["modelspec.merged_from"] = ", ".join([source.stem, *added])
    write_tensors(out, header.entries, (adding.tensor(source, name) for name in header.entries), metadata)


def _write_folder(folder: Path, out: Path, adding: _Adding) -> int:
    """A diffusers folder once more; how many of its files are left out."""
    temporary = out.with_name(f".{out.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        index = json.loads((folder / INDEX).read_text("utf-8"))
        listed = [name for name, entry in index.items() if isinstance(entry, list) and entry[0]]
        left_out = 0
        for source in _files(folder, listed):
            copy = temporary / source.relative_to(folder)
            copy.parent.mkdir(parents=True, exist_ok=True)
            if source.suffix in _KEPT:
                shutil.copyfile(source, copy)
            elif source.parent != folder and source in weight_files(source.parent):
                _write_file(source, copy, adding)
            else:
                left_out += 1
        for path in sorted(temporary.rglob("*"), reverse=True):
            sync(path)
        temporary.rename(out)
        sync(out.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return left_out


def _files(folder: Path, parts: Iterable[str]) -> Iterator[Path]:
    """Those beside the index, and those of the listed parts."""
    for part in ("", *parts):
        yield from sorted(path for path in (folder / part).glob("*") if path.is_file())
