"""Each kind in its own tensors, in LyCORIS' spelling: smaller or more exact than plain LoRA, less read."""

from __future__ import annotations

import json
from typing import ClassVar

import torch
from torch import Tensor

from lora_studio.errors import StudioError
from lora_studio.export.target import ExportJob, ExportResult, Target, report_wrong
from lora_studio.lora_file.header import open_tensors
from lora_studio.lora_file.kinds import kind_written_by
from lora_studio.lora_file.kinds.base import LayerKind
from lora_studio.lora_file.kinds.whole import endings_of
from lora_studio.verify.file import VerifyReport


class Native(Target):
    """LyCORIS' tensors."""

    name: ClassVar[str] = "native"
    ending: ClassVar[str] = "_native.safetensors"

    def refuse(self, job: ExportJob) -> None:
        """What LyCORIS has no tensors for."""
        super().refuse(job)
        kind = job.adapters.options.kind
        if kind_written_by(kind) is None:
            raise StudioError(
                f"native has no spelling for what the kind {kind!r} trains, which turns a layer's inputs "
                "where LyCORIS turns its outputs; take the target kohya, which has it as plain LoRA."
            )
        strange = [layer.name for layer in job.adapters.layers if layer.originals and not endings_of(layer)]
        if strange:
            raise StudioError(
                f"native has no spelling for {strange[0]}, which is no linear layer, convolution or "
                "normalisation; take the target merged or checkpoint."
            )

    def write(self, job: ExportJob) -> ExportResult:
        """`<name>_native.safetensors`; of plain LoRA what kohya's is."""
        kind = job.adapters.options.kind
        (path,) = self.paths(job)
        named = {key: one.float().cpu().contiguous() for key, one in _tensors(job).items()}
        unread = _spelling(job).written_by[kind]
        if not unread:
            return ExportResult((path,), job.write(path, named))
        said = {"ss_network_args": json.dumps({"algo": "lora" if kind == "dora" else kind})}
        error = job.write(path, named, ss_network_module="lycoris.kohya", **said)
        return ExportResult((path,), error, notes=(f"not read everywhere: {unread}",))

    def check(self, job: ExportJob, made: ExportResult, report: VerifyReport) -> None:
        """Every tensor on the disk is the live one's, to the dtype's rounding."""
        tensors, _ = open_tensors(made.paths[0])
        worst = 0.0
        for key, live in _tensors(job).items():
            found = tensors.pop(key, None)
            if found is None or not found.isfinite().all():
                report.faults.append(f"{key} is missing, or not finite")
                continue
            size = live.float().abs().max().item()
            error = (found.float() - live.float().cpu()).abs().max().item() / (size or 1.0)
            worst = max(worst, error / torch.finfo(found.dtype).eps)
        report.checks |= {"tensor_error": worst}  # in units of the dtype's rounding
        if not worst <= 1:
            report.faults.append("a tensor differs from the trained one by more than its dtype rounds")
        report_wrong(report, list(tensors), "are of no trained layer")


def _spelling(job: ExportJob) -> LayerKind:
    found = kind_written_by(job.adapters.options.kind)
    assert found is not None, "refused before"
    return found


def _tensors(job: ExportJob) -> dict[str, Tensor]:
    """UI key -> tensor of every trained layer."""
    kind = _spelling(job)
    return {
        f"{job.family.ui_name(layer.part, layer.path)}.{end}": tensor
        for layer in job.adapters.layers
        for end, tensor in kind.spell(layer).items()
    }


NATIVE = Native()
