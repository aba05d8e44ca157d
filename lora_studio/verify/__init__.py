"""`lora-studio verify`: whether a LoRA file from anywhere is valid, and how each UI loads it.

Three levels: the file alone, without waiting for torch (layers complete, finite, not all zero, names and
shapes as each UI wants them), the file against its base (every key maps to a layer, shapes fit), and a probe
batch through diffusers' own loader.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_studio.errors import DamagedFile
from lora_studio.lora_file.layer import DTYPES
from lora_studio.lora_file.lora_file import LoraFile, lora_file
from lora_studio.lora_file.open import fits
from lora_studio.metadata.write import MAX_BYTES
from lora_studio.pocket import embedded_base
from lora_studio.tensor_file.header import Header, read_header
from lora_studio.text import be, plural
from lora_studio.verify.uis import (
    COMPLETELY,
    NO_BASE,
    NOT_KNOWN,
    Base,
    UiVerdict,
    base_of_family,
    base_of_file,
    loaded_by,
    verdicts,
)
from lora_studio.verify.uis.findings import embedding_findings, findings, is_embedding
from lora_studio.verify.uis.table import Loss

if TYPE_CHECKING:
    from lora_studio.families.base import ModelFamily

COMMON_SCALE = 8.0  # alpha / rank that no trainer's default exceeds


@dataclass
class VerifyReport:
    """What verify found. `faults` empty means: valid, as far as `checks` says it was looked at."""

    file: str
    faults: list[str] = field(default_factory=list)
    checks: dict[str, Any] = field(default_factory=dict)
    uis: list[UiVerdict] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        return not self.faults

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"whole": self.ok}


def check_file(file: LoraFile) -> VerifyReport:
    """What the file shows by itself; invalid if it is damaged or no UI loads all of it."""
    report, base = VerifyReport(file.path.name), base_of_file(file)
    layers, alphas = file.layers, file.alphas
    faults = [(name, fault) for name, layer in layers.items() for fault in layer.faults()]
    report.faults += _grouped([*faults, *((name, "it is not finite") for name in file.not_finite)])
    _look_for_doubles(file, report)
    if file.shard:
        report.faults.insert(0, f"it is {file.shard}: get it as one file, or combine all of them")
    if layers and len(file.zero) == len(layers):
        report.faults.append("every layer is zero, so the file does nothing")
    scales = [alphas[name] / rank for name, rank in file.ranks.items() if rank and name in alphas]
    if any(not 0 < scale <= COMMON_SCALE for scale in scales):
        report.notes.append(
            f"alpha / rank is between {min(scales):g} and {max(scales):g}; 0 to {COMMON_SCALE:g} are common"
        )
    number = len(layers)
    report.checks |= {
        "made_for": base.title,
        "layers": number,
        "kinds": sorted({one.kind.name for one in layers.values()}),
        "layers_that_are_zero": len(file.zero),
        "share_of_layers_not_zero": 1 - len(file.zero) / number if number else 0.0,
        "scale": sorted({min(scales), max(scales)}) if scales else [],
        "dtypes": sorted({entry.dtype for one in layers.values() for entry in one.entries.values()}),
        "metadata_bytes": file.metadata_bytes,
        "base_model_version": file.version,
    }
    _judge(file, base, report)
    return report


def _grouped(faults: Iterable[tuple[str, str]]) -> list[str]:
    """A line for each fault, with the layers that have it: one cause may be in all of them."""
    layers: dict[str, list[str]] = {}
    for name, fault in faults:
        layers.setdefault(fault, []).append(name)
    return [
        f"{names[0]}: {fault}" if len(names) == 1 else f"{len(names)} layers, first {names[0]}: {fault}"
        for fault, names in layers.items()
    ]


def _look_for_doubles(file: LoraFile, report: VerifyReport) -> None:
    """One layer under two names: a fault where they differ, as UIs then take one of them."""
    equal: dict[bool, list[str]] = {True: [], False: []}
    for one, other in file.doubles():
        equal[one.equals(other)].append(f"{one.written} and {other.written}")
    for is_equal, pairs in equal.items():
        if pairs:
            what = "the same contents" if is_equal else "different contents, of which UIs take one"
            number = plural(len(pairs), "layer")
            said = f"{number} twice in it, under two names and with {what}, first {pairs[0]}"
            (report.notes if is_equal else report.faults).append(said)


def _judge(file: LoraFile, base: Base, report: VerifyReport) -> None:
    report.uis = verdicts(findings(file, base), file.layers, base.title)
    if not file.shard and not any(loaded_by(report.uis, how) for how in (COMPLETELY, NOT_KNOWN, NO_BASE)):
        said = f"no UI loads all of it: {report.uis[0].reasons[0].what}"
        if said not in report.faults:  # it is judged by the base, too
            report.faults.append(said)


def check_against_base(file: LoraFile, family: ModelFamily, report: VerifyReport) -> None:
    """Every key maps to a layer of the (unadapted) base, and shapes fit."""
    layers, own = file.layers, base_of_file(file)
    base = base_of_family(family, own, layers)
    unknown = [name for name, one in layers.items() if name not in base.places and not one.is_beside]
    if unknown:
        meant = f"; the file is for {report.checks['made_for']}" if "made_for" in report.checks else ""
        report.faults.append(
            f"{len(unknown)} of {plural(len(layers), 'layer')} {be(len(unknown))} not in the base, first "
            f"{unknown[0]}{meant}"
        )
    places = ((name, one, base.places[name]) for name, one in layers.items() if name in base.places)
    unfit = [
        f"{name}: changes a weight of {one.size}, but the base's is {place.shape}"
        for name, one, place in places
        if one.size and place.shape and not fits(one.size, place.shape)
    ]
    report.faults += (
        unfit if len(unfit) < 2 else [f"{len(unfit)} layers are of another size, first {unfit[0]}"]
    )
    if not (unknown and own.is_of_another(family)):  # of which its own kind of base says more
        _judge(file, base, report)
    report.checks["keys_mapped"] = f"{len(layers) - len(unknown)} of {len(layers)}"


def check_rules(file: LoraFile, report: VerifyReport) -> None:
    """Every UI loads all of it, alphas are numbers with a point, and what it says of itself is short."""
    report.faults += [
        f"{one.ui} does not load all of it: {reason.what}: {reason.consequence}"
        for one in report.uis
        if one.is_files_fault
        for reason in one.reasons
        if reason.loss != Loss.NONE and not reason.is_gap
    ]
    for name, layer in file.layers.items():
        if layer.form is not None and not layer.form.is_kohya:
            continue  # folded in
        alpha = layer.entries.get("alpha")
        if alpha is None or alpha.dtype not in DTYPES:
            report.faults.append(f"{name}: alpha is {'missing' if alpha is None else alpha.dtype}")
    if (size := file.metadata_bytes) > MAX_BYTES:
        report.faults.append(f"its metadata has {size} bytes; UIs expect less than {MAX_BYTES}")


def verify(path: Path, *, base: str | None = None) -> VerifyReport:
    """Look at a file as far as possible, against `base` or, if its metadata names one, that in the package.

    It is a LoRA, or the embedding of a learned token, of which the probe is left out.

    No other name in a file from anywhere is followed: it must not choose what is opened or downloaded. With a
    base the probe compares diffusers' loader with W + delta computed from the bytes.
    Raises StudioError when there is no such file or base.
    """
    try:
        header = read_header(path)
    except DamagedFile as damage:
        return VerifyReport(path.name, faults=[str(damage)])
    name = base or embedded_base(header.metadata)
    said = name or "not known: only the file itself was looked at (name it with --base)"
    if is_embedding(header):
        return _verify_embedding(header, name, said)
    file = lora_file(header)
    report = check_file(file)
    report.checks["base"] = said
    if name is not None:
        from lora_studio.families.loading import load_base
        from lora_studio.verify.trained import probe_file

        family = load_base(name)
        check_against_base(file, family, report)
        if report.ok:
            probe_file(file, family, report)
    return report


def _verify_embedding(header: Header, base: str | None, said: str) -> VerifyReport:
    from lora_studio.verify.trained import check_embedding, check_tensors

    report = VerifyReport(header.path.name)
    report.uis = verdicts(embedding_findings(header), list(header.entries), "any base")
    report.checks["base"] = said
    if base is None:
        check_tensors(header.path, report)
    else:
        from lora_studio.families.loading import load_base

        check_embedding(header.path, load_base(base), report)
    report.checks["vectors"] = {key: list(one.shape) for key, one in header.entries.items()}
    return report
