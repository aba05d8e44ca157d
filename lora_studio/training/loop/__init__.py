"""The training loop: read this first.

It sees a `ModelFamily` and an `AdapterSet`, never a concrete one. Every random draw is keyed by seed and step
and batches are a pure function of the step, so a run resumed at step n repeats what it would have done.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lora_studio.data.batches import Batch
from lora_studio.data.feed import Feed
from lora_studio.families.base import ModelFamily
from lora_studio.objectives.base import NoisyBatch, Objective
from lora_studio.objectives.timesteps import DrawPosition
from lora_studio.processes import ALONE, Processes
from lora_studio.recipe.training import TrainingConfig
from lora_studio.rng import generator
from lora_studio.runs.interrupts import interruptible
from lora_studio.training.events import Listener, StopAsked
from lora_studio.training.loop.base_predictions import BasePredictions, Targets
from lora_studio.training.loop.batch_split import BatchSplit, all_reduce_gradients
from lora_studio.training.loop.state import State
from lora_studio.training.loop.step_result import AsyncScalars, GradientWatch, PendingStep, Row, StepReporter
from lora_studio.training.machine import Machine
from lora_studio.training.optimizers import factor, make_schedule


@dataclass
class Loop:
    """Everything one run of steps needs, made by `prepare/`."""

    family: ModelFamily
    state: State
    objective: Objective
    feed: Feed
    config: TrainingConfig
    machine: Machine
    save: Callable[[int], None]  # writes the checkpoint of a step
    record: Callable[[Row], None]  # writes a line of metrics
    listener: Listener
    after_step: Callable[[int], bool] = lambda step: False  # measures the result; whether it is to be saved
    after_save: Callable[[int], None] = lambda step: None  # draws it, when nothing of it can be lost any more
    looks_after: Callable[[int], bool] = lambda step: True  # whether one of them does so after this step
    is_enough: Callable[[], bool] = lambda: False  # whether it ends early, by what was measured
    beside: Callable[[], AbstractContextManager[None]] = nullcontext  # of what the base has while it learns
    processes: Processes = ALONE
    reads_late: bool = False  # what a step came to is read while the next one is computed
    zero_last: bool = False  # a schedule that ends at 0 does so in the last step, not behind it
    stop_asked: threading.Event = field(default_factory=threading.Event)  # by whoever listens
    base_rates: list[float] = field(default_factory=list)
    _interrupted: threading.Event = field(default_factory=threading.Event)  # by Ctrl-C of this process

    def __post_init__(self) -> None:
        config = self.config
        self.schedule = make_schedule(config.lr_schedule, config.lr_schedule_floor)
        self.split = BatchSplit(self.state, self.machine, self.processes, self.listener)
        self.base_predictions = BasePredictions(
            self.family, self.state, config, self.machine, self._micro_batch, self.processes, self.listener
        )
        self.reporter = StepReporter(
            self.state, config.steps, config.max_skipped_steps, lambda row: self.record(row), self.listener
        )

    def _micro_batch(self, number: int) -> tuple[Batch, NoisyBatch]:
        """A micro-batch by its number in the run, from 0, as it is trained: with its noise."""
        before, place = divmod(number, self.config.gradient_accumulation)
        batch = self.feed.micro_batch(before + 1, place)
        return batch, self.objective.noise(batch.latents, *self.draw_of(before + 1, place))

    def run(self, first_step: int) -> bool:
        """Steps first_step..steps; False when it was interrupted, after saving a checkpoint.

        Raises TrainingDiverged if `max_skipped_steps` in a row were not finite, or a tensor gets no gradient.
        """
        self.base_rates = [group["lr"] for group in self.state.optimizer.param_groups]
        watch = GradientWatch(self.state.adapters, half=self.state.scaler is not None)
        with interruptible(lambda: self.listener(StopAsked()), self.stop_asked) as self._interrupted:
            for step in range(first_step, self.config.steps + 1):
                if self.is_enough():
                    return True
                stopping = self.train_step(step, watch)
                last = step == self.config.steps
                to_save = last or stopping or step % self.config.checkpoint_every == 0
                if to_save or self.looks_after(step):
                    self.reporter.flush()
                if self.after_step(step) or to_save:
                    self.save(step)
                if stopping and not last:
                    return False
                self.after_save(step)
        return True

    def train_step(self, step: int, watch: GradientWatch) -> bool:
        """One optimizer step, which changes nothing if its loss or gradient is not finite; whether to stop.

        On a GPU what it came to is read only when the next one has been handed to the device, so that the
        device never waits for the host.
        """
        began, optimizer = time.perf_counter(), self.state.optimizer
        self._set_learning_rates(step)
        self.state.adapters.at_step(step)
        loss = self.split.within_memory(lambda: self._add_gradients(step))
        self.reporter.flush()  # the step before
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        interrupted = [self._interrupted.is_set()]
        loss, (stopping,) = all_reduce_gradients(self.processes, parameters, loss, interrupted)
        self.state.adapters.show_gradients()
        scale, sizes = self.state.unscale(), watch.sizes()
        norm = torch.nn.utils.clip_grad_norm_(parameters, self.config.max_grad_norm)
        facts = torch.cat([torch.stack([loss, norm.to(loss), scale.to(loss)]), sizes.to(loss)])
        pending = PendingStep(step, optimizer.param_groups[0]["lr"], began, AsyncScalars(facts), watch)
        self.reporter.push(pending)
        self._update_weights(pending, is_finite=loss.isfinite() & norm.isfinite())
        self.state.adapters.clear_gradients()
        if not self.reads_late:
            self.reporter.flush()
        return stopping if self.processes.count > 1 else self._interrupted.is_set()

    def _set_learning_rates(self, step: int) -> None:
        lengths = {"steps": self.config.steps, "warmup_steps": self.config.warmup}
        rate = factor(self.schedule, step, **lengths, zero_last=self.zero_last)
        for group, base_rate in zip(self.state.optimizer.param_groups, self.base_rates, strict=True):
            group["lr"] = base_rate * rate

    def _update_weights(self, pending: PendingStep, *, is_finite: Tensor) -> None:
        """Along the gradients, if they and the loss are finite: on the device alone, where that can be."""
        limited = None
        if self.state.skips_on_device:
            limited = self.state.update(1 - is_finite.float())
        elif pending.done.finite:
            limited = self.state.update(torch.zeros_like(is_finite, dtype=torch.float32))
        else:
            self.state.adapt_scale()
        pending.limited = None if limited is None else AsyncScalars(limited.view(1))

    def _add_gradients(self, step: int) -> Tensor:
        """Those of a step's micro-batches; its loss."""
        total = torch.zeros((), device=self.family.device)
        for number, batch in enumerate(self.feed.of_step(step)):
            with self.state.adapters.dropped(self.config.seed, step, number):
                total += self.forward_backward(batch, *self.draw_of(step, number))
        return total

    def draw_of(self, step: int, number: int) -> tuple[torch.Generator, DrawPosition]:
        """What all noise and timesteps of a step's micro-batch are drawn from; `number` counts from 0."""
        seed, before = self.config.seed, (step - 1) * self.config.gradient_accumulation
        return generator(seed, step, number, "noise"), DrawPosition(seed, before + number)

    def forward_backward(self, batch: Batch, rng: torch.Generator, position: DrawPosition | None) -> Tensor:
        """Add a micro-batch's gradients; its part of the step's loss.

        Noise is drawn for the whole of it, so that how its rows are split over processes and passes changes
        nothing but the rounding.
        """
        noisy = self.objective.noise(batch.latents, rng, position)
        targets = self.base_predictions.targets(batch, noisy, position)
        total = torch.zeros((), device=self.family.device)
        for rows, share in self.split.passes_of(len(batch)):
            share /= self.config.gradient_accumulation
            with self.beside():
                loss = share * self.compute_loss(batch.rows(rows), noisy.rows(rows), targets.rows(rows))
                self.state.scale(loss).backward()
            total += loss.detach()
        return total

    def compute_loss(self, batch: Batch, noisy: NoisyBatch, targets: Targets) -> Tensor:
        """The weighted error of the denoiser's prediction, a mean over the rows."""
        dtype = self.machine.autocast
        with torch.autocast(self.family.device.type, dtype, enabled=dtype is not None):
            conditioning = batch.conditioning or self.family.encode_text(batch.captions, like=batch.like)
            prediction = self.family.denoise(noisy.latents, noisy.timestep, conditioning, batch.geometry)
        error = self.objective.error(prediction.float(), targets.learned.float()) * batch.weight
        if batch.outside is not None:
            error = error + self.objective.error(prediction.float(), targets.outside.float()) * batch.outside
        return (error.mean(dim=(1, 2, 3)) * noisy.weight).mean()

    def loss(self, batch: Batch, rng: torch.Generator) -> Tensor:
        """Of one micro-batch, with noise of its own."""
        noisy = self.objective.noise(batch.latents, rng)
        return self.compute_loss(batch, noisy, self.base_predictions.targets(batch, noisy))

    def try_out(self, batch: Batch) -> None:
        """Everything a micro-batch needs memory and time for, with nothing changed by it."""
        self.split.within_memory(lambda: self.forward_backward(batch, generator("timing"), None))
        self.state.adapters.clear_gradients()
