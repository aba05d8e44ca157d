"""What an export target is: a form that trained adapters are written in, and how that is proven."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

from torch import Tensor, nn

from lora_studio.adapters.adapter_set import AdapterSet
from lora_studio.adapters.layer import Layer
from lora_studio.errors import StudioError
from lora_studio.families.base import ModelFamily
from lora_studio.lora_file.factors import PlainLora
from lora_studio.lora_file.write import write_lora
from lora_studio.metadata.write import TrainingFacts, build_metadata, of_file
from lora_studio.text import plural
from lora_studio.verify import VerifyReport


@dataclass(frozen=True)
class ExportJob:
    family: ModelFamily  # with the adapters in it
    adapters: AdapterSet
    facts: TrainingFacts
    folder: Path
    dtype: str
    load_base: Callable[[], ModelFamily]  # the base afresh, without them, float32 on the CPU
    bare_base: Callable[[], ModelFamily]  # likewise, with shapes only

    def write(self, path: Path, tensors: dict[str, Tensor], **said: str) -> float:
        """A file of float32 tensors with the usual metadata, and `said` over it; the casting error."""
        facts = of_file(replace(self.facts, name=path.stem), tensors)

        def describe(block: bytes) -> dict[str, str]:
            return build_metadata(facts, self.family.traits, block) | said

        return write_lora(path, tensors, dtype=self.dtype, describe=describe)


@dataclass(frozen=True)
class ExportResult:
    paths: tuple[Path, ...]
    cast_error: float  # the largest that the dtype caused in a tensor, relative to its largest number
    left_out: float | None = None  # largest share of a layer's change that plain LoRA lacks, where it is cut
    notes: tuple[str, ...] = ()  # what its user should know, in short sentences


class Target(ABC):
    """A form of files."""

    name: ClassVar[str]  # in the table
    ending: ClassVar[str] = ""  # of the file's name, after that of what was trained
    probed: ClassVar[bool] = False  # whether diffusers loads it into a base as it is
    weights_alone: ClassVar[bool] = False  # whether it holds changes of weights, and of no other tensor

    def paths(self, job: ExportJob) -> tuple[Path, ...]:
        return (job.folder / f"{job.facts.name}{self.ending}",)

    def refuse(self, job: ExportJob) -> None:
        """Raise StudioError if what was trained cannot be written so; to be asked first."""
        if not job.adapters.layers:
            why = "is for trained layers, and this run has learned tokens alone; take the target embedding"
            raise StudioError(f"{self.name} {why}.")
        layers = job.adapters.layers if self.weights_alone else ()
        if beyond := [f"{layer.name}.{end}" for layer in layers for end in _beyond_weights(layer)]:
            rest = plural(len(beyond), "other tensor")
            raise StudioError(
                f"{self.name} holds changes of weights alone, and not the {rest} of this run, "
                f"first {beyond[0]}; take the target merged or checkpoint."
            )

    @abstractmethod
    def write(self, job: ExportJob) -> ExportResult:
        """Raises ExportMismatch, and writes nothing, if a value does not fit into the dtype."""

    @abstractmethod
    def check(self, job: ExportJob, made: ExportResult, report: VerifyReport) -> None:
        """Compare what lies on the disk with what was trained, and add the findings to the report."""


def report_wrong(report: VerifyReport, wrong: Sequence[str], what: str = "not as trained") -> None:
    if wrong:
        report.faults.append(f"{plural(len(wrong), 'tensor')} {what}, first {wrong[0]}")


def worst_left_out(job: ExportJob, plain: Iterable[PlainLora]) -> float | None:
    """None where every layer is plain LoRA exactly."""
    if all(layer.factors() is not None for layer in job.adapters.layers):
        return None
    return max(one.left_out for one in plain)


def _beyond_weights(layer: Layer) -> list[str]:
    plain = isinstance(layer.module.get_base_layer(), nn.Linear | nn.Conv2d)
    return [end for end in layer.originals if not plain or end != "weight"]
