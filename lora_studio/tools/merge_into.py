"""`lora-studio merge-into`: a base with LoRA files added to its weights, tensor by tensor."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from lora_studio.errors import ExportMismatch, StudioError
from lora_studio.families.configuration import index_of
from lora_studio.families.loading.folder import weight_files
from lora_studio.files import sync
from lora_studio.lora_file.base_weights import WeightPlace, Weights
from lora_studio.lora_file.lora_file import base_layers
from lora_studio.lora_file.open import check_same_family, unfit_layers, unknown_layers
from lora_studio.lora_file.rounding import Rounding
from lora_studio.lora_file.write import DTYPES, write_tensors
from lora_studio.tensor_file.header import TensorEntry
from lora_studio.text import plural
from lora_studio.tools import Report
from lora_studio.tools.combine import Term

_KEPT = (".json", ".txt", ".model", ".jinja", ".md")  # of a folder, beside its weights


@dataclass(frozen=True)
class MergeReport(Report):
    file: str
    layers: int  # that were changed
    cast_error: float  # of the changes, relative to their norm: what the dtype rounds away
    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def merge_into(base: Weights, terms: Sequence[Term], out: Path, *, dtype: str | None = None) -> MergeReport:
    """Write the base with the files' changes added: as it is, a file or a folder, every tensor in its dtype.

    `dtype`: of all numbers with a point instead. The base is only read. Raises StudioError for files of
    another kind of base, or if rounding leaves nothing of any; ExportMismatch when a sum does not fit.
    """
    if dtype is not None and dtype not in DTYPES:
        raise StudioError(f"--dtype is {dtype!r}; it must be one of {', '.join(DTYPES)}.")
    files = [term.file for term in terms]
    notes, keys = check_same_family(files), layer_keys(base)
    shapes = {name: base.places[key].shape for name, key in keys.items()}
    for file in files:
        if fault := unknown_layers(file, shapes) or unfit_layers(file, shapes):
            raise StudioError(fault)
    adding = _Adding(base, terms, keys, dtype)
    if base.path.is_file():
        _write_file(base.path, out, adding)
    elif left_out := _write_folder(base.path, out, adding):
        files_out = f"{plural(left_out, 'file')} of the base's folder that loading does not need"
        notes.append(f"{files_out} {'is' if left_out == 1 else 'are'} left out")
    rounding = adding.rounding
    return MergeReport(out.name, len(adding.wanted), rounding.share, notes, rounding.warnings)


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

    def __init__(
        self, base: Weights, terms: Sequence[Term], keys: Mapping[str, str], dtype: str | None
    ) -> None:
        self.terms, self.base, self._dtype = terms, base, dtype
        self.wanted: dict[tuple[Path, str], list[tuple[str, WeightPlace]]] = {}
        for name in dict.fromkeys(name for term in terms for name in term.file.layers):
            place = base.places[keys[name]]
            self.wanted.setdefault((place.file, place.origin.name), []).append((name, place))
        self.rounding = Rounding(dtype or "the base's dtype")

    def entries(self, file: Path) -> dict[str, TensorEntry]:
        """What the header of a file of the base becomes."""
        entries = self.base.header(file).entries
        return {name: replace(one, dtype=self._dtype_of(one.dtype)) for name, one in entries.items()}

    def _dtype_of(self, dtype: str) -> str:
        return self._dtype if self._dtype and "float" in dtype else dtype

    def tensor(self, file: Path, name: str) -> Tensor:
        """A tensor of the new file: the base's, with what is added to it."""
        kept = self.base.header(file).tensor(name)
        dtype = getattr(torch, self._dtype_of(str(kept.dtype).removeprefix("torch.")))
        if (file, name) not in self.wanted:
            return kept.to(dtype)
        exact = kept.double()
        for layer, place in self.wanted[file, name]:
            view = place.origin.take(exact)
            for term in self.terms:
                if layer in term.file.layers:
                    factors = term.file.factors(layer, term.strength)
                    view += (factors.up @ factors.down).view(view.shape)
        changed, before = exact.to(dtype), kept.to(dtype)
        if not changed.isfinite().all():
            what = f"{name} with the change added does not fit into {str(dtype).removeprefix('torch.')}"
            raise ExportMismatch(f"{what}; give --dtype float32.")
        wanted, made = exact - kept.double(), changed.double() - before.double()
        lost, size = (one.square().sum().item() for one in (made - wanted, wanted))
        self.rounding.add(lost, size, is_left=bool(made.any()))
        return changed

    def tensors(self, file: Path) -> Iterator[Tensor]:
        """All of a file; of a base that is one, raises StudioError at the end if no change is left."""
        for name in self.base.header(file).entries:
            yield self.tensor(file, name)
        if file == self.base.path:
            self.rounding.check_something()


def _write_file(source: Path, out: Path, adding: _Adding) -> None:
    """A file of the base once more, with its own metadata but for hashes, which are not true any more."""
    header = adding.base.header(source)
    metadata = {k: v for k, v in header.metadata.items() if "hash" not in k}
    if source == adding.base.path:
        added = [f"{term.file.path.stem} at {term.strength:g}" for term in adding.terms]
        metadata["modelspec.merged_from"] = ", ".join([source.stem, *added])
    write_tensors(out, adding.entries(source), adding.tensors(source), metadata)


def _write_folder(folder: Path, out: Path, adding: _Adding) -> int:
    """A diffusers folder once more; how many of its files are left out."""
    temporary = out.with_name(f".{out.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        index = json.loads(index_of(folder).read_text("utf-8"))
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
        adding.rounding.check_something()
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
