"""A whole base with what was trained in it: as a diffusers folder, and as one file in the original layout.

A folder is also what full fine-tuning ends with.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, cast

import torch
from safetensors import safe_open
from torch import Tensor, nn

from lora_studio.adapters.adapter_set import AdapterSet
from lora_studio.errors import reason_of
from lora_studio.export.target import ExportJob, ExportResult, Target, report_wrong
from lora_studio.families.base import ModelFamily
from lora_studio.families.configuration import INDEXES, index_of
from lora_studio.files import sync
from lora_studio.lora_file.rounding import Rounding
from lora_studio.lora_file.write import DTYPES, cast_error, write_large
from lora_studio.metadata.write import base_keys
from lora_studio.verify import VerifyReport

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

_PATHS = ("_name_or_path", "name_or_path")  # where libraries note what a part was loaded from


def write_folder(path: Path, family: ModelFamily, *, changed: Collection[str], dtype: str) -> float:
    """Write a family's parts, float32 on the CPU, as a folder that `DiffusionPipeline.from_pretrained` loads.

    The parts `changed` are written in `dtype`, and so is every other that loses nothing by it; what would
    stays float32. The parts are cast in place. A folder that was there is replaced when all of the new one is
    on the disk. Returns the largest relative error that casting caused in any tensor. Raises ExportMismatch
    when a value does not fit into the dtype, in which case nothing is written.
    """
    wanted = DTYPES[dtype]
    parts = {name: family.parts[name].named_parameters() for name in changed}
    error = cast_error({f"{name}.{key}": one for name, part in parts.items() for key, one in part}, dtype)
    pipeline = _pipeline(family)
    for name, part in family.parts.items():
        if name in changed or holds_exactly(part, wanted):
            part.to(wanted)
    temporary, former = (path.with_name(f".{path.name}.{end}") for end in ("tmp", "old"))
    try:
        for left_over in (temporary, former):
            shutil.rmtree(left_over, ignore_errors=True)
        temporary.mkdir(parents=True)
        pipeline.save_pretrained(temporary, safe_serialization=True)
        for name, tokenizer in family.tokenizers.items():  # vocab.json, merges.txt: UIs read them
            tokenizer.backend_tokenizer.model.save(str(temporary / name))
        _forget_paths(temporary)
        for one in (*sorted(temporary.rglob("*"), reverse=True), temporary):
            sync(one)
        if path.exists():
            path.rename(former)
        temporary.rename(path)
        sync(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    shutil.rmtree(former, ignore_errors=True)
    return error


def open_folder(path: Path, report: VerifyReport) -> DiffusionPipeline | None:
    """What diffusers loads from it, in float32; none, and a fault in the report, if it loads nothing."""
    from diffusers import DiffusionPipeline, ModularPipeline
    from diffusers.utils.logging import disable_progress_bar

    disable_progress_bar()
    how = {"dtype": torch.float32, "local_files_only": True, "use_safetensors": True}
    try:
        if index_of(path).name == INDEXES[1]:
            blocks = ModularPipeline.from_pretrained(path, local_files_only=True)
            blocks.load_components(**how)
            return cast("DiffusionPipeline", blocks)
        pipeline: DiffusionPipeline = DiffusionPipeline.from_pretrained(path, **how)
    except (OSError, ValueError, RuntimeError) as error:
        report.faults.append(f"diffusers does not load it: {reason_of(error)}")
        return None
    return pipeline


def check_folder(
    pipeline: DiffusionPipeline, base: ModelFamily, changed: Collection[str], dtype: str, report: VerifyReport
) -> None:
    """Every tensor that diffusers loaded is finite and the base's in the export's dtype, bit for bit.

    `base`: with what was trained in it, float32; `changed`: the parts that differ. Others that lose something
    in the dtype are float32 in the folder.
    """
    wanted, wrong = DTYPES[dtype], list[str]()
    rounded = {name for name, part in base.parts.items() if name in changed or holds_exactly(part, wanted)}
    num_tensors = 0
    for name, part in base.parts.items():
        expected, found = (dict(one.named_parameters()) for one in (part, getattr(pipeline, name)))
        num_tensors += len(found)
        wrong += [f"{name}.{key}" for key in sorted(expected.keys() ^ found.keys())]
        for key in expected.keys() & found.keys():
            value = expected[key].detach().to(wanted if name in rounded else torch.float32)
            if not found[key].isfinite().all():
                report.faults.append(f"{name}.{key} is not finite")
            elif not torch.equal(found[key].detach().float(), value.float()):
                wrong.append(f"{name}.{key}")
    report.checks["tensors"] = num_tensors
    report_wrong(report, wrong)


def put_in(family: ModelFamily, tensors: Mapping[str, Tensor]) -> set[str]:
    """Copy tensors, by their canonical keys, into an unadapted family's parts; which parts that changed."""
    own = canonical_tensors(family)
    with torch.no_grad():
        for key, tensor in tensors.items():
            own[key].copy_(tensor)
    return {key.partition(".")[0] for key in tensors}


def canonical_tensors(family: ModelFamily) -> dict[str, nn.Parameter]:
    """All parameters by `<part>.<canonical path>.<tensor>`."""
    found = {}
    for part, module in family.parts.items():
        for name, tensor in module.named_parameters():
            path, _, end = name.rpartition(".")
            found[f"{part}.{family.canonical_path(part, path)}.{end}"] = tensor
    return found


def holds_exactly(part: nn.Module, dtype: torch.dtype) -> bool:
    """Whether a dtype has all the digits of a part's tensors."""
    return all(torch.equal(one.to(dtype).to(one.dtype), one) for one in part.state_dict().values())


def _pipeline(family: ModelFamily) -> DiffusionPipeline:
    """With the base's own scheduler instead of the previews', if its configuration names one of diffusers."""
    import diffusers

    pipeline = family.pipeline()
    kind: Any = getattr(diffusers, str(family.scheduler.get("_class_name")), None)
    if hasattr(kind, "from_config") and issubclass(kind, diffusers.SchedulerMixin):
        settings = {key: value for key, value in family.scheduler.items() if not key.startswith("_")}
        pipeline.register_modules(scheduler=kind.from_config(settings))
    return pipeline


def _forget_paths(folder: Path) -> None:
    """Where the base was loaded from is private."""
    for path in folder.rglob("*.json"):
        values: Any = json.loads(path.read_text("utf-8"))
        if isinstance(values, dict) and any(key in values for key in _PATHS):
            kept = {key: value for key, value in values.items() if key not in _PATHS}
            path.write_text(json.dumps(kept, indent=2, sort_keys=True, ensure_ascii=False) + "\n", "utf-8")


_TOKENS_APART = "the learned tokens are no part of it; take the target embedding, too"


def merge(family: ModelFamily, adapters: AdapterSet, dtype: str) -> tuple[set[str], Rounding]:
    """Put what was trained into an unadapted family in float32; the parts that it changed.

    And what a dtype takes of what was added.
    """
    changed, own, rounding = set(), canonical_tensors(family), Rounding(dtype)
    with torch.no_grad():
        for layer in adapters.layers:
            changed.add(layer.part)
            new = {end: layer.tensors[end].detach() for end in layer.tensors.keys() & layer.originals}
            if not layer.originals:
                new = {"weight": layer.delta()}
            for end, tensor in new.items():
                here = own[f"{layer.name}.{end}"]
                before, exact = here.clone(), tensor.to(here).view(here.shape)
                change = exact - before if layer.originals else exact
                here.copy_(exact if layer.originals else before + change)
                written = here.to(DTYPES[dtype]).float() - before.to(DTYPES[dtype]).float()
                lost, whole = (one.double().square().sum().item() for one in (written - change, change))
                rounding.add(lost, whole, is_left=bool(written.any()))
    return changed, rounding


def merged_base(job: ExportJob) -> tuple[ModelFamily, set[str], Rounding]:
    """The base afresh with what was trained in it, the parts that differ, and what rounding takes of that."""
    fresh = job.load_base()
    return fresh, *merge(fresh, job.adapters, job.dtype)


def notes_of(job: ExportJob, rounding: Rounding) -> tuple[str, ...]:
    """Raises StudioError if rounding would leave nothing of what was trained."""
    rounding.check()
    tokens = (_TOKENS_APART,) if job.adapters.tokens else ()
    return (*tokens, *(f"warning: {one}" for one in rounding.warnings))


class MergedFolder(Target):
    name: ClassVar[str] = "merged"
    ending: ClassVar[str] = "_merged"

    def write(self, job: ExportJob) -> ExportResult:
        """A diffusers folder of the base with what was learned in its weights."""
        (path,) = self.paths(job)
        base, changed, rounding = merged_base(job)
        notes = notes_of(job, rounding)
        error = write_folder(path, base, changed=changed, dtype=job.dtype)
        return ExportResult((path,), error, notes=notes)

    def check(self, job: ExportJob, made: ExportResult, report: VerifyReport) -> None:
        """Every tensor that diffusers loads is the merged one in the export's dtype, bit for bit."""
        if (pipeline := open_folder(made.paths[0], report)) is not None:
            base, changed, _ = merged_base(job)
            check_folder(pipeline, base, changed, job.dtype, report)


class OriginalCheckpoint(Target):
    name: ClassVar[str] = "checkpoint"
    ending: ClassVar[str] = "_checkpoint.safetensors"

    def write(self, job: ExportJob) -> ExportResult:
        """One file in the layout that the base was published in, with the architecture that UIs look for."""
        (path,) = self.paths(job)
        base, _, rounding = merged_base(job)
        notes, tensors = notes_of(job, rounding), base.original_tensors()
        error = cast_error({key: one for key, one in tensors.items() if one.is_floating_point()}, job.dtype)
        traits = job.family.traits
        of_base = {key: value for key, value in base_keys(traits).items() if key.startswith("modelspec.")}
        metadata = of_base | {
            "modelspec.architecture": traits.architecture.removesuffix("/lora"),
            "modelspec.title": job.facts.title,
            "modelspec.resolution": f"{job.facts.resolution}x{job.facts.resolution}",
        }
        write_large(path, tensors, dtype=job.dtype, metadata=metadata)
        return ExportResult((path,), error, notes=notes)

    def check(self, job: ExportJob, made: ExportResult, report: VerifyReport) -> None:
        """Every tensor on the disk is the merged one in the export's dtype, bit for bit.

        That the names are those that single files are read by was made sure of before it was written.
        """
        expected, wrong = merged_base(job)[0].original_tensors(), []
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


MERGED, CHECKPOINT = MergedFolder(), OriginalCheckpoint()
