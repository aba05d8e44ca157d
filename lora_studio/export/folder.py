"""A whole base as a diffusers folder: what full fine-tuning ends with, or a base with LoRAs merged in."""

from __future__ import annotations

import json
import shutil
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lora_studio.errors import reason_of
from lora_studio.export.target import report_wrong
from lora_studio.families.base import ModelFamily
from lora_studio.files import sync
from lora_studio.lora_file.write import DTYPES, cast_error
from lora_studio.verify.file import VerifyReport

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
    error = cast_error(
        {f"{name}.{key}": one for name in changed for key, one in family.parts[name].named_parameters()},
        dtype,
    )
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
        for name, tokenizer in family.tokenizers.items():
            tokenizer.backend_tokenizer.model.save(
                str(temporary / name)
            )  # vocab.json, merges.txt: UIs read them
        _forget_paths(temporary)
        _sync_all(temporary)
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
    from diffusers import DiffusionPipeline
    from diffusers.utils.logging import disable_progress_bar

    disable_progress_bar()
    try:
        pipeline: DiffusionPipeline = DiffusionPipeline.from_pretrained(
            path, dtype=torch.float32, local_files_only=True, use_safetensors=True
        )
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
        expected = dict(part.named_parameters())
        found = dict(getattr(pipeline, name).named_parameters())
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


def _sync_all(folder: Path) -> None:
    for path in sorted(folder.rglob("*"), reverse=True):
        sync(path)
    sync(folder)
