"""A run's checkpoint in any of the forms that files have, each verified as the run's own file is."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from lora_studio.data.batches import entries
from lora_studio.errors import CheckpointError, RecipeError, RunFolderError, StudioError
from lora_studio.evaluate.validation import best_step
from lora_studio.export import EXPORTERS, target_named
from lora_studio.export.target import ExportJob, ExportResult, Target
from lora_studio.families.base import ModelFamily
from lora_studio.files import check_ending, say_unwritable, set_aside, write_atomically
from lora_studio.lora_file.write import DTYPES
from lora_studio.processes import ALONE
from lora_studio.recipe import Recipe
from lora_studio.recipe.run_recipe import RUN_RECIPE
from lora_studio.runs import VALIDATION, Run, step_of
from lora_studio.runs.reading import read_table
from lora_studio.training.events import Listener, Note, ignore_events
from lora_studio.training.finish.verified import (
    EMBEDDING,
    is_probed,
    job_of,
    probe,
    refuse_mismatch,
    verify_written,
)
from lora_studio.training.loop.state import State, load_state
from lora_studio.training.machine.offload import offload, offload_text
from lora_studio.training.prepare import TrainedRun, make_state
from lora_studio.training.prepare.checks import check_recipe
from lora_studio.training.prepare.data import batches_of, manifest_of
from lora_studio.training.prepare.resume import run_recipe
from lora_studio.verify import VerifyReport

Checkpoint = int | Literal["best", "newest"] | None
"""A step, or the best by what was measured; None: what the run's file is made of, else the newest."""
REPORT = "verify.json"  # of all targets in a folder, with what earlier exports said of theirs


@dataclass(frozen=True)
class ExportRequest:
    """What is to be written of a run."""

    targets: tuple[str, ...]
    checkpoint: Checkpoint = None
    dtype: str | None = None  # None: as the recipe says
    folder: Path | None = None  # None: exports/step_<number> in the run's own
    force: bool = False  # replace what is there


@dataclass(frozen=True)
class Exported:
    """One target's files, and what was checked in them."""

    target: str
    made: ExportResult
    report: VerifyReport

    def to_json(self) -> dict[str, Any]:
        files = [str(path) for path in self.made.paths]
        return {"target": self.target, "files": files, "notes": self.made.notes} | self.report.to_json()


def export_run(folder: Path, request: ExportRequest, *, on_event: Listener = ignore_events) -> list[Exported]:
    """Write a run's checkpoint to every target and verify it.

    Raises StudioError for whatever the user can mend, before anything is written where that can be known;
    ExportMismatch, with the files set aside, if one of them is not what was trained.
    """
    targets = {name: EXPORTERS[name] for name in dict.fromkeys(map(target_named, request.targets))}
    if request.folder is not None:
        check_ending(request.folder, "")
    run = Run(folder)
    recipe = _recipe_of(run, request)
    place, step = checkpoint_of(run, request.checkpoint)
    on_event(Note(f"reading the base and step {step}"))
    trained, state = revive(run, recipe)
    load_state(place, state)
    out = request.folder or run.folder / "exports" / place.name
    job = job_of(trained, out)
    job = replace(job, facts=replace(job.facts, steps=step))
    for target in targets.values():
        target.refuse(job)
    _refuse_overwriting(job, targets, force=request.force)
    found = []
    with state.shown():
        for name, target in targets.items():
            on_event(Note(f"writing {name}"))
            try:
                made = target.write(job)
            except OSError as error:
                raise RunFolderError(f"{out} cannot be written to ({error.strerror or error})") from None
            written = {name: made}
            expected = probe(trained, tokens=name == EMBEDDING) if is_probed(trained, written) else None
            # a job of its own, as its base is changed by what is tried on it
            found.append(Exported(name, made, verify_written(trained, replace(job), written, expected)))
    _keep_reports(out, found, on_event)
    for one in found:
        refuse_mismatch({one.target: one.made}, one.report)
    return found


def _recipe_of(run: Run, request: ExportRequest) -> Recipe:
    recipe = finished_recipe(run)
    if request.dtype is not None and request.dtype not in DTYPES:
        raise RecipeError(f"--dtype is {request.dtype!r}; it must be one of {', '.join(DTYPES)}.")
    export = recipe.export.model_copy(update={"dtype": request.dtype} if request.dtype else {})
    return recipe.model_copy(update={"export": export})


def finished_recipe(run: Run) -> Recipe:
    """Without what it began with, which is in its checkpoints and need not be there any more."""
    if not (run.folder / RUN_RECIPE).is_file():
        raise CheckpointError(f"there is no run in {run.folder}; give a run's folder, such as runs/my_style.")
    recipe = run_recipe(run.folder)
    return recipe.model_copy(update={"adapter": recipe.adapter.model_copy(update={"init_from": None})})


def checkpoint_of(run: Run, step: Checkpoint) -> tuple[Path, int]:
    """Its folder and step. Raises CheckpointError for one that is not there."""
    steps = {step_of(path): path for path in run.checkpoints()}
    if not steps:
        raise CheckpointError(f"there is no checkpoint in {run.folder}; there is nothing to export yet.")
    if step == "best" and (step := run.chosen_step()) is None:
        step = best_step(run.measurements())
        if step is None:
            raise CheckpointError(
                f"{run.folder} has measured no validation images, so its best checkpoint is not known; "
                f"name one of {', '.join(map(str, steps))}."
            )
        if not run.is_as_measured(max(steps)):
            raise CheckpointError(
                f"{run.folder / VALIDATION} is not as the run wrote it, so its best checkpoint is not known; "
                f"name one of {', '.join(map(str, steps))}."
            )
    if step is None:
        step = run.file_step() or "newest"
    step = max(steps) if step == "newest" else step
    if step not in steps:
        known = f"there are those of {', '.join(map(str, steps))}"
        raise CheckpointError(f"there is no checkpoint of step {step} in {run.folder}; {known}.")
    return steps[step], step


def revive(
    run: Run, recipe: Recipe, *, on_base: Callable[[ModelFamily], None] = lambda family: None
) -> tuple[TrainedRun, State]:
    """The run's base with its adapters, at their start, to be loaded with a checkpoint.

    `on_base` gets the base before there are adapters in it.
    """
    checked, manifest = check_recipe(recipe, run=run, trains=False), manifest_of(run)
    machine, family, plan = checked.machine, checked.family, checked.adapters
    offload_text(family, machine)
    on_base(family)
    exact = plan.snapshot_float32(family)
    machine.shrink(family)
    adapters = plan.inject(family, exact)
    offloaded = offload(family, machine, adapters.joined)
    family.place(machine.device, family.denoiser)
    trained = TrainedRun(
        recipe=recipe,
        run=run,
        machine=machine,
        family=family,
        base_fingerprint=checked.base_fingerprint,
        manifest=manifest,
        adapters=adapters,
        processes=ALONE,
        batches=batches_of(recipe, entries(manifest.used)),
        inputs=checked.inputs,
        offloaded=offloaded,
    )
    return trained, make_state(recipe, machine, plan, adapters)


def _refuse_overwriting(job: ExportJob, targets: dict[str, Target], *, force: bool) -> None:
    there = [str(path) for target in targets.values() for path in target.paths(job) if path.exists()]
    if there and not force:
        names = f"{', '.join(there)} {'is' if len(there) == 1 else 'are'}"
        raise StudioError(f"{names} there already; write elsewhere with --out, or replace with --force.")


def _keep_reports(folder: Path, found: Sequence[Exported], listener: Listener) -> None:
    """Beside those of earlier exports; what lies there and is none of ours gets another name."""
    path, reports = folder / REPORT, dict[str, Any]()
    try:
        if os.path.lexists(path):
            reports = read_table(path)
    except CheckpointError as error:
        with say_unwritable(path):
            aside = set_aside(path, ".damaged")
        listener(Note(f"warning: {path} says nothing of earlier exports ({error}) It is now {aside.name}"))
    reports |= {one.target: one.report.to_json() for one in found}
    with say_unwritable(path):
        write_atomically(path, (json.dumps(reports, indent=2, ensure_ascii=False) + "\n").encode())
