"""The base with what was trained in it: as a diffusers folder, and as one file in the original layout."""

from __future__ import annotations

from typing import ClassVar

import torch
from safetensors import safe_open
from torch import Tensor

from lora_studio.adapters.adapter_set import AdapterSet
from lora_studio.export.folder import canonical_tensors, check_folder, open_folder, put_in, write_folder
from lora_studio.export.target import ExportJob, ExportResult, Target, report_wrong
from lora_studio.families.base import ModelFamily
from lora_studio.lora_file.write import DTYPES, cast_error, write_large
from lora_studio.metadata.write import base_keys
from lora_studio.verify.file import VerifyReport

_TOKENS_APART = "the learned tokens are no part of it; take the target embedding, too"


def merge(family: ModelFamily, adapters: AdapterSet) -> set[str]:
    """Put what was trained into an unadapted family in float32; the parts that it changed."""
    changed = put_in(
        family,
        {
            f"{layer.name}.{end}": tensor.detach()
            for layer in adapters.layers
            for end, tensor in layer.tensors.items()
            if end in layer.originals
        },
    )
    own = canonical_tensors(family)
    with torch.no_grad():
        for layer in adapters.layers:
            if not layer.originals:
                weight = own[f"{layer.name}.weight"]
                weight.add_(layer.delta().to(weight).view(weight.shape))
                changed.add(layer.part)
    return changed


def merged_base(job: ExportJob) -> tuple[ModelFamily, set[str]]:
    """The base afresh with what was trained in it, and the parts that differ."""
    fresh = job.load_base()
    return fresh, merge(fresh, job.adapters)


def notes_of(job: ExportJob) -> tuple[str, ...]:
    """What a whole base does not hold of a run."""
    return (_TOKENS_APART,) if job.adapters.tokens else ()


class MergedFolder(Target):
    """A diffusers folder."""

    name: ClassVar[str] = "merged"
    ending: ClassVar[str] = "_merged"

    def write(self, job: ExportJob) -> ExportResult:
        (path,) = self.paths(job)
        base, changed = merged_base(job)
        return ExportResult(
            (path,), write_folder(path, base, changed=changed, dtype=job.dtype), notes=notes_of(job)
        )

    def check(self, job: ExportJob, made: ExportResult, report: VerifyReport) -> None:
        """Every tensor that diffusers loads is the merged one in the export's dtype, bit for bit."""
        pipeline = open_folder(made.paths[0], report)
        if pipeline is None:
            return
        base, changed = merged_base(job)
        check_folder(pipeline, base, changed, job.dtype, report)


class OriginalCheckpoint(Target):
    """As UIs load bases."""

    name: ClassVar[str] = "checkpoint"
    ending: ClassVar[str] = "_checkpoint.safetensors"

    def write(self, job: ExportJob) -> ExportResult:
        """`<name>_checkpoint.safetensors`, all of it in the export's dtype."""
        (path,) = self.paths(job)
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

    def check(self, job: ExportJob, made: ExportResult, report: VerifyReport) -> None:
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
        report_wrong(report, wrong)


def _whole(job: ExportJob) -> dict[str, Tensor]:
    base, _ = merged_base(job)
    return base.original_tensors()


MERGED, CHECKPOINT = MergedFolder(), OriginalCheckpoint()
