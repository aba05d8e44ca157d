"""A LoRA and the learned tokens that it was trained with in one file, which A1111 alone reads whole."""

from __future__ import annotations

from torch import Tensor

from lora_studio.errors import StudioError
from lora_studio.export import kohya
from lora_studio.export.embedding import embeddings
from lora_studio.export.target import ExportJob, ExportResult, Target, one_path, worst_left_out
from lora_studio.lora_file.header import open_tensors
from lora_studio.lora_file.lora_file import open_lora
from lora_studio.verify.file import VerifyReport
from lora_studio.verify.trained import check_deltas

_START = "bundle_emb."
_NOTE = (
    "for A1111 alone: diffusers refuses such a file, and ComfyUI, Forge, InvokeAI, stable-diffusion.cpp and "
    "kohya leave the tokens out"
)


def _tokens(job: ExportJob) -> dict[str, Tensor]:
    found = embeddings(job.family, job.adapters)
    return {f"{_START}{word}.{key}": one for word, tensors in found.items() for key, one in tensors.items()}


def refuse(job: ExportJob) -> None:
    """Raise StudioError unless there are both."""
    if not job.adapters.layers or not job.adapters.tokens:
        raise StudioError(
            "a1111_bundle is for a LoRA and learned tokens together, and this run has not both; take the "
            f"target {'kohya' if job.adapters.layers else 'embedding'}."
        )


def write(job: ExportJob) -> ExportResult:
    """`<name>_a1111.safetensors`"""
    (path,) = A1111_BUNDLE.paths(job)
    plain = kohya.plain_layers(job.family, job.adapters)
    error = job.write(path, kohya.spell(plain) | _tokens(job))
    return ExportResult((path,), error, worst_left_out(job, plain.values()), (_NOTE,))


def check(job: ExportJob, made: ExportResult, report: VerifyReport) -> None:
    """The layers as of any LoRA, and the tokens' vectors to the dtype's rounding."""
    check_deltas(open_lora(made.paths[0]), job.family, job.adapters, report)
    tensors, _ = open_tensors(made.paths[0])
    for key, live in _tokens(job).items():
        if key not in tensors or not tensors[key].equal(live.to(tensors[key].dtype)):
            report.faults.append(f"{key} is not what was trained")


A1111_BUNDLE = Target(one_path("_a1111.safetensors"), refuse, write, check)
