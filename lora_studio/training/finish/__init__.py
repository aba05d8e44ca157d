"""After the last step: the file, the proof that it is what was trained, and the images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from lora_studio.metadata.sidecars import write_sidecars
from lora_studio.metadata.write import left_out_in_words
from lora_studio.plots import loss_plot, validation_plot
from lora_studio.runs import VALIDATION
from lora_studio.training.events import Listener, Note
from lora_studio.training.finish.full_base import LOST, lost_in_words
from lora_studio.training.finish.summary import summarise
from lora_studio.training.finish.timestep_draws import count_draws, timesteps_plot
from lora_studio.training.finish.verified import (
    EMBEDDING,
    Written,
    job_of,
    paths_of,
    probe,
    refuse_mismatch,
    verify_written,
    write_own,
)
from lora_studio.training.loop.watch import PreviewWatch
from lora_studio.training.prepare import Session
from lora_studio.verify.file import VerifyReport


@dataclass(frozen=True)
class Finished:
    """A run that went to its end with a verified file."""

    folder: Path
    lora_file: Path | None  # none if tokens alone were trained; of full fine-tuning the base's folder
    embeddings: Mapping[str, Path]  # word -> its file
    report: VerifyReport
    summary: dict[str, Any]


def finish(
    session: Session, previews: PreviewWatch, listener: Listener, *, seconds: dict[str, float]
) -> Finished:
    """Export, verify, preview, plot and summarise; of the mean of the weights, if the recipe wants one.

    Raises ExportMismatch, with the files set aside, if they are not what was trained.
    """
    processes = session.processes
    with session.loop.state.shown():  # of several processes all draw, and the main one writes
        expected = probe(session)
        job = job_of(session, session.run.folder)
        written = processes.from_main(lambda: write_own(session, job))
        if session.machine.shards:  # then so is the base that the file is tried on
            with processes.folder_of_main(session.run.folder) as folder:
                report = verify_written(session, job, _within(folder, written), expected)
        else:
            report = processes.from_main(lambda: verify_written(session, job, written, expected))
        session.run.json("verify.json", report.to_json())
        processes.from_main(lambda: refuse_mismatch(written, report))
        _tell(session, written, report, listener)
        previews.finish()
        return processes.from_main(lambda: _wrap_up(session, written, report, seconds))


def _within(folder: Path, written: Written) -> Written:
    """The same names in another folder."""
    return {
        target: replace(result, paths=tuple(folder / path.name for path in result.paths))
        for target, result in written.items()
    }


def _tell(session: Session, written: Written, report: VerifyReport, listener: Listener) -> None:
    listener(Note(f"verified {', '.join(map(str, paths_of(written)))}"))
    if note := left_out_in_words(report.checks):
        listener(Note(note))
    if (lost := report.checks.get("probe_lost_share", 0.0)) > LOST:
        listener(Note(lost_in_words(lost, session.recipe.export.dtype)))
    if session.recipe.export.sidecars and session.adapters.trains_layers:
        listener(Note("export.sidecars is for LoRA files and embeddings, so a whole base gets none"))


def _wrap_up(session: Session, written: Written, report: VerifyReport, seconds: dict[str, float]) -> Finished:
    run = session.run
    run.file("loss.png", loss_plot(run.metrics()))
    draws = count_draws(session.loop)
    run.json("timesteps.json", asdict(draws))
    run.file("timesteps.png", timesteps_plot(draws))
    if measured := run.lines(VALIDATION):
        run.file("validation.png", validation_plot(measured))
    words = {path.stem: path for path in written[EMBEDDING].paths} if EMBEDDING in written else {}
    summary = summarise(session, paths_of(written)[0], words, seconds)
    run.json("summary.json", summary)
    if session.recipe.export.sidecars and not session.adapters.trains_layers:
        write_sidecars(run.folder, overwrite=True)
    main = next((one.paths[0] for target, one in written.items() if target != EMBEDDING), None)
    return Finished(run.folder, main, words, report, summary)
