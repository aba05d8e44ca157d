"""A whole run: plan, train, export, verify, show. `train(recipe, folder)` is the library's front door."""

from __future__ import annotations

import threading
import time
from pathlib import Path

from lora_studio.adapters import ADAPTERS
from lora_studio.data.batches import entries
from lora_studio.data.cache import remove_left_overs
from lora_studio.errors import (
    CheckpointError,
    Interrupted,
    ProcessLost,
    RunFolderError,
    StudioError,
    TrainingDiverged,
    reason_of,
)
from lora_studio.files import cache_folder, check_ending, digest
from lora_studio.metadata.provenance import MANIFEST
from lora_studio.processes import Processes, join_processes, leave_processes
from lora_studio.recipe import Recipe
from lora_studio.recipe.adapter import NO_ADAPTER
from lora_studio.recipe.load import load_recipe
from lora_studio.recipe.run_recipe import FOLDER, RUN_RECIPE, load_run_recipe, with_seal
from lora_studio.runs import CHOICE, METRICS, VALIDATION, ReadOnlyRun, Run, resuming, run_folder, step_of
from lora_studio.runs.reading import INPUTS, sealed
from lora_studio.text import plural
from lora_studio.training.evaluating.asked import RunMeasures, measures_of
from lora_studio.training.evaluating.choice_watch import ChoiceWatch
from lora_studio.training.evaluating.taken import take
from lora_studio.training.events import Listener, Note, ignore_events, may_stop, outliving_terminal
from lora_studio.training.finish import Finished, finish
from lora_studio.training.finish.export import checkpoint_of
from lora_studio.training.loop.state import load_state
from lora_studio.training.loop.watch import PreviewWatch, ValidationWatch, Watch
from lora_studio.training.machine import is_out_of_memory, out_of_memory
from lora_studio.training.planning.for_card import fewest_blocks_in_main_memory
from lora_studio.training.prepare import Session, prepare
from lora_studio.training.prepare.data import in_steps, manifest_of
from lora_studio.training.prepare.resume import RECIPE, SCHEDULE_END, has_zero_last, learned_hash
from lora_studio.training.report import describe, time_everything
from lora_studio.training.tracking import Tracking


def train(
    recipe: Recipe | Path | str,
    folder: Path | None = None,
    *,
    resume: bool = False,
    on_event: Listener = ignore_events,
) -> Finished:
    """Train a recipe or the one in a TOML file, and export, verify and show the result.

    With `resume` the recipe may be the run's folder, whose own it is then. `folder`: by default runs/<name of
    the recipe>. `on_event`: of several processes, the main one's hears; it may raise StopTraining.
    No other process can train in the folder meanwhile; looking at it is always possible.
    Raises a StudioError for whatever the user can mend; ExportMismatch if the file is not what was trained;
    Interrupted, behind a checkpoint, if the run was asked to stop.
    """
    if resume and not isinstance(recipe, Recipe) and Path(recipe).is_dir():
        folder = folder or Path(recipe)
        recipe = load_run_recipe(folder)
    loaded = recipe if isinstance(recipe, Recipe) else load_recipe(Path(recipe))
    place = folder or run_folder(loaded.name)
    if not place.is_dir():
        check_ending(place, "")
    processes = join_processes(loaded.machine.device)
    run = Run(place) if processes.is_main else ReadOnlyRun(place)
    asked = threading.Event()
    heard = may_stop(outliving_terminal(on_event), asked) if processes.is_main else ignore_events
    tracking = Tracking(loaded, run, heard)
    try:
        if left := processes.from_main(run.lock):
            tracking(Note(f"{left}, ended without taking its lock off {place}; it is taken over"))
        begun = processes.from_main(lambda: _check_folder(run, loaded, resume=resume))
        run.remove_left_overs()
        remove_left_overs(cache_folder())
        result = _train(begun, run, processes, resume=resume, on_event=tracking, asked=asked)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise out_of_memory(f"({reason_of(error)})") from None
    except (TrainingDiverged, RunFolderError, ProcessLost) as error:
        told = error.told_by_main or isinstance(error, TrainingDiverged)  # all processes diverge alike
        error = type(error)(f"{error}; {_last_good(run, error)}.")
        error.told_by_main = told
        raise error from None
    finally:
        tracking.finish()
        run.close()
        run.unlock()
    leave_processes(processes)
    if isinstance(result, Interrupted):
        raise result
    return result


def _train(
    recipe: Recipe,
    run: Run,
    processes: Processes,
    *,
    resume: bool,
    on_event: Tracking,
    asked: threading.Event,
) -> Finished | Interrupted:
    began, step = time.monotonic(), 0
    session = prepare(
        recipe, run, on_event, processes, resumes=resume, choose_offload=fewest_blocks_in_main_memory
    )
    if resume:
        step = _load_checkpoint(session)
        _check_exported(recipe, run, step)
        run.adopt_first_validation()
        session.loop.zero_last = processes.from_main(lambda: has_zero_last(run))
    _write_down(session)
    _forget_after(step if resume else -1, run, on_event)
    if processes.is_main:
        on_event.start(step)
    on_event(describe(session, first_step=step + 1, timing=time_everything(session, first_step=step + 1)))
    measures = measures_of(session, on_event)
    watch = _watch(session, measures, on_event)
    watch.previews.begin(step)
    training_began = time.monotonic()
    if watch.validation is not None:
        watch.validation.begin(step)
    if watch.choice is not None:
        watch.choice.begin(step)
    session.loop.stop_asked = asked
    session.loop.after_step, session.loop.looks_after = watch.after_step, watch.due
    session.loop.after_save, session.loop.is_enough = watch.previews.after_save, watch.is_enough
    if not session.loop.run(step + 1):
        return Interrupted(run.folder, session.loop.state.counters.step)
    seconds = {"training": time.monotonic() - training_began, "before": training_began - began}
    taken = take(session, measures, on_event)
    return finish(session, watch.previews, taken, measures, on_event, seconds=seconds)


def _check_exported(recipe: Recipe, run: Run, step: int) -> None:
    """Raises CheckpointError if a resumed run is past the step that its file is to be made of."""
    wanted = recipe.export.checkpoint
    if isinstance(wanted, int) and wanted <= step:
        checkpoint_of(run, wanted)


def _forget_after(step: int, run: Run, listener: Listener) -> None:
    """The lines of steps done again, or of a start without a save (-1). What is lost of others is said."""
    for lines in (METRICS, VALIDATION, CHOICE):
        if num_damaged := run.forget_after(step, lines):
            listener(Note(f"{plural(num_damaged, 'line')} of {lines} cannot be used and were taken out"))
    if step > 0 and not run.is_as_measured(step):
        why = f"{VALIDATION} is not as the run wrote it"
        listener(Note(f"warning: {why} up to step {step}, so another checkpoint may seem the best"))
    if (lost := step - len({row["step"] for row in run.metrics()})) > 0:
        listener(Note(f"{METRICS} lacks {plural(lost, 'step')} up to {step}, and so will loss.png"))


def _write_down(session: Session) -> None:
    """What a resume goes by. The manifest has been written."""
    run = session.run
    run.text(RUN_RECIPE, with_seal(to_toml(session.recipe)))
    if session.processes.is_main:
        facts = {**session.inputs, RECIPE: learned_hash(session.recipe)}
        facts |= {MANIFEST: digest(run.folder / MANIFEST), FOLDER: str(run.folder.resolve())}
        if not session.loop.zero_last:
            facts[SCHEDULE_END] = "behind the last step"
        run.json(INPUTS, sealed(facts))


def _watch(session: Session, measures: RunMeasures | None, listener: Listener) -> Watch:
    recipe, run, state, processes = session.recipe, session.run, session.loop.state, session.processes
    steps, side, validation = recipe.training.steps, recipe.data.resolution, session.validation
    every, exported = recipe.validation.every, recipe.export.checkpoint
    choice = None
    if measures is not None and recipe.evaluate.every:
        choice = ChoiceWatch(recipe.evaluate, measures, run, steps, listener, processes)
    return Watch(
        ValidationWatch(validation, state, run, every, steps, listener, processes) if validation else None,
        PreviewWatch(session.family, state, run, recipe.samples, side, steps, listener, processes),
        choice,
        exported if isinstance(exported, int) else None,
    )


def to_toml(recipe: Recipe) -> str:
    """The recipe as run, with every default of what its kind of adapter has a use for written out."""
    import tomli_w

    kind = recipe.adapter.kind
    unused = () if kind == NO_ADAPTER else ADAPTERS[kind].unused  # refused if they are given
    left_out: dict[str, set[str] | bool] = {"adapter": set(unused), "sweep": True}
    return tomli_w.dumps(recipe.model_dump(mode="json", exclude_none=True, exclude=left_out))


def is_finished(folder: Path) -> bool:
    return (folder / "summary.json").is_file()


def _check_folder(run: Run, recipe: Recipe, *, resume: bool) -> Recipe:
    """Refuse to mix two runs, and to resume nothing; a resumed run has steps, by the images that it had."""
    if resume:
        run.newest_checkpoint()
        return in_steps(recipe, entries(manifest_of(run).used))
    if run.checkpoints() or is_finished(run.folder):
        advice = f"continue it with: {resuming(run.folder)}, or choose another folder with --out"
        raise StudioError(f"{run.folder} already holds a run; {advice}.")
    return recipe


def _load_checkpoint(session: Session) -> int:
    """The step that the newest checkpoint was taken at which is whole; damaged ones are put aside."""
    run, processes, faults = session.run, session.processes, dict[Path, str]()
    for checkpoint in reversed(processes.from_main(run.checkpoints)):
        try:
            step = _step_in(checkpoint, session)
            break
        except CheckpointError as error:
            faults[checkpoint] = str(error)
    else:
        raise CheckpointError(
            "\n".join(
                [*faults.values(), f"no older one is whole in {run.folder}; start another run with --out."]
            )
        )
    if step > (last := session.recipe.training.steps):
        raise CheckpointError(f"{checkpoint} is at step {step}, but the recipe has only {last}.")
    for damaged, fault in faults.items():
        aside = processes.from_main(lambda damaged=damaged: run.set_aside(damaged))  # type: ignore[misc]
        session.loop.listener(Note(f"warning: {fault} It is now {aside.name}; going on from step {step}"))
    return step


def _step_in(checkpoint: Path, session: Session) -> int:
    """Put back by every process."""
    with session.processes.folder_of_main(checkpoint) as folder:
        step = session.processes.each(lambda: load_state(folder, session.loop.state))[0]
    if step != step_of(checkpoint):
        raise CheckpointError(f"the checkpoint {checkpoint} is of step {step}, and was copied or renamed.")
    return step


def _last_good(run: Run, error: StudioError) -> str:
    if run.lost:
        return f"if it was moved, go on with its new place: {resuming(Path('FOLDER'))}"
    found = run.checkpoints()
    where = f"the last good checkpoint is {found[-1]}" if found else "there is no checkpoint yet"
    if not run.folder.exists():  # another process on a machine of its own
        where = f"the checkpoints are in {run.folder} on the main process's machine"
    if isinstance(error, ProcessLost):
        return f"{where}; what it said before tells why, and --resume goes on with any number of processes"
    if isinstance(error, RunFolderError):
        again = f"go on with: {resuming(run.folder)}" if found else "start again"
        return f"{where}; make room there, or make it writable, and {again}"
    return f"{where}; lower training.learning_rate, or look at the images with the doctor"


__all__ = ["Finished", "is_finished", "train"]
