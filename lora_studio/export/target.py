"""What an export target is: a form that trained adapters are written in, and how that is proven."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from torch import Tensor, nn

from lora_studio.adapters.adapter_set import AdapterSet
from lora_studio.adapters.layer import Layer
from lora_studio.errors import StudioError
from lora_studio.families.base import ModelFamily
from lora_studio.lora_file.factors import PlainLora
from lora_studio.lora_file.write import write_lora
from lora_studio.metadata.write import TrainingFacts, build_metadata, of_file
from lora_studio.verify.file import VerifyReport


@dataclass(frozen=True)
class ExportJob:
    """Something trained that is to be written."""

    family: ModelFamily  # with the adapters in it
    adapters: AdapterSet
    facts: TrainingFacts
    folder: Path
    dtype: str
    load_base: Callable[[], ModelFamily]  # the base afresh, without them, float32 on the CPU

    @cached_property
    def base(self) -> ModelFamily:
        """The base afresh, loaded once: for what is compared with it, and changes nothing in it."""
        return self.load_base()

    def write(self, path: Path, tensors: dict[str, Tensor], **said: str) -> float:
        """A file of float32 tensors with the usual metadata, and `said` over it; the casting error."""
        facts = of_file(replace(self.facts, name=path.stem), tensors)
        return write_lora(
            path,
            tensors,
            dtype=self.dtype,
            describe=lambda block: build_metadata(facts, self.family.traits, block) | said,
        )


@dataclass(frozen=True)
class ExportResult:
    """What was written."""

    paths: tuple[Path, ...]
    cast_error: float  # the largest that the dtype caused in a tensor, relative to its largest number
    left_out: float | None = None  # largest share of a layer's change that plain LoRA lacks, where it is cut
    notes: tuple[str, ...] = ()  # what its user should know, in short sentences


@dataclass(frozen=True)
class Target:
    """A form of files."""

    paths: Callable[[ExportJob], tuple[Path, ...]]
    refuse: Callable[[ExportJob], None]
    """Raises StudioError if what was trained cannot be written so; to be asked first."""

    write: Callable[[ExportJob], ExportResult]

    check: Callable[[ExportJob, ExportResult, VerifyReport], None]
    """Compares what lies on the disk with what was trained, and adds its findings to the report."""

    probed: bool = False
    """Whether diffusers loads it into a base as it is."""


def one_path(ending: str) -> Callable[[ExportJob], tuple[Path, ...]]:
    """Of targets that are one file or folder: the name of what was trained, and an ending."""
    return lambda job: (job.folder / f"{job.facts.name}{ending}",)


def worst_left_out(job: ExportJob, plain: Iterable[PlainLora]) -> float | None:
    """None where every layer is plain LoRA exactly."""
    if all(layer.factors() is not None for layer in job.adapters.layers):
        return None
    return max(one.left_out for one in plain)


def need_layers(target: str) -> Callable[[ExportJob], None]:
    """Raises StudioError if no layer was trained."""

    def refuse(job: ExportJob) -> None:
        if not job.adapters.layers:
            raise StudioError(
                f"{target} is for trained layers, and this run has learned tokens alone; take the target "
                "embedding."
            )

    return refuse


def need_changes_of_weights(target: str) -> Callable[[ExportJob], None]:
    """Raises StudioError, too, if tensors of the base were trained that LoRA cannot change."""
    need = need_layers(target)

    def refuse(job: ExportJob) -> None:
        need(job)
        beyond = [f"{layer.name}.{end}" for layer in job.adapters.layers for end in _beyond_weights(layer)]
        if beyond:
            raise StudioError(
                f"{target} holds changes of weights alone, but {len(beyond)} other tensors were trained, "
                f"first {beyond[0]}; take the target merged or checkpoint."
            )

    return refuse


def _beyond_weights(layer: Layer) -> list[str]:
    plain = isinstance(layer.module.get_base_layer(), nn.Linear | nn.Conv2d)
    return [end for end in layer.originals if not plain or end != "weight"]
