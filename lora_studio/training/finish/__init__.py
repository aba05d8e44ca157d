"""After the last step: the file, the proof that it is what was trained, and the images."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from lora_studio.errors import ExportMismatch
from lora_studio.evaluate.previews import render
from lora_studio.export import EXPORTERS
from lora_studio.export.embedding import check_embeddings, load_embedding
from lora_studio.export.target import ExportJob
from lora_studio.lora_file.lora_file import open_lora
from lora_studio.metadata.sidecars import write_sidecars
from lora_studio.metadata.tag_table import LEFT_OUT, left_out_in_words
from lora_studio.plots import loss_plot, validation_plot
from lora_studio.runs.folder import VALIDATION, Run
from lora_studio.training.context import TrainedRun
from lora_studio.training.events import Listener, Note, PreviewsDrawn
from lora_studio.training.finish.full_base import (
    LOST,
    in_mixed_precision,
    lost_in_words,
    verify_base,
    write_base,
)
from lora_studio.training.finish.previews import show_tuned
from lora_studio.training.finish.summary import Written, summarise, training_facts
from lora_studio.training.loop.timestep_draws import count_draws, timesteps_plot
from lora_studio.training.machine.sharded import is_sharded, shard
from lora_studio.training.prepare import Session
from lora_studio.training.prepare.adapters import trains_layers
from lora_studio.training.prepare.base_model import base_of
from lora_studio.verify.deltas import check_deltas
from lora_studio.verify.file import VerifyReport, check_against_base, check_file, check_rules
from lora_studio.verify.probe import (
    CAPTION,
    ProbeOutput,
    ask_diffusers,
    compare_probe,
    probe_output,
    probed,
    run_probe,
)


@dataclass(frozen=True)
class Finished:
    """A run that went to its end with a verified file."""

    folder: Path
    lora_file: Path | None  # none if tokens alone were trained; of full fine-tuning the base's folder
    embeddings: Mapping[str, Path]  # word -> its file
    report: VerifyReport
    summary: dict[str, Any]


def finish(
    session: Session, base_images: list[Image.Image], listener: Listener, *, seconds: dict[str, float]
) -> Finished:
    """Export, verify, preview, plot and summarise; of the mean of the weights, if the recipe wants one.

    Raises ExportMismatch, with the file set aside, if it is faulty.
    """
    processes = session.processes
    with session.loop.state.shown():  # of several processes all draw, and the main one writes
        expected = probe(session)
        written, checks = processes.from_main(lambda: write_files(session))
        if is_sharded(session.recipe, processes):  # then so is the base that the file is tried on
            with processes.folder_of_main(session.run.folder) as folder:
                report = verify_run(written.within(folder), session, expected)
        else:
            report = processes.from_main(lambda: verify_run(written, session, expected))
        report.checks |= checks
        processes.from_main(lambda: _accept(written, report, session.run))
        listener(Note(f"verified {', '.join(map(str, written.paths))}"))
        if note := left_out_in_words(report.checks):
            listener(Note(note))
        if (lost := report.checks.get("probe_lost_share", 0.0)) > LOST:
            listener(Note(lost_in_words(lost, session)))
        tuned = render(session.family, session.preview) if base_images else []
        if base_images:
            listener(PreviewsDrawn(*show_tuned(session, base_images, tuned), tuple(tuned)))
        if session.recipe.export.sidecars and trains_layers(session.recipe):
            listener(Note("export.sidecars is for LoRA files and embeddings, so a whole base gets none"))
        return processes.from_main(lambda: _wrap_up(session, written, report, seconds))


def job_of(trained: TrainedRun, *, folder: Path) -> ExportJob:
    """What was trained, to be written into a folder."""
    return ExportJob(
        trained.family,
        trained.adapters,
        training_facts(trained),
        folder,
        trained.recipe.export.dtype,
        lambda: base_of(trained.recipe),
    )


def write_files(session: Session) -> tuple[Written, dict[str, float]]:
    """What is written, and what is to be said of how."""
    if trains_layers(session.recipe):
        folder, cast_error = write_base(session)
        return Written(folder, {}), {"cast_error": cast_error}
    job, made = job_of(session, folder=session.run.folder), []
    with session.run.writing():
        if session.adapters.layers:
            made.append(EXPORTERS["kohya"].write(job))
        if session.adapters.tokens:
            made.append(EXPORTERS["embedding"].write(job))
    lora = made[0].paths[0] if session.adapters.layers else None
    words = {path.stem: path for one in made for path in one.paths if path != lora}
    checks = {"cast_error": max(one.cast_error for one in made)}
    if cut := [one.left_out for one in made if one.left_out is not None]:
        checks["plain_left_out"] = max(cut)
    return Written(lora, words), checks


def _accept(written: Written, report: VerifyReport, run: Run) -> None:
    """Keep the report; raise ExportMismatch, with all files set aside, if one of them is faulty."""
    run.json("verify.json", report.to_json())
    if not report.ok:
        aside = ", ".join(map(str, map(set_aside, written.paths)))
        verb = "is" if len(written.paths) == 1 else "are"
        raise ExportMismatch(f"{aside} {verb} not what was trained: {'; '.join(report.faults[:3])}.")


def set_aside(path: Path) -> Path:
    """Move a file or folder under another name, where one of an earlier try may lie."""
    aside = path.with_name(path.name + ".unverified")
    if aside.is_dir():
        shutil.rmtree(aside)
    return path.rename(aside)


def _wrap_up(session: Session, written: Written, report: VerifyReport, seconds: dict[str, float]) -> Finished:
    run = session.run
    run.file("loss.png", loss_plot(run.metrics()))
    draws = count_draws(session.loop)
    run.json("timesteps.json", asdict(draws))
    run.file("timesteps.png", timesteps_plot(draws))
    if measured := run.lines(VALIDATION):
        run.file("validation.png", validation_plot(measured))
    summary = summarise(session, written, seconds)
    run.json("summary.json", summary)
    if session.recipe.export.sidecars and not trains_layers(session.recipe):
        write_sidecars(run.folder, overwrite=True)
    return Finished(run.folder, written.lora, written.embeddings, report, summary)


def probe(trained: TrainedRun, caption: str | None = None) -> ProbeOutput:
    """What the live adapters answer, with and without them; to a caption that has all learned tokens."""
    family, caption = trained.family, caption or _probe_caption(trained)
    mixed = in_mixed_precision(trained) if trains_layers(trained.recipe) else nullcontext()
    with family.placed(*probed(family)), mixed:
        live = run_probe(family, caption)
        with trained.adapters.disabled():
            return probe_output(live, run_probe(family, caption))


def _probe_caption(trained: TrainedRun) -> str:
    """The usual one and every learned token."""
    return " ".join([CAPTION, *dict.fromkeys(token.word for token in trained.adapters.tokens)])


def verify_run(written: Written, trained: TrainedRun, expected: ProbeOutput) -> VerifyReport:
    """What was written against the live adapters and, through diffusers, in a base loaded afresh."""
    if written.lora and trains_layers(trained.recipe):
        return verify_base(written.lora, trained, expected)
    family, machine, adapters = trained.family, trained.machine, trained.adapters
    fresh, caption, report = (
        base_of(trained.recipe),
        _probe_caption(trained),
        VerifyReport(written.paths[0].name),
    )
    if written.lora:
        file = open_lora(written.lora)
        report = check_file(file)
        if LEFT_OUT in file.metadata:
            report.checks["tags_left_out"] = int(file.metadata[LEFT_OUT])
        check_against_base(file, fresh, report)
        check_rules(file, report)
        if report.ok:
            check_deltas(file, family, adapters, report)
    if written.embeddings:
        check_embeddings(written.embeddings, family, fresh, adapters, report)
    if report.ok:
        machine.shrink(fresh)
        if is_sharded(trained.recipe, trained.processes):
            shard(fresh, trained.processes, machine.device, machine.dtype)
        with family.placed():  # nowhere but in main memory: there may be no room for two
            fresh.place(machine.device, *probed(fresh))
            for word, path in written.embeddings.items():
                load_embedding(path, word, fresh)
            found = ask_diffusers(written.lora, fresh, caption) if written.lora else run_probe(fresh, caption)
            compare_probe(found, expected, report, rounding=machine.rounding)
    return report
