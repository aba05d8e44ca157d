"""What full fine-tuning ends with: a whole base in a folder, and the proof that it is what was trained."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from lora_studio.adapters.adapter_set import put_back
from lora_studio.export.folder import check_folder, open_folder, put_in, write_folder
from lora_studio.export.target import ExportResult
from lora_studio.lora_file.write import DTYPES
from lora_studio.training.context import TrainedRun
from lora_studio.training.prepare.base_model import base_of
from lora_studio.verify.file import VerifyReport
from lora_studio.verify.probe import ProbeOutput, probed, rms, run_probe

SAME = 1e-4  # of a prediction's size: float32 adds up in another order where a part lies elsewhere in memory

LOST = 0.1  # of what was learned, from which on it is said


def write_base(trained: TrainedRun) -> ExportResult:
    """The base with what was trained put in, as a folder.

    From the base's own files: parts that were not trained have all their digits, whatever was computed in.
    """
    path = trained.run.folder / trained.recipe.name
    fresh = base_of(trained.recipe)
    changed = put_in(fresh, trained.adapters.named_parameters())
    with trained.run.writing():
        error = write_folder(path, fresh, changed=changed, dtype=trained.recipe.export.dtype)
    return ExportResult((path,), error)


def verify_base(path: Path, trained: TrainedRun, expected: ProbeOutput) -> VerifyReport:
    """The folder's numbers against the live ones, and a probe batch through what diffusers loads from it."""
    report = VerifyReport(path.name)
    pipeline = open_folder(path, report)
    if pipeline is None:
        return report
    family, machine, live = trained.family, trained.machine, trained.adapters.named_parameters()
    base = base_of(trained.recipe)
    changed = put_in(base, live)
    check_folder(pipeline, base, changed, trained.recipe.export.dtype, report)
    report.checks |= {"tensors_trained": len(live), "parts_trained": sorted(changed)}
    if report.faults:
        return report
    parts = {name: getattr(pipeline, name).requires_grad_(False).eval() for name in family.parts}
    loaded = type(family)(parts, family.tokenizers, source="", scheduler=dict(pipeline.scheduler.config))
    machine.shrink(loaded)
    with family.placed():  # nowhere but in main memory: there may be no room for two
        loaded.place(machine.device, *probed(family))
        prediction = run_probe(loaded)
        loaded.place(torch.device("cpu"))
    with family.placed(*probed(family)), in_mixed_precision(trained), _rounded(trained):
        rounded = run_probe(family)
    _check_probe(prediction, rounded, expected, report, rounding=machine.rounding)
    return report


@contextmanager
def in_mixed_precision(trained: TrainedRun) -> Iterator[None]:
    """What float32 layers among others need to be asked; nothing in float32 alone."""
    dtype = trained.machine.autocast
    with torch.autocast(trained.family.device.type, dtype, enabled=dtype is not None):
        yield


@contextmanager
def _rounded(trained: TrainedRun) -> Iterator[None]:
    """Within it the trained parts have the export's digits, as the folder has."""
    dtype, family = DTYPES[trained.recipe.export.dtype], trained.family
    parts = dict.fromkeys(layer.part for layer in trained.adapters.layers)
    tensors = [one for part in parts for one in family.parts[part].parameters()]
    with put_back(tensors):
        with torch.no_grad():
            for one in tensors:
                one.copy_(one.to(dtype))
        yield


def _check_probe(
    prediction: Tensor, rounded: Tensor, expected: ProbeOutput, report: VerifyReport, *, rounding: float
) -> None:
    """The folder's prediction against the live one with the folder's digits, which has to be the same."""
    difference = rms(prediction - rounded) / rms(rounded)
    report.checks["probe_effect"] = expected.effect
    report.checks["probe_difference"] = difference
    if expected.effect == 0:
        report.faults.append("the probe's prediction is the base's: nothing was learned")
        return
    report.checks["probe_lost_share"] = rms(rounded - expected.tuned) / expected.effect
    if not difference <= max(SAME, rounding):
        report.faults.append(
            f"the probe through the folder differs by {difference:.2%} of the live prediction"
        )


def lost_in_words(share: float, dtype: str) -> str:
    """What the user can do about it."""
    return (
        f"rounding to {dtype} moves the probe's prediction by {share:.0%} of what training "
        'moved it; export.dtype = "float32" keeps all digits'
    )
