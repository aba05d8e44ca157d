"""After the last step: the file, the proof that it is what was trained, and the pictures."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from lora_studio.errors import ExportMismatch
from lora_studio.export import EXPORTERS
from lora_studio.export.deltas import check_deltas
from lora_studio.export.embedding import check_embeddings, load_embedding, write_embeddings
from lora_studio.export.metadata import build_metadata, of_file
from lora_studio.export.probe import CAPTION, Answers, answers_of, ask, ask_diffusers, judge
from lora_studio.export.rules import check_rules
from lora_studio.export.sidecars import write_sidecars
from lora_studio.export.tag_table import LEFT_OUT, left_out_in_words
from lora_studio.export.verify import Report, check_against_base, check_file, open_lora
from lora_studio.export.write import write_lora
from lora_studio.families.base import ModelFamily
from lora_studio.run import Run
from lora_studio.training.base import base_of
from lora_studio.training.build import Session
from lora_studio.training.build_adapters import trains_layers
from lora_studio.training.events import Listener, Note, PreviewsDrawn
from lora_studio.training.finish_folder import (
    LOST,
    in_mixed_precision,
    lost_in_words,
    verify_base,
    write_base,
)
from lora_studio.training.finish_pictures import show_tuned
from lora_studio.training.plots import holdout_plot, loss_plot
from lora_studio.training.preview import render
from lora_studio.training.sharded import shard
from lora_studio.training.summary import Written, summarise, training_facts
from lora_studio.training.timestep_draws import count_draws, timesteps_plot
from lora_studio.training.watch import HOLDOUT


@dataclass(frozen=True)
class Finished:
    """A run that went to its end with a verified file."""

    folder: Path
    lora_file: Path | None  # none if tokens alone were trained; of full fine-tuning the base's folder
    embeddings: Mapping[str, Path]  # word -> its file
    report: Report
    summary: dict[str, Any]


def finish(
    session: Session, base_pictures: list[Image.Image], listener: Listener, *, seconds: dict[str, float]
) -> Finished:
    """Export, verify, preview, plot and summarise; of the mean of the weights, if the recipe wants one.

    Raises ExportMismatch, with the file set aside, if it is faulty.
    """
    processes = session.processes
    with session.loop.state.shown():  # of several processes all draw, and the main one writes
        expected = probe(session)
        written, cast_error = processes.from_main(lambda: export(session))
        if session.loop.sharded:  # then so is the base that the file is tried on
            with processes.folder_of_main(session.run.folder) as folder:
                report = verify_run(written.within(folder), session, expected)
        else:
            report = processes.from_main(lambda: verify_run(written, session, expected))
        report.checks["cast_error"] = cast_error
        processes.from_main(lambda: _accept(written, report, session.run))
        listener(Note(f"verified {', '.join(map(str, written.paths))}"))
        if note := left_out_in_words(report.checks):
            listener(Note(note))
        if (lost := report.checks.get("probe_lost_share", 0.0)) > LOST:
            listener(Note(lost_in_words(lost, session)))
        tuned = render(session.family, session.preview) if base_pictures else []
        if base_pictures:
            listener(PreviewsDrawn(*show_tuned(session, base_pictures, tuned), tuple(tuned)))
        if session.recipe.export.sidecars and trains_layers(session.recipe):
            listener(Note("export.sidecars is for LoRA files and embeddings, so a whole base gets none"))
        return processes.from_main(lambda: _wrap_up(session, written, report, seconds))


def export(session: Session) -> tuple[Written, float]:
    """What is written, and how far its dtype changed a weight."""
    run, recipe, family, adapters = session.run, session.recipe, session.family, session.adapters
    if trains_layers(recipe):
        folder, cast_error = write_base(session)
        return Written(folder, {}), cast_error
    path, facts, cast_error = None, training_facts(session), 0.0
    with run.writing():
        if adapters.layers:
            path = run.folder / f"{recipe.name}.safetensors"
            tensors = EXPORTERS["kohya"](family, adapters)
            said = of_file(facts, tensors)
            cast_error = write_lora(
                path,
                tensors,
                dtype=recipe.export.dtype,
                describe=lambda block: build_metadata(said, family.traits, block),
            )
        words = write_embeddings(run.folder, family, adapters, facts, dtype=recipe.export.dtype)
    return Written(path, words), cast_error


def _accept(written: Written, report: Report, run: Run) -> None:
    """Keep the report; raise ExportMismatch, with all files set aside, if one of them is faulty."""
    run.json("verify.json", report.to_json())
    if not report.whole:
        aside = ", ".join(map(str, map(_set_aside, written.paths)))
        verb = "is" if len(written.paths) == 1 else "are"
        raise ExportMismatch(f"{aside} {verb} not what was trained: {'; '.join(report.faults[:3])}.")


def _set_aside(path: Path) -> Path:
    """A file or folder under another name, where one of an earlier try may lie."""
    aside = path.with_name(path.name + ".unverified")
    if aside.is_dir():
        shutil.rmtree(aside)
    return path.rename(aside)


def _wrap_up(session: Session, written: Written, report: Report, seconds: dict[str, float]) -> Finished:
    run = session.run
    run.file("loss.png", loss_plot(run.metrics()))
    draws = count_draws(session.loop)
    run.json("timesteps.json", asdict(draws))
    run.file("timesteps.png", timesteps_plot(draws))
    if measured := run.lines(HOLDOUT):
        run.file("holdout.png", holdout_plot(measured))
    summary = summarise(session, written, seconds)
    run.json("summary.json", summary)
    if session.recipe.export.sidecars and not trains_layers(session.recipe):
        write_sidecars(run.folder, overwrite=True)
    return Finished(run.folder, written.lora, written.embeddings, report, summary)


def probe(session: Session) -> Answers:
    """What the live adapters answer, with and without them."""
    family, caption = session.family, _probe_caption(session)
    mixed = in_mixed_precision(session) if trains_layers(session.recipe) else nullcontext()
    with family.placed(*_probed(family)), mixed:
        live = ask(family, caption)
        with session.adapters.disabled():
            return answers_of(live, ask(family, caption))


def _probe_caption(session: Session) -> str:
    """The usual one and every learned token."""
    return " ".join([CAPTION, *dict.fromkeys(token.word for token in session.adapters.tokens)])


def _probed(family: ModelFamily) -> list[str]:
    """The parts that answer a probe."""
    return [name for name in family.parts if name != "vae"]


def verify_run(written: Written, session: Session, expected: Answers) -> Report:
    """What was written against the live adapters and, through diffusers, in a base loaded afresh."""
    if written.lora and trains_layers(session.recipe):
        return verify_base(written.lora, session, expected)
    family, machine, adapters = session.family, session.machine, session.adapters
    fresh, caption, report = base_of(session.recipe), _probe_caption(session), Report(written.paths[0].name)
    if written.lora:
        file = open_lora(written.lora)
        report = check_file(file)
        if LEFT_OUT in file.metadata:
            report.checks["tags_left_out"] = int(file.metadata[LEFT_OUT])
        check_against_base(file, fresh, report)
        check_rules(file, report)
        if report.whole:
            check_deltas(file, family, adapters, report)
    if written.embeddings:
        check_embeddings(written.embeddings, family, fresh, adapters, report)
    if report.whole:
        machine.shrink(fresh)
        if session.loop.sharded:
            shard(fresh, session.processes, machine.device, machine.dtype)
        with family.placed():  # nowhere but in main memory: there may be no room for two
            fresh.place(machine.device, *_probed(fresh))
            for word, path in written.embeddings.items():
                load_embedding(path, word, fresh)
            found = ask_diffusers(written.lora, fresh, caption) if written.lora else ask(fresh, caption)
            judge(found, expected, report, rounding=machine.rounding)
    return report
