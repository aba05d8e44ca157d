"""The training loop: read this first.

It sees a `ModelFamily` and an `AdapterSet`, never a concrete one. Every random draw is keyed by seed and step
and batches are a pure function of the step, so a run resumed at step n repeats what it would have done.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from lora_studio.adapters.base import AdapterSet
from lora_studio.data.batches import Batch
from lora_studio.errors import TrainingDiverged
from lora_studio.families.base import ModelFamily
from lora_studio.objective import Noised, Objective
from lora_studio.rng import generator
from lora_studio.training.events import Listener, StepDone
from lora_studio.training.feed import Feed
from lora_studio.training.schedule import Schedule, factor


@dataclass(frozen=True)
class LoopOptions:
    """The loop's numbers."""

    steps: int
    accumulation: int
    schedule: Schedule
    warmup_steps: int
    max_grad_norm: float
    seed: int
    autocast: torch.dtype | None
    checkpoint_every: int


@dataclass
class Loop:
    """Everything one run of steps needs, built by `build.py`."""

    family: ModelFamily
    adapters: AdapterSet
    objective: Objective
    feed: Feed
    optimizer: torch.optim.Optimizer
    options: LoopOptions
    save: Callable[[int], None]  # writes the checkpoint of a step
    record: Callable[[dict[str, float | int]], None]  # writes a line of metrics
    listener: Listener
    base_rates: list[float] = field(default_factory=list)

    def run(self, first_step: int) -> bool:
        """Steps first_step..steps; False when it was interrupted, after saving a checkpoint.

        Raises TrainingDiverged at the first loss or gradient that is not finite, before it reaches the
        weights.
        """
        self.base_rates = [group["lr"] for group in self.optimizer.param_groups]
        with interruptible() as interrupted:
            for step in range(first_step, self.options.steps + 1):
                began = time.perf_counter()
                loss, norm = self._step(step)
                if step == 1:
                    self._check_gradients()
                self.optimizer.zero_grad()
                self._report(step, loss, norm, time.perf_counter() - began)
                last = step == self.options.steps
                if last or interrupted.is_set() or step % self.options.checkpoint_every == 0:
                    self.save(step)
                if interrupted.is_set() and not last:
                    return False
        return True

    def _step(self, step: int) -> tuple[float, float]:
        """One optimizer step; its mean loss and gradient norm."""
        rate = factor(
            self.options.schedule, step, steps=self.options.steps, warmup_steps=self.options.warmup_steps
        )
        for group, base_rate in zip(self.optimizer.param_groups, self.base_rates, strict=True):
            group["lr"] = base_rate * rate
        total = torch.zeros((), device=self.family.device)
        for number, batch in enumerate(self.feed.of_step(step)):
            loss = self.loss(batch, generator(self.options.seed, step, number, "noise"))
            (loss / self.options.accumulation).backward()
            total += loss.detach() / self.options.accumulation
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        norm = torch.nn.utils.clip_grad_norm_(parameters, self.options.max_grad_norm)
        loss_value, norm_value = torch.stack(
            [total, norm.to(total)]
        ).tolist()  # the step's one device-to-host copy
        if not (torch.tensor([loss_value, norm_value]).isfinite().all()):
            raise TrainingDiverged(
                f"step {step}: the loss is {loss_value} and the gradient norm {norm_value}"
            )
        self.optimizer.step()
        return loss_value, norm_value

    def loss(self, batch: Batch, rng: torch.Generator) -> Tensor:
        """The weighted mean squared error of one micro-batch."""
        device = self.family.device
        with torch.autocast(device.type, self.options.autocast, enabled=self.options.autocast is not None):
            conditioning = batch.conditioning or self.family.encode_text(batch.captions)
            noised = self.objective.noise(batch.latents, rng)
            answer = self.family.denoise(noised.latents, noised.timestep, conditioning, batch.geometry)
            target = self._with_base_answers(noised, batch)
        error = F.mse_loss(answer.float(), target.float(), reduction="none")
        return ((error * batch.weight).mean(dim=(1, 2, 3)) * noised.weight).mean()

    @torch.no_grad()
    def _with_base_answers(self, noised: Noised, batch: Batch) -> Tensor:
        """The targets, where in the preserved rows stands what the frozen base itself answers."""
        rows = batch.preserved
        if not len(rows):
            return noised.target
        with self.adapters.disabled():
            if batch.conditioning is None:
                conditioning = self.family.encode_text(
                    [batch.captions[row] for row in rows.tolist()], like=batch.captions
                )
            else:
                conditioning = {name: tensor[rows] for name, tensor in batch.conditioning.items()}
            answer = self.family.denoise(
                noised.latents[rows], noised.timestep[rows], conditioning, batch.geometry[rows]
            )
        return noised.target.index_copy(0, rows, answer.to(noised.target.dtype))

    def _report(self, step: int, loss: float, norm: float, seconds: float) -> None:
        rate = self.optimizer.param_groups[0]["lr"]
        self.record(
            {
                "step": step,
                "loss": loss,
                "grad_norm": norm,
                "learning_rate": rate,
                "seconds": round(seconds, 4),
            }
        )
        self.listener(StepDone(step, self.options.steps, loss, rate, seconds))

    def _check_gradients(self) -> None:
        """After the first step every `up` must have had a gradient (`down` has none while `up` is zero)."""
        silent = [
            layer.name for layer in self.adapters.layers if layer.up.grad is None or not layer.up.grad.any()
        ]
        if silent:
            raise TrainingDiverged(
                f"{len(silent)} of {len(self.adapters.layers)} layers got no gradient, first {silent[0]}"
            )


@contextmanager
def interruptible() -> Iterator[threading.Event]:
    """Within it the first Ctrl-C sets the event instead of raising; a second one raises as usual."""
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked  # signals belong to the main thread; elsewhere the caller stops the run
        return
    before = signal.getsignal(signal.SIGINT)

    def on_interrupt(number: int, frame: object) -> None:
        asked.set()
        signal.signal(signal.SIGINT, before)

    signal.signal(signal.SIGINT, on_interrupt)
    try:
        yield asked
    finally:
        signal.signal(signal.SIGINT, before)
