"""The training loop: read this first.

It sees a `ModelFamily` and an `AdapterSet`, never a concrete one. Every random draw is keyed by seed and step
and batches are a pure function of the step, so a run resumed at step n repeats what it would have done.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lora_studio.data.batches import Batch
from lora_studio.data.feed import Feed
from lora_studio.families.base import ModelFamily
from lora_studio.objectives.diffusion import NoisyBatch, Objective
from lora_studio.objectives.timesteps import DrawPosition
from lora_studio.processes import ALONE, Processes
from lora_studio.rng import generator
from lora_studio.training.events import Listener, MemoryRanOut
from lora_studio.training.loop.distributed import all_reduce_gradients, own_passes
from lora_studio.training.loop.gradient_watch import GradientWatch
from lora_studio.training.loop.preservation import with_base_answers
from lora_studio.training.loop.state import State
from lora_studio.training.loop.step_result import AsyncScalars, PendingStep, StepReporter
from lora_studio.training.loop.watch import interruptible
from lora_studio.training.machine.memory import out_of_memory, within_memory
from lora_studio.training.optimizers.schedule import Schedule, factor


@dataclass(frozen=True)
class LoopOptions:
    """The loop's numbers."""

    steps: int
    gradient_accumulation: int
    schedule: Schedule
    warmup_steps: int
    max_grad_norm: float
    seed: int
    autocast: torch.dtype | None
    checkpoint_every: int
    max_skipped_steps: int


@dataclass
class Loop:
    """Everything one run of steps needs, built by `build.py`."""

    family: ModelFamily
    state: State
    objective: Objective
    feed: Feed
    options: LoopOptions
    save: Callable[[int], None]  # writes the checkpoint of a step
    record: Callable[[dict[str, float | int | bool | None]], None]  # writes a line of metrics
    listener: Listener
    after_step: Callable[[int], bool] = lambda step: False  # looks at the result; whether it is to be saved
    looks_after: Callable[[int], bool] = lambda step: True  # whether `after_step` does so after this step
    processes: Processes = ALONE
    sharded: bool = False  # over the processes, which then have to run the base as often as each other
    reads_late: bool = False  # what a step came to is read while the next one is computed
    base_rates: list[float] = field(default_factory=list)
    _rows: int = 0  # of this process in the micro-batch that is being learned
    _asked: threading.Event = field(default_factory=threading.Event)  # by Ctrl-C of this process
    _stopping: bool = False  # what several processes have agreed on

    def __post_init__(self) -> None:
        options = self.options
        self._readings = StepReporter(
            self.state, options.steps, options.max_skipped_steps, lambda row: self.record(row), self.listener
        )

    def run(self, first_step: int) -> bool:
        """Steps first_step..steps; False when it was interrupted, after saving a checkpoint.

        Raises TrainingDiverged if `max_skipped_steps` in a row were not finite, or a tensor gets no gradient.
        """
        self.base_rates = [group["lr"] for group in self.state.optimizer.param_groups]
        watch = GradientWatch(self.state.adapters, half=self.state.scaler is not None)
        with interruptible() as self._asked:
            for step in range(first_step, self.options.steps + 1):
                self._step(step, watch)
                last = step == self.options.steps
                stopping = self._asked.is_set() if self.processes.count == 1 else self._stopping
                to_save = last or stopping or step % self.options.checkpoint_every == 0
                if to_save or self.looks_after(step):
                    self._readings.flush()
                if self.after_step(step) or to_save:
                    self.save(step)
                if stopping and not last:
                    return False
        return True

    @property
    def passes(self) -> int:
        """A micro-batch's rows are trained in so many passes."""
        return self.state.counters.passes

    @passes.setter
    def passes(self, passes: int) -> None:
        self.state.counters.passes = passes

    def _step(self, step: int, watch: GradientWatch) -> None:
        """One optimizer step; it leaves everything as it was if its loss or gradient is not finite.

        On a GPU what it came to is read only when the next one has been handed to the device, so that the
        device never waits for the host.
        """
        began, optimizer = time.perf_counter(), self.state.optimizer
        rate = factor(
            self.options.schedule, step, steps=self.options.steps, warmup_steps=self.options.warmup_steps
        )
        for group, base_rate in zip(optimizer.param_groups, self.base_rates, strict=True):
            group["lr"] = base_rate * rate
        self.state.adapters.at_step(step)
        total = within_memory(lambda: self._gradients(step), self._use_more_passes)
        self._readings.flush()  # the step before
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        total, (self._stopping,) = all_reduce_gradients(
            self.processes, parameters, total, [self._asked.is_set()]
        )
        scale = self.state.unscale()
        sizes = watch.sizes()
        norm = torch.nn.utils.clip_grad_norm_(parameters, self.options.max_grad_norm)
        facts = torch.cat([torch.stack([total, norm.to(total), scale.to(total)]), sizes.to(total)])
        pending = PendingStep(step, optimizer.param_groups[0]["lr"], began, AsyncScalars(facts), watch)
        self._readings.push(pending)
        limited = None
        if self.state.skips_on_device:
            limited = self.state.update(1 - (total.isfinite() & norm.isfinite()).float())
        elif pending.done.finite:
            limited = self.state.update(torch.zeros(()))
        else:
            self.state.adapt_scale()
        pending.limited = None if limited is None else AsyncScalars(limited.view(1))
        optimizer.zero_grad()
        if not self.reads_late:
            self._readings.flush()

    def _gradients(self, step: int) -> Tensor:
        """Add up those of a step's micro-batches; its loss."""
        total = torch.zeros((), device=self.family.device)
        for number, batch in enumerate(self.feed.of_step(step)):
            with self.state.adapters.dropped(self.options.seed, step, number):
                total += self.forward_backward(batch, *self.draw_of(step, number))
        return total

    def draw_of(self, step: int, number: int) -> tuple[torch.Generator, DrawPosition]:
        """What all noise and timesteps of a step's micro-batch are drawn from; `number` counts from 0."""
        seed, before = self.options.seed, (step - 1) * self.options.gradient_accumulation
        return generator(seed, step, number, "noise"), DrawPosition(seed, before + number)

    def try_out(self, batch: Batch) -> None:
        """Everything a micro-batch needs memory and time for, with nothing changed by it."""
        within_memory(lambda: self.forward_backward(batch, generator("timing"), None), self._use_more_passes)
        self.state.optimizer.zero_grad()

    def _use_more_passes(self) -> None:
        """Twice as many. Raises OutOfMemory if each pass has but one row."""
        self.state.optimizer.zero_grad()
        if self.sharded:  # the others would wait for this one
            raise out_of_memory(f"on {self.family.device}, whose base is spread over the processes")
        if self.passes >= self._rows:
            raise out_of_memory(f"with one image at a time on {self.family.device}")
        self.passes = min(2 * self.passes, self._rows)
        self.listener(MemoryRanOut(self.passes, math.ceil(self._rows / self.passes)))

    def forward_backward(self, batch: Batch, rng: torch.Generator, turn: DrawPosition | None) -> Tensor:
        """Add a micro-batch's gradients, one share of its rows after the other; its part of the step's loss.

        Of several processes each has some of the rows, perhaps none. Noise is drawn for the whole of it, so
        the shares change nothing but the rounding.
        """
        own = self.processes.share(len(batch))
        self._rows = max(1, own.stop - own.start)
        noised = self.objective.noise(batch.latents, rng, turn)
        total = torch.zeros((), device=self.family.device)
        for rows in own_passes(len(batch), self.processes, self.passes, lockstep=self.sharded):
            share = (rows.stop - rows.start) / len(batch) / self.options.gradient_accumulation
            rows = rows if share else slice(0, 1)  # run along, with a weight of 0
            loss = self.compute_loss(batch.rows(rows), noised.rows(rows)) * share
            self.state.scale(loss).backward()
            total += loss.detach()
        return total

    def loss(self, batch: Batch, rng: torch.Generator) -> Tensor:
        """The weighted error of one micro-batch, a mean over its rows."""
        return self.compute_loss(batch, self.objective.noise(batch.latents, rng))

    def compute_loss(self, batch: Batch, noised: NoisyBatch) -> Tensor:
        device = self.family.device
        with torch.autocast(device.type, self.options.autocast, enabled=self.options.autocast is not None):
            conditioning = batch.conditioning or self.family.encode_text(batch.captions, like=batch.like)
            answer = self.family.denoise(noised.latents, noised.timestep, conditioning, batch.geometry)
            targets = with_base_answers(noised, batch, self.family, self.state.adapters)
        error = self.objective.error(answer.float(), targets.learned.float()) * batch.weight
        if batch.outside is not None:
            error = error + self.objective.error(answer.float(), targets.outside.float()) * batch.outside
        return (error.mean(dim=(1, 2, 3)) * noised.weight).mean()
