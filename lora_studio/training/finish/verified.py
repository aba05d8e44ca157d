"""What was trained is written, reopened, compared with the live adapters, and probed through diffusers."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from copy import copy, deepcopy
from functools import cache, partial
from pathlib import Path

import torch

from lora_studio.adapters.adapter_set import put_back
from lora_studio.errors import ExportMismatch
from lora_studio.export import EXPORTERS
from lora_studio.export.embedding import load_embedding
from lora_studio.export.merged import check_folder, open_folder, put_in, write_folder
from lora_studio.export.target import ExportJob, ExportResult
from lora_studio.families.freed import return_freed_memory
from lora_studio.lora_file.write import DTYPES
from lora_studio.training.finish.file_facts import training_facts
from lora_studio.training.finish.frozen import check_frozen
from lora_studio.training.prepare import TrainedRun
from lora_studio.training.prepare.base_model import bare_base_of, base_of
from lora_studio.verify import VerifyReport
from lora_studio.verify.trained import (
    CAPTION,
    ProbeOutput,
    ask_diffusers,
    compare_probe,
    rms,
    run_probe,
)

BASE, EMBEDDING = "base", "embedding"
SAME = 1e-4  # of a prediction's size: float32 adds up in another order where a part lies elsewhere in memory
Written = Mapping[str, ExportResult]  # by target; BASE is what full fine-tuning ends with


def job_of(trained: TrainedRun, folder: Path) -> ExportJob:
    """What was trained, to be written into a folder. Slow for a base in one file, whose hash is taken."""
    facts, dtype, recipe = training_facts(trained), trained.recipe.export.dtype, trained.recipe
    bases = (partial(base_of, recipe), cache(partial(bare_base_of, recipe)))  # SDXL's modules take seconds
    return ExportJob(trained.family, trained.adapters, facts, folder, dtype, *bases)


def write_own(trained: TrainedRun, job: ExportJob) -> Written:
    """The files that a run ends with: a LoRA file, embeddings of learned tokens, or a whole base."""
    if trained.adapters.trains_layers:
        return {BASE: write_base(trained)}
    learned = {"kohya": trained.adapters.layers, EMBEDDING: trained.adapters.tokens}
    with trained.run.writing():
        return {target: EXPORTERS[target].write(job) for target, some in learned.items() if some}


def paths_of(written: Written) -> list[Path]:
    """All of them, the main one first."""
    return [path for result in written.values() for path in result.paths]


def probe(trained: TrainedRun, *, tokens: bool = True) -> ProbeOutput:
    """What the live adapters predict, with and without them; for a caption that has all learned tokens."""
    family, caption = trained.family, _caption(trained, tokens=tokens)
    mixed = in_mixed_precision(trained) if trained.adapters.trains_layers else nullcontext()
    with family.placed(*family.probed), mixed:
        live = run_probe(family, caption)
        with trained.adapters.disabled():
            return ProbeOutput(live, rms(live - run_probe(family, caption)))


def _caption(trained: TrainedRun, *, tokens: bool) -> str:
    words = dict.fromkeys(token.word for token in trained.adapters.tokens) if tokens else ()
    return " ".join([CAPTION, *words])


def verify_written(
    trained: TrainedRun, job: ExportJob, written: Written, expected: ProbeOutput | None
) -> VerifyReport:
    """What lies on the disk against the live adapters and, where diffusers loads it, in their base.

    `expected`: what the live adapters predict, for a caption with tokens if embeddings were written, too;
    None of what is not probed.
    """
    if BASE in written and expected is not None:
        report = verify_base(written[BASE].paths[0], trained, expected)
    else:
        report = VerifyReport(paths_of(written)[0].name)
        for target, result in written.items():
            EXPORTERS[target].check(job, result, report)
        if report.ok and expected is not None and is_probed(trained, written):
            _compare_probe(job, written, trained, expected, report)
    report.checks["cast_error"] = max(result.cast_error for result in written.values())
    if left_out := [one.left_out for one in written.values() if one.left_out is not None]:
        report.checks["plain_left_out"] = max(left_out)
    return report


def is_probed(trained: TrainedRun, targets: Sequence[str] | Written) -> bool:
    """Whether diffusers loads these into a base as it is, and then has all that was trained but tokens."""
    tokens_alone = EMBEDDING in targets and not trained.adapters.layers
    return tokens_alone or any(EXPORTERS[target].probed for target in targets)


def _compare_probe(
    job: ExportJob, written: Written, trained: TrainedRun, expected: ProbeOutput, report: VerifyReport
) -> None:
    """In the run's own frozen parts, which are made sure to be the base's: there may be no room for two."""
    machine, family = trained.machine, trained.family
    lora = next((one.paths[0] for target, one in written.items() if EXPORTERS[target].probed), None)
    return_freed_memory()  # of the live probe, before the base's files are mapped beside it
    with family.placed(*family.probed), trained.adapters.taken_out(family.parts):
        check_frozen(family, family.probed, machine, report, trained.offloaded)
        untrained = copy(job.bare_base())  # for its tokenizers, which know no learned word
        untrained.borrow(family)
        if EMBEDDING in written:
            untrained.tokenizers = deepcopy(untrained.tokenizers)
        for path in written[EMBEDDING].paths if EMBEDDING in written else ():
            load_embedding(path, path.stem, untrained)
        caption = _caption(trained, tokens=EMBEDDING in written)
        prediction = ask_diffusers(lora, untrained, caption) if lora else run_probe(untrained, caption)
    compare_probe(
        prediction,
        expected,
        report,
        rounding=machine.rounding,
        of_file=lambda: _file_rounding(trained, expected, caption),
    )


def _file_rounding(trained: TrainedRun, expected: ProbeOutput, caption: str) -> float:
    """How far the live prediction moves when what was trained has the file's digits."""
    dtype, tensors = DTYPES[trained.recipe.export.dtype], trained.adapters.named_parameters().values()
    with trained.family.placed(*trained.family.probed), put_back(tensors):
        with torch.no_grad():
            for one in tensors:
                one.copy_(one.to(dtype))
        return rms(run_probe(trained.family, caption) - expected.tuned)


def refuse_mismatch(written: Written, report: VerifyReport) -> None:
    """Raise ExportMismatch, with all files set aside, if one of them is not what was trained."""
    if not report.ok:
        aside = ", ".join(map(str, map(_set_aside, paths_of(written))))
        verb = "is" if len(paths_of(written)) == 1 else "are"
        raise ExportMismatch(f"{aside} {verb} not what was trained: {'; '.join(report.faults[:3])}.")


def _set_aside(path: Path) -> Path:
    """Under another name, where one of an earlier try may lie."""
    aside = path.with_name(path.name + ".unverified")
    if aside.is_dir():
        shutil.rmtree(aside)
    return path.rename(aside)


def write_base(trained: TrainedRun) -> ExportResult:
    """A folder, from the base's own files: parts that were not trained have all their digits."""
    path, fresh = trained.run.folder / trained.recipe.name, base_of(trained.recipe)
    changed = put_in(fresh, trained.adapters.named_parameters())
    with trained.run.writing():
        error = write_folder(path, fresh, changed=changed, dtype=trained.recipe.export.dtype)
    return ExportResult((path,), error)


def verify_base(path: Path, trained: TrainedRun, expected: ProbeOutput) -> VerifyReport:
    """The folder's numbers against the live ones, and a probe batch through what diffusers loads from it."""
    report = VerifyReport(path.name)
    if (pipeline := open_folder(path, report)) is None:
        return report
    family, machine, base = trained.family, trained.machine, base_of(trained.recipe)
    live = trained.adapters.named_parameters()
    changed = put_in(base, live)
    check_folder(pipeline, base, changed, trained.recipe.export.dtype, report)
    report.checks |= {"tensors_trained": len(live), "parts_trained": sorted(changed)}
    if report.faults:
        return report
    parts = {name: getattr(pipeline, name).requires_grad_(False).eval() for name in family.parts}
    loaded = type(family)(parts, family.tokenizers, source="", scheduler=dict(pipeline.scheduler.config))
    machine.shrink(loaded)
    with family.placed():  # nowhere but in main memory: there may be no room for two
        loaded.place(machine.device, *family.probed)
        prediction = run_probe(loaded)
        loaded.place(torch.device("cpu"))
    with family.placed(*family.probed), in_mixed_precision(trained), _rounded(trained):
        rounded = run_probe(family)
    # the folder's prediction against the live one with the folder's digits, which has to be the same
    difference = rms(prediction - rounded) / rms(rounded)
    report.checks |= {"probe_effect": expected.effect, "probe_difference": difference}
    if expected.effect == 0:
        report.faults.append("the probe's prediction is the base's: nothing was learned")
        return report
    report.checks["probe_lost_share"] = rms(rounded - expected.tuned) / expected.effect
    if not difference <= max(SAME, machine.rounding):
        report.faults.append(f"the folder's probe differs by {difference:.2%} of the live prediction")
    return report


def in_mixed_precision(trained: TrainedRun) -> torch.autocast:
    """What float32 layers among others need to be asked; nothing in float32 alone."""
    dtype = trained.machine.autocast
    return torch.autocast(trained.family.device.type, dtype, enabled=dtype is not None)


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
