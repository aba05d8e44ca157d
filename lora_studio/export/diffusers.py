"""PEFT's names as diffusers reads them: `<part>.<path>.lora_A.weight`; alpha is folded in.

No `.alpha` goes in, which diffusers would take for all layers of a part alike, and no adapter metadata:
without both it takes every layer's scale for 1, whatever the layers' ranks.
"""

from __future__ import annotations

from torch import Tensor

from lora_studio.adapters.layer import Layer
from lora_studio.export.target import (
    ExportJob,
    ExportResult,
    Target,
    need_changes_of_weights,
    one_path,
    worst_left_out,
)
from lora_studio.lora_file.factors import PlainLora, as_plain, in_range
from lora_studio.lora_file.header import open_tensors
from lora_studio.lora_file.write import DTYPES
from lora_studio.verify.file import VerifyReport
from lora_studio.verify.trained import compare

DOWN, UP = "lora_A.weight", "lora_B.weight"


def spell(plain: dict[str, PlainLora]) -> dict[str, Tensor]:
    """`<part>.<canonical path>` -> plain LoRA, as key -> float32 tensor."""
    named = {}
    for name, (down, up, scale, _) in plain.items():
        down, up = in_range(*(one.detach().float().cpu() for one in (down, up * scale)))
        named[f"{name}.{DOWN}"], named[f"{name}.{UP}"] = down.contiguous(), up.contiguous()
    return named


def write(job: ExportJob) -> ExportResult:
    """`<name>_diffusers.safetensors`"""
    (path,) = DIFFUSERS.paths(job)
    plain = {layer.name: as_plain(layer) for layer in job.adapters.layers}
    return ExportResult((path,), job.write(path, spell(plain)), worst_left_out(job, plain.values()))


def check(job: ExportJob, made: ExportResult, report: VerifyReport) -> None:
    """Every layer's change recomputed from the file's bytes, and nothing else in it."""
    tensors, _ = open_tensors(made.paths[0])

    def change(layer: Layer) -> Tensor:
        down, up = (tensors.pop(f"{layer.name}.{end}").float() for end in (DOWN, UP))
        return up.flatten(1) @ down.flatten(1)

    compare(job.adapters, change, report, dtype=DTYPES[job.dtype])
    if tensors:
        report.faults.append(f"{len(tensors)} tensors are of no trained layer, first {next(iter(tensors))}")


DIFFUSERS = Target(
    one_path("_diffusers.safetensors"), need_changes_of_weights("diffusers"), write, check, probed=True
)
