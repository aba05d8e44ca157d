"""`plan(recipe)`: what a run will train, and take of memory, disk and time, from a trial step."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch

from lora_studio.recipe import Recipe
from lora_studio.recipe.load import load_recipe
from lora_studio.runs import ReadOnlyRun, run_folder
from lora_studio.text import Rows, duration
from lora_studio.training.events import Event, Listener, Progress, TrainingPlan, ignore_events
from lora_studio.training.planning.advice import Advice, advice_rows, advise
from lora_studio.training.planning.memory import Disk, Memory, measure_disk, measure_memory
from lora_studio.training.prepare import prepare
from lora_studio.training.report import Timing, describe, time_everything

GIB = 2**30


@dataclass(frozen=True)
class RunPlan:
    """What a recipe trains, and what that takes on this machine."""

    training: TrainingPlan
    memory: Memory
    disk: Disk
    timing: Timing
    seconds_of_preparing: float  # this time: reading and checking files, and encoding what was not cached
    cached: dict[str, int]  # what was made for the caches just now, e.g. {"latents": 28}
    advice: tuple[Advice, ...]  # empty if it fits; best first
    folder_in_use: bool  # the run folder holds a run already

    @property
    def rows(self) -> Rows:
        made = ", ".join(f"{count} {what}" for what, count in self.cached.items())
        before = f"{duration(self.seconds_of_preparing)} to read, check and encode"
        rows = [
            *self.memory.rows(self.training.data["device"]),
            *advice_rows(self.memory, self.advice),
            *self.disk.rows(),
            ("before it", f"{before}; {made} were computed and are cached now" if made else before),
        ]
        if self.folder_in_use:
            folder = self.training.data["folder"]
            rows.append(("note", f"{folder} holds a run already: continue it with --resume, or use --out"))
        return rows

    def to_json(self) -> dict[str, Any]:
        """Plain values, sums included."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        values |= {"training": self.training.data, "memory": self.memory.to_json()}
        values["disk"] = asdict(self.disk) | {"total": self.disk.total}
        values["timing"] = asdict(self.timing) | {"total": self.timing.total}
        values["advice"] = [asdict(one) for one in self.advice]
        return dict(json.loads(json.dumps(values)))


def plan(
    recipe: Recipe | Path | str, *, memory_gib: float | None = None, on_event: Listener = ignore_events
) -> RunPlan:
    """What a run of the recipe, or of the one in a TOML file, will train and take.

    Images and captions that are not in the caches yet are encoded, and regularization images drawn, as a run
    would do; nothing else is written. `memory_gib`: instead of what this machine's device has free. Raises
    StudioError for whatever the user can fix.
    """
    if not isinstance(recipe, Recipe):
        recipe = load_recipe(Path(recipe))
    with torch.random.fork_rng():  # libraries draw first values of adapters, which ours then replace
        return _plan(recipe, memory_gib, on_event)


def _plan(recipe: Recipe, memory_gib: float | None, on_event: Listener) -> RunPlan:
    run, counter = ReadOnlyRun(run_folder(recipe.name)), _CacheCounter(on_event)
    began = time.perf_counter()
    room = free_memory(recipe) if memory_gib is None else round(memory_gib * GIB)
    session = prepare(recipe, run, counter)
    prepared = time.perf_counter() - began
    timing = time_everything(session)
    memory = measure_memory(session, room=room)
    return RunPlan(
        training=describe(session, first_step=1, timing=timing),
        memory=memory,
        disk=measure_disk(session, timing, optimizer=memory.optimizer),
        timing=timing,
        seconds_of_preparing=prepared,
        cached=counter.cached,
        advice=advise(session, memory),
        folder_in_use=bool(run.checkpoints()),
    )


def free_memory(recipe: Recipe) -> int:
    """Bytes that are free on the recipe's device."""
    from lora_studio.devices import find_device

    device = find_device(recipe.machine.device)
    if device is not None and device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    import psutil

    return int(psutil.virtual_memory().available)


class _CacheCounter:
    """A listener that passes events on and counts what is made for the caches."""

    def __init__(self, listener: Listener) -> None:
        self.listener, self.cached = listener, dict[str, int]()

    def __call__(self, event: Event) -> None:
        self.listener(event)
        if isinstance(event, Progress) and event.what in ("latents", "captions", "regularization images"):
            self.cached[event.what] = event.done
