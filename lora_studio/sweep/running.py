"""Doing a sweep's trials, and saying how long that takes: before by a trial step, then by what was done."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_studio.errors import StudioError
from lora_studio.jobs import Job
from lora_studio.jobs.cluster import RayWorker
from lora_studio.jobs.worker import Worker, command_of
from lora_studio.sweep import SweepPlan
from lora_studio.sweep.folder import RESULT, Placed, SweepFolder, as_toml
from lora_studio.sweep.halving import behind
from lora_studio.sweep.report import write_result
from lora_studio.sweep.result import SweepResult, result_of
from lora_studio.sweep.search import following


@dataclass(frozen=True)
class TrialChange:
    """A trial has begun or ended."""

    placed: Placed
    ended: int  # of all trials, with or without a result
    total: int  # that there will be
    seconds: float  # that this one took, of those that are done
    seconds_left: float | None  # of all that is left; None while nothing was done


@dataclass(frozen=True)
class Estimate:
    """How long the trials will take, by a step that was tried just now; else why that is not known."""

    seconds: float | None
    why: str = ""
    fits: bool = True  # the memory


def run_sweep(
    plan: SweepPlan,
    folder: SweepFolder,
    *,
    devices: Sequence[str],
    ray: str | None = None,
    retry: bool = False,
    command: Callable[[Job], list[str]] = command_of,
    on_change: Callable[[TrialChange], None] = lambda change: None,
    on_trouble: Callable[[StudioError], None] = lambda error: None,
    on_stop: Callable[[], None] = lambda: None,
) -> SweepResult:
    """Do all trials that have no result, one at a time on each device, and write what was found.

    `ray`: the address of a Ray cluster, whose GPUs they are given in place of `devices`.

    It may be stopped and called again, and called by several processes at a time. KeyboardInterrupt is passed
    on once every trial at work has written its checkpoint. Raises StudioError as `SweepFolder.begin` does.
    """
    plan = folder.begin(plan, retry=retry)

    def changed(job: Job) -> None:
        nonlocal plan
        plan = folder.grown(plan)  # by another process
        job = _ended_early(job, plan, folder)
        result = result_of(plan, folder)
        folder.write(RESULT, result.to_json())
        on_change(_change(result, job, len(worker.slots)))
        plan = _grown(result, folder, len(worker.slots))

    def looked_at(job: Job) -> None:
        if plan.recipe.sweep.stop_early and _why_behind(job, plan, folder):
            folder.queue.stop(job.id)

    heard: dict[str, Any] = {"on_change": changed, "on_beat": looked_at}
    heard |= {"on_trouble": on_trouble, "on_stop": on_stop}
    if ray is None:
        worker = Worker(folder.queue, devices, command=command, **heard)
    else:
        worker = RayWorker(folder.queue, ray, command=command, **heard)
    plan = _grown(result_of(plan, folder), folder, len(worker.slots))
    worker.work(until_empty=True)
    result = result_of(plan, folder)
    write_result(result, folder)
    return result


def _why_behind(job: Job, plan: SweepPlan, folder: SweepFolder) -> str:
    """Why its training should end before its time; empty if it should go on."""
    placed = folder.placed(plan)
    own = next((one for one in placed if one.job is not None and one.job.id == job.id), None)
    return "" if own is None else behind(own, placed, plan)


def _ended_early(job: Job, plan: SweepPlan, folder: SweepFolder) -> Job:
    """One that was stopped because it is behind is done, and no later call goes on with it."""
    if job.state != "stopped" or not plan.recipe.sweep.stop_early:
        return job
    why = _why_behind(job, plan, folder)
    return folder.queue.ended(job.id, "done", why) if why else job


def _grown(result: SweepResult, folder: SweepFolder, slots: int) -> SweepPlan:
    """With a setting more, by what was found, for each device that would have nothing to do."""
    plan = result.plan
    while len(plan.trials) < plan.total and len(result.unfinished) < slots:
        if (setting := following(plan, result.scores())) is None:
            break
        plan = folder.grow(plan, setting)
        result = result_of(plan, folder)
    return plan


def _change(result: SweepResult, job: Job, devices: int) -> TrialChange:
    placed = [one for tried in result.tried for one in tried.trials]
    this = next(one for one in placed if one.job is not None and one.job.id == job.id)
    ended = len(placed) - len(result.unfinished)
    seconds = result.seconds.get(this.trial.name, 0.0)
    return TrialChange(this, ended, result.plan.total, seconds, seconds_left(result, devices))


def seconds_left(result: SweepResult, devices: int) -> float | None:
    """By the images that are still to be shown, and the time that those of finished trials took."""
    done = [one.trial for tried in result.tried for one in tried.trials if one.trial.name in result.seconds]
    work = sum(one.work for one in done)
    if not work:
        return None
    spent = sum(result.seconds[one.name] for one in done)
    to_come = (result.plan.total - len(result.plan.trials)) * work / len(done)  # of those not yet asked for
    return (to_come + sum(one.trial.work for one in result.unfinished)) * spent / work / devices


def estimate(plan: SweepPlan, *, devices: int) -> Estimate:
    """By `lora-studio plan` of the first trial, in a process of its own: a GPU is free again behind it.

    Fills the caches of images and captions as the trials would.
    """
    first = plan.trials[0]
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / f"{first.name}.toml"
        path.write_text(as_toml(first.recipe), "utf-8")
        command = [sys.executable, "-m", "lora_studio", "plan", str(path), "--json"]
        ended = subprocess.run(command, capture_output=True, env=dict(os.environ), check=False)
    told = _json(ended.stdout)
    if "timing" not in told:
        last = ended.stderr.decode("utf-8", "replace").strip().splitlines()[-1:] or ["plan said nothing"]
        return Estimate(None, last[0].removeprefix("error: "), fits=False)
    timing = told["timing"]
    steps = float(timing["step"]) * int(timing["steps"])
    rest = (float(timing["total"]) - steps) * len(plan.trials)
    whole = rest + steps * sum(one.work for one in plan.trials) / first.work
    whole *= plan.total / len(plan.trials)
    return Estimate(whole / min(devices, plan.total), fits=ended.returncode == 0)


def _json(text: bytes) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
