"""Open a finished LoRA file as a stranger would and say whether it is whole, and how each UI loads it.

Three levels: the file alone (layers complete, finite, not all zero, names and shapes as each UI wants them),
the file against its base (every key maps to a layer, shapes fit), and a probe batch through diffusers' own
loader.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from lora_studio.export.contents import Contents, contents_of
from lora_studio.export.header import Header, Stored, read_header
from lora_studio.export.layer_faults import layer_faults
from lora_studio.export.uis import NOT_KNOWN, Verdict, loaded_by, verdicts
from lora_studio.export.uis_base import Base, base_of_family, base_of_layers, fits
from lora_studio.export.uis_findings import findings
from lora_studio.export.values import Values, values_of
from lora_studio.families.base import ModelFamily

ENDINGS = ("lora_down.weight", "lora_up.weight", "alpha")
COMMON_SCALE = 8.0  # alpha / rank that no trainer's default exceeds


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


@dataclass
class Report:
    """What verify found. `faults` empty means: whole, as far as `checks` says it was looked at."""

    file: str
    faults: list[str] = field(default_factory=list)
    checks: dict[str, Any] = field(default_factory=dict)
    uis: list[Verdict] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def whole(self) -> bool:
        """Whether nothing is wrong."""
        return not self.faults

    def to_json(self) -> dict[str, Any]:
        """For verify.json."""
        return asdict(self) | {"whole": self.whole}


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


def check_file(file: LoraFile) -> Report:
    """What the file shows by itself; faulty if it is damaged or no UI loads all of it."""
    report, base = Report(file.path.name), base_of_layers(file.contents.layers)
    layers, values = file.contents.layers, file.values
    for name, layer in layers.items():
        report.faults += [f"{name}: {fault}" for fault in layer_faults(layer, values.alphas.get(name))]
    report.faults += [f"{name}: it is not finite" for name in values.not_finite]
    if layers and len(values.zero) == len(layers):
        report.faults.append("every layer is zero, so the file does nothing")
    scales = [
        values.alphas[name] / one.rank for name, one in layers.items() if one.rank and name in values.alphas
    ]
    if any(not 0 < scale <= COMMON_SCALE for scale in scales):
        report.notes.append(
            f"alpha / rank is between {min(scales):g} and {max(scales):g}; 0 to {COMMON_SCALE:g} are common"
        )
    number, dtypes = len(layers), {entry.dtype for one in layers.values() for entry in one.entries.values()}
    report.checks |= {
        "made_for": base.title,
        "layers": number,
        "kinds": sorted({one.kind for one in layers.values()}),
        "layers_that_are_zero": len(values.zero),
        "share_of_layers_not_zero": 1 - len(values.zero) / number if number else 0.0,
        "scale": sorted({min(scales), max(scales)}) if scales else [],
        "dtypes": sorted(str(one).removeprefix("torch.") for one in dtypes),
        "metadata_bytes": metadata_bytes(file),
        "base_model_version": file.metadata.get("ss_base_model_version", ""),
    }
    _judge(file, base, report)
    return report


def _judge(file: LoraFile, base: Base, report: Report) -> None:
    """Ask the table of UIs; what none of them loads completely is faulty."""
    assert file.header is not None
    found = findings(file.header, file.contents, base, file.values)
    report.uis = verdicts(found, file.contents.layers, base.title)
    if not loaded_by(report.uis) and not loaded_by(report.uis, NOT_KNOWN):
        first = report.uis[0].reasons[0]
        report.faults.append(f"no UI loads all of it: {first.what}")


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


def check_against_base(file: LoraFile, family: ModelFamily, report: Report) -> None:
    """Every key maps to a layer of the (unadapted) base, and shapes fit."""
    layers = file.contents.layers
    base = base_of_family(family, base_of_layers(layers), layers)
    unknown = [name for name in layers if name not in base.places]
    if unknown:
        meant = f"; the file is for {report.checks['made_for']}" if "made_for" in report.checks else ""
        report.faults.append(
            f"{len(unknown)} of {len(layers)} layers are not in the base, first {unknown[0]}{meant}"
        )
    for name, layer in layers.items():
        if layer.changes and name in base.places and not fits(layer, base.places[name]):
            wanted = base.places[name].shape
            report.faults.append(f"{name}: changes a weight of {layer.changes}, but the base's is {wanted}")
    _judge(file, base, report)
    report.checks["keys_mapped"] = f"{len(layers) - len(unknown)} of {len(layers)}"
