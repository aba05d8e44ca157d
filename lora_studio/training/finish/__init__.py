"""After the last step: the file, the proof that it is what was trained, and the images."""

from __future__ import annotations

import math
import platform
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from lora_studio.evaluate.validation import validation_summary
from lora_studio.families.freed import return_freed_memory
from lora_studio.files import digest_of, size_of
from lora_studio.metadata.sidecars import write_sidecars
from lora_studio.metadata.write import left_out_in_words
from lora_studio.plots import (
    TICKS,
    headless_pyplot,
    legend_above,
    loss_plot,
    margins,
    png_bytes,
    validation_plot,
)
from lora_studio.training.evaluating.asked import RunMeasures, evaluate_result
from lora_studio.training.evaluating.taken import Taken
from lora_studio.training.events import Listener, Note
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
from lora_studio.training.loop import Loop
from lora_studio.training.loop.watch import PreviewWatch
from lora_studio.training.prepare import Session
from lora_studio.verify import VerifyReport
from lora_studio.version import __version__

BINS = 50  # of timesteps.png
LOST = 0.1  # of what was learned, from which on it is said


@dataclass(frozen=True)
class Finished:
    """A run that went to its end with a verified file."""

    folder: Path
    lora_file: Path | None  # none if tokens alone were trained; of full fine-tuning the base's folder
    embeddings: Mapping[str, Path]  # word -> its file
    report: VerifyReport
    summary: dict[str, Any]


def finish(
    session: Session,
    previews: PreviewWatch,
    taken: Taken,
    measures: RunMeasures | None,
    listener: Listener,
    *,
    seconds: dict[str, float],
) -> Finished:
    """Export, verify, preview, plot and summarise; of the mean of the weights, if the recipe wants one.

    `taken`: the checkpoint that the adapters hold. `measures`: with which the result is evaluated, if the
    recipe wants that.
    Raises ExportMismatch, with the files set aside, if they are not what was trained.
    """
    processes = session.processes
    with session.loop.state.shown():  # of several processes all draw, and the main one writes
        session.loop.state.end()  # not before: some optimizers keep what is to be shown
        return_freed_memory()
        expected = probe(session)
        return_freed_memory()
        job = job_of(session, session.run.folder)
        job = replace(job, facts=taken.told(job.facts, session.recipe))
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
        evaluate_result(measures, taken.step, listener)
        return processes.from_main(lambda: _wrap_up(session, taken, written, report, seconds))


def _within(folder: Path, written: Written) -> Written:
    return {
        target: replace(result, paths=tuple(folder / path.name for path in result.paths))
        for target, result in written.items()
    }


def _tell(session: Session, written: Written, report: VerifyReport, listener: Listener) -> None:
    listener(Note(f"verified {', '.join(map(str, paths_of(written)))}"))
    if note := left_out_in_words(report.checks):
        listener(Note(note))
    if (lost := report.checks.get("probe_lost_share", 0.0)) > LOST:
        dtype = session.recipe.export.dtype
        lossy = f"rounding to {dtype} moves the probe's prediction by {lost:.0%} of what training moved it"
        listener(Note(f'{lossy}; export.dtype = "float32" keeps all digits'))
    if session.recipe.export.sidecars and session.adapters.trains_layers:
        listener(Note("export.sidecars is for LoRA files and embeddings, so a whole base gets none"))


def _wrap_up(
    session: Session, taken: Taken, written: Written, report: VerifyReport, seconds: dict[str, float]
) -> Finished:
    run, draws = session.run, count_draws(session.loop)
    run.file("loss.png", loss_plot(run.metrics()))
    run.json("timesteps.json", asdict(draws))
    run.file("timesteps.png", timesteps_plot(draws))
    if measured := run.measurements():
        run.file("validation.png", validation_plot(measured))
    words = {path.stem: path for path in written[EMBEDDING].paths} if EMBEDDING in written else {}
    summary = summarise(session, taken, paths_of(written)[0], words, seconds)
    run.json("summary.json", summary)
    if session.recipe.export.sidecars and not session.adapters.trains_layers:
        write_sidecars(run.folder, overwrite=True)
    main = next((one.paths[0] for target, one in written.items() if target != EMBEDDING), None)
    return Finished(run.folder, main, words, report, summary)


def summarise(
    session: Session, taken: Taken, path: Path, embeddings: Mapping[str, Path], seconds: dict[str, float]
) -> dict[str, Any]:
    """What happened, with the clock and the machine, which stay out of the files; `path`: the main file."""
    usable = None if taken.strengths is None else taken.strengths.to_json()["usable"]
    strength = None if taken.strengths is None else taken.strengths.recommended
    rows = session.run.metrics()
    losses = [row["loss"] for row in rows if row["loss"] is not None] or [math.nan]
    tenth = max(1, len(losses) // 10)
    words = {word: {"file": one.name, "sha256": digest_of(one)} for word, one in embeddings.items()}
    versions = {"lora_studio": __version__, "python": platform.python_version(), "torch": torch.__version__}
    return {
        "file": path.name,
        "sha256": digest_of(path),
        "file_bytes": size_of(path),
        "embeddings": words,
        "steps": taken.ended.step,
        "checkpoint": {"step": taken.step, "why": taken.why or "the last one"},
        "strength": {"recommended": strength, "usable": usable},
        "passes": taken.ended.passes,  # more than one if memory ran out
        "steps_skipped": taken.ended.skipped,
        "validation": validation_summary(session.run.measurements()),
        "loss_first_tenth": sum(losses[:tenth]) / tenth,
        "loss_last_tenth": sum(losses[-tenth:]) / tenth,
        "images_used": len(session.manifest.used),
        "images_excluded": len(session.manifest.excluded),
        "views_per_image": round(session.batches.average_views(session.recipe.training.steps), 1),
        "trainable_parameters": session.adapters.num_parameters,
        "seconds": {name: round(value, 1) for name, value in seconds.items()},
        "finished_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": str(session.machine.device),
        "precision": str(session.machine.dtype).removeprefix("torch."),
        "quantized": session.recipe.base.quantize,
        "versions": versions,
    }


@dataclass(frozen=True)
class Draws:
    """How often each of BINS equal parts of the way from clean to noise was drawn."""

    drawn: tuple[int, ...]
    wanted: tuple[float, ...]  # in the long run; the same sum


def count_draws(loop: Loop) -> Draws:
    """All of the run's draws, made once more: they depend on nothing but seed, step and place."""
    counts, sizes = torch.zeros(BINS), Counter[tuple[int, ...]]()
    for step in range(1, loop.config.steps + 1):
        for number, shape in enumerate(loop.feed.shapes_of(step)):
            shares = loop.objective.shares(shape, *loop.draw_of(step, number))
            counts += torch.histc(shares.float(), BINS, 0, 1)
            sizes[shape[1:]] += shape[0]
    middles = (torch.arange(BINS * 20) + 0.5) / (BINS * 20)
    wanted = torch.zeros(BINS)
    for size, images in sizes.items():  # some bases draw more noise for larger images
        density = loop.objective.timesteps_of((images, *size)).density(middles).view(BINS, 20).mean(dim=1)
        wanted += (density / density.sum() * images).float()
    return Draws(tuple(int(count) for count in counts), tuple(wanted.tolist()))


def timesteps_plot(draws: Draws) -> bytes:
    """A PNG: bars for what was drawn, a line for what is wanted."""
    pyplot = headless_pyplot()
    edges = [number / BINS for number in range(BINS + 1)]
    figure, axes = pyplot.subplots(figsize=(8, 4), gridspec_kw=margins(4))
    axes.stairs(draws.drawn, edges, fill=True, color="#a9b9d2", label="drawn")
    axes.stairs(draws.wanted, edges, color="#1f4e9c", linewidth=1.8, baseline=None, label="wanted")
    axes.set_xlabel("timestep, from clean (0) to noise (1)")
    axes.set_ylabel("images")
    axes.set_xlim(0, 1)
    axes.locator_params(nbins=TICKS)
    axes.yaxis.get_major_locator().set_params(integer=True)
    legend_above(axes)
    return png_bytes(figure)
