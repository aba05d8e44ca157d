"""A sweep's folder: what was asked, the trials' recipes and run folders, and the queue of what is left."""

from __future__ import annotations

import json
import os
import time
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomli_w

from lora_studio.errors import StudioError, reason_of
from lora_studio.files import check_ending, say_unwritable, write_atomically
from lora_studio.jobs import AT_WORK, Job, Queue
from lora_studio.jobs.adding import training
from lora_studio.recipe import Recipe, changes
from lora_studio.recipe.load import recipe_from
from lora_studio.recipe.sweep import SweepConfig
from lora_studio.runs import SUMMARY
from lora_studio.runs.lock import system_lock
from lora_studio.sweep import SweepPlan
from lora_studio.sweep.trials import Setting, SweepTrial, settings_of
from lora_studio.sweep.varied import varied_of

ASKED, RESULT, SETTINGS = "asked.toml", "sweep.json", "settings.json"
_MACHINE = "machine."  # options by which figures stay what they are


@dataclass(frozen=True)
class Placed:
    """A trial, its run folder, and its job in the sweep's queue; None before the sweep has begun."""

    trial: SweepTrial
    folder: Path
    job: Job | None

    @property
    def reason(self) -> str:
        """Why it has no result, in a sentence; empty if it has one or is still to come."""
        if self.job is None or self.job.state not in ("failed", "stopped", "lost"):
            return ""
        return self.job.reason.removeprefix("error: ")


class SweepFolder:
    """Any number of processes may work in one, each with the same plan."""

    def __init__(self, path: Path) -> None:
        check_ending(path, "")
        self.path = path.absolute()
        self.queue = Queue(self.path / "queue")

    def begin(self, plan: SweepPlan, *, retry: bool = False) -> SweepPlan:
        """Write down what is asked, and queue what has no result; failed trials only to `retry`.

        The plan with the settings that were added to it here. Raises StudioError for a folder with anything
        else in it, or a sweep of something else.
        """
        self.check(plan)
        with say_unwritable(self.path), self._alone():
            write_atomically(self.path / ASKED, as_toml(plan.recipe).encode())
            plan = self.grown(plan)
            known = {Path(job.run).name: job for job in self.queue.jobs() if job.run}
            for trial in plan.trials:
                job = known.get(trial.name)
                if job is not None and Path(job.run).parent != self.path and job.state not in AT_WORK:
                    self.queue.remove(job.id)  # of the folder that this one was copied or moved from
                    job = None
                if job is None:
                    self._add(trial)
                elif job.state == "lost" and self._is_finished(trial):
                    self.queue.ended(job.id, "done", "")  # its worker was killed, and it went on to its end
                elif job.state in ("stopped", "lost") or (retry and job.state == "failed"):
                    self.queue.resume(job.id)
        return plan

    def check(self, plan: SweepPlan) -> None:
        """Raises StudioError if the folder is not this sweep's, nor empty."""
        if not self.path.exists() or not any(self.path.iterdir()):
            return
        if not (self.path / ASKED).is_file():
            raise StudioError(f"{self.path} is not empty and no sweep's folder; choose another with --out.")
        before = self.asked()
        others = [str(one) for one in changes(before, plan.recipe) if not one.option.startswith(_MACHINE)]
        others += _other_sweep(before.sweep, plan)
        if others:
            raise StudioError(
                f"{self.path} holds another sweep ({'; '.join(others[:3])}); choose another folder with "
                "--out, or ask for the same. More --trials and --seeds can be added to it."
            )

    def asked(self) -> Recipe:
        """The recipe that the sweep is about, with its [sweep]. Raises StudioError if it is damaged."""
        path = self.path / ASKED
        try:
            return recipe_from(tomllib.loads(path.read_text("utf-8")), folder=self.path, source=ASKED)
        except (OSError, ValueError) as error:
            raise StudioError(f"{path} cannot be read ({reason_of(error)}); choose another --out.") from None

    def placed(self, plan: SweepPlan) -> list[Placed]:
        """Each trial with what became of it."""
        known = {Path(job.run).name: job for job in self.queue.jobs()}
        return [Placed(one, self.path / one.name, known.get(one.name)) for one in plan.trials]

    def grown(self, plan: SweepPlan) -> SweepPlan:
        """With the settings that were added to it here. Raises StudioError if they are damaged."""
        if not (path := self.path / SETTINGS).is_file():
            return plan
        try:
            names = [one.option for one in plan.varied]
            read = [{name: one[name] for name in names} for one in json.loads(path.read_bytes())]
            added = [{n: tuple(v) if isinstance(v, list) else v for n, v in one.items()} for one in read]
            return plan.with_settings(added)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise StudioError(f"{path} cannot be read ({reason_of(error)}); choose another --out.") from None

    def grow(self, plan: SweepPlan, setting: Setting) -> SweepPlan:
        """Add and queue a setting behind those of the plan, unless another process has added one."""
        with say_unwritable(self.path), self._alone():
            if (there := self.grown(plan)).settings != plan.settings:
                return there
            grown = plan.with_settings([*plan.added, setting])
            write_atomically(self.path / SETTINGS, json.dumps([dict(one) for one in grown.added]).encode())
            for trial in grown.trials[len(plan.trials) :]:
                self._add(trial)
            return grown

    def seconds(self) -> dict[str, float]:
        """How long each finished trial was at work, by its name, all tries together."""
        names = {job.id: Path(job.run).name for job in self.queue.jobs() if job.state == "done"}
        began, found = dict[int, float](), dict[str, float]()
        for at, job, state, _ in self.queue.history():
            if state == "running" and job not in began:
                began[job] = at
            elif state not in ("running", "stopping") and job in began:
                spent = at - began.pop(job)
                if job in names:
                    found[names[job]] = found.get(names[job], 0.0) + spent
        return found

    def write(self, name: str, content: bytes | str | dict[str, Any]) -> Path:
        """Whole or not at all. Raises StudioError if the disk refuses."""
        if isinstance(content, dict):
            content = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
        path = self.path / name
        with say_unwritable(path):
            write_atomically(path, content if isinstance(content, bytes) else content.encode())
        return path

    def _is_finished(self, trial: SweepTrial) -> bool:
        return (self.path / trial.name / SUMMARY).is_file()

    def _add(self, trial: SweepTrial) -> None:
        recipe = self.path / "recipes" / f"{trial.name}.toml"
        write_atomically(recipe, as_toml(trial.recipe).encode())
        job = self.queue.add(training(recipe, (), self.path / trial.name))
        if self._is_finished(trial):  # by an earlier queue, which was lost
            self.queue.ended(job.id, "done", "")

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Two processes that begin at a time would add each trial twice."""
        (self.path / "queue").mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self.path / "queue" / "begin.lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            while system_lock(descriptor) is False:
                time.sleep(0.05)
            yield
        finally:
            os.close(descriptor)


def as_toml(recipe: Recipe) -> str:
    """What the recipe gives, without defaults."""
    values = recipe.model_dump(mode="json", exclude_unset=True, exclude_none=True)
    return tomli_w.dumps({name: table for name, table in values.items() if table != {}})


def _other_sweep(before: SweepConfig, plan: SweepPlan) -> list[str]:
    """What would give the trials that are there other values, or leave some out."""
    now, found = plan.recipe.sweep, []
    for name in ("varied", "by", "search", "search_seed"):
        if getattr(before, name) != getattr(now, name):
            found.append(f"sweep.{name}: {getattr(before, name)} -> {getattr(now, name)}")
    there = [] if found or now.search == "tpe" else settings_of(varied_of(before.varied), before)
    if there != list(plan.settings[: len(there)]):
        found.append(f"sweep.trials: {before.trials} -> {now.trials}")
    if before.seeds > now.seeds:
        found.append(f"sweep.seeds: {before.seeds} -> {now.seeds}")
    return found
