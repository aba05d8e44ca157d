"""What was trained is written, reopened, compared with the live adapters, and probed through diffusers."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path

from lora_studio.errors import ExportMismatch
from lora_studio.export import EXPORTERS
from lora_studio.export.embedding import load_embedding
from lora_studio.export.target import ExportJob, ExportResult
from lora_studio.training.context import TrainedRun
from lora_studio.training.finish.full_base import in_mixed_precision, verify_base, write_base
from lora_studio.training.finish.summary import training_facts
from lora_studio.training.machine import shard
from lora_studio.training.prepare.base_model import base_of
from lora_studio.verify.file import VerifyReport
from lora_studio.verify.probe import (
    CAPTION,
    ProbeOutput,
    ask_diffusers,
    compare_probe,
    probe_output,
    probed,
    run_probe,
)

BASE, EMBEDDING = "base", "embedding"
Written = Mapping[str, ExportResult]  # by target; BASE is what full fine-tuning ends with


def job_of(trained: TrainedRun, folder: Path) -> ExportJob:
    """What was trained, to be written into a folder. Slow for a base in one file, whose hash is taken."""
    return ExportJob(
        trained.family,
        trained.adapters,
        training_facts(trained),
        folder,
        trained.recipe.export.dtype,
        lambda: base_of(trained.recipe),
    )


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
    with family.placed(*probed(family)), mixed:
        live = run_probe(family, caption)
        with trained.adapters.disabled():
            return probe_output(live, run_probe(family, caption))


def _caption(trained: TrainedRun, *, tokens: bool) -> str:
    words = dict.fromkeys(token.word for token in trained.adapters.tokens) if tokens else ()
    return " ".join([CAPTION, *words])


def verify_written(
    trained: TrainedRun, job: ExportJob, written: Written, expected: ProbeOutput | None
) -> VerifyReport:
    """What lies on the disk against the live adapters and, where diffusers loads it, in a base loaded afresh.

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
    return any(EXPORTERS[target].probed for target in targets) or (
        EMBEDDING in targets and not trained.adapters.layers
    )


def _compare_probe(
    job: ExportJob, written: Written, trained: TrainedRun, expected: ProbeOutput, report: VerifyReport
) -> None:
    machine, fresh = trained.machine, job.base
    machine.shrink(fresh)
    if machine.shards:
        shard(fresh, trained.processes, machine.device, machine.dtype)
    lora = next((one.paths[0] for target, one in written.items() if EXPORTERS[target].probed), None)
    with trained.family.placed():  # nowhere but in main memory: there may be no room for two
        fresh.place(machine.device, *probed(fresh))
        for path in written[EMBEDDING].paths if EMBEDDING in written else ():
            load_embedding(path, path.stem, fresh)
        caption = _caption(trained, tokens=EMBEDDING in written)
        prediction = ask_diffusers(lora, fresh, caption) if lora else run_probe(fresh, caption)
        compare_probe(prediction, expected, report, rounding=machine.rounding)


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
