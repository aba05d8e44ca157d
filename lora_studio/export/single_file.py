"""The base with what was trained in it as one file in the original layout, as UIs load checkpoints."""

from __future__ import annotations

import torch
from safetensors import safe_open
from torch import Tensor

from lora_studio.export.merged import merged_base, notes_of
from lora_studio.export.target import ExportJob, ExportResult, Target, need_layers, one_path
from lora_studio.lora_file.write import DTYPES, cast_error, write_large
from lora_studio.metadata.write import base_keys
from lora_studio.verify.file import VerifyReport


def _whole(job: ExportJob) -> dict[str, Tensor]:
    base, _ = merged_base(job)
    return base.original_tensors()


def write(job: ExportJob) -> ExportResult:
    """`<name>_checkpoint.safetensors`, all of it in the export's dtype."""
    (path,) = CHECKPOINT.paths(job)
    tensors = _whole(job)
    error = cast_error({key: one for key, one in tensors.items() if one.is_floating_point()}, job.dtype)
    traits = job.family.traits
    of_base = {key: value for key, value in base_keys(traits).items() if key.startswith("modelspec.")}
    metadata = of_base | {
        "modelspec.architecture": traits.architecture.removesuffix("/lora"),
        "modelspec.title": job.facts.title,
        "modelspec.resolution": f"{job.facts.resolution}x{job.facts.resolution}",
    }
    write_large(path, tensors, dtype=job.dtype, metadata=metadata)
    return ExportResult((path,), error, notes=notes_of(job))


def check(job: ExportJob, made: ExportResult, report: VerifyReport) -> None:
    """Every tensor on the disk is the merged one in the export's dtype, bit for bit.

    That the names are those that single files are read by was made sure of before it was written.
    """
    expected, wrong = _whole(job), []
    with safe_open(made.paths[0], framework="pt") as file:  # one tensor at a time: a base may fill memory
        names = set(file.keys())
        for key in expected.keys() & names:
            one = expected[key].detach()
            value = one.to(DTYPES[job.dtype]) if one.is_floating_point() else one
            if not torch.equal(file.get_tensor(key), value):
                wrong.append(key)
    wrong += sorted(expected.keys() ^ names)
    report.checks["tensors"] = len(names)
    if wrong:
        report.faults.append(f"{len(wrong)} tensors are not what was trained, first {wrong[0]}")


CHECKPOINT = Target(one_path("_checkpoint.safetensors"), need_layers("checkpoint"), write, check)
