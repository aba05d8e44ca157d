"""What a step came to, on its way from the device to the host, which need not wait for it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from lora_studio.adapters.adapter_set import AdapterSet
from lora_studio.errors import TrainingDiverged, preview_names
from lora_studio.training.events import Listener, StepDone, StepSkipped
from lora_studio.training.loop.state import State

FIRST_STEPS = 3  # `down` has a gradient from the second on, because `up` begins as zero
Row = dict[str, float | int | bool | None]  # a line of metrics.jsonl
LONGEST_WAIT = 100  # steps without any gradient: images that only preserve the base have none at first


class StepResult(NamedTuple):
    loss: float
    grad_norm: float
    scale: float = 1.0  # of the loss

    @property
    def finite(self) -> bool:
        return math.isfinite(self.loss) and math.isfinite(self.grad_norm)

    @property
    def scaled_too_much(self) -> bool:
        """Whether gradients overflowed that a smaller scale would keep finite: float16's daily business."""
        return math.isfinite(self.loss) and not math.isfinite(self.grad_norm) and self.scale > 1

    def row(self, step: int, rate: float, seconds: float) -> Row:
        """A line of metrics.jsonl; what is not finite is null."""
        loss, norm = (one if math.isfinite(one) else None for one in self[:2])  # JSON has no word for NaN
        values: Row = {"step": step, "loss": loss, "grad_norm": norm, "learning_rate": rate}
        values["seconds"] = round(seconds, 4)
        if self.scaled_too_much:
            values["loss_scale"] = self.scale
        return values if self.finite else values | {"skipped": True}


class GradientWatch:
    """Whether every trained tensor gets a gradient in the first steps: else it would not learn."""

    def __init__(self, adapters: AdapterSet, *, half: bool = False) -> None:
        """`half`: in float16 `up` rounds to zero while a long warm-up has hardly moved it."""
        self._silent = dict(adapters.named_parameters())
        self._nothing = torch.zeros((), device=next(iter(self._silent.values())).device)
        self._words = {f"{one.name}.{end}": end for one in adapters.tokens for end in one.tensors}
        dropping = adapters.options.rank_dropout or adapters.options.module_dropout
        self._patience = LONGEST_WAIT if dropping or half else FIRST_STEPS
        self._of = len(self._silent)
        self._steps = self._waited = 0

    def sizes(self) -> Tensor:
        """[N]: the largest gradient in each tensor that has had none so far; N is 0 once all have."""
        self._silent = {name: one for name, one in self._silent.items() if one.requires_grad}
        none = self._nothing
        found = [none if one.grad is None else one.grad.abs().amax() for one in self._silent.values()]
        return torch.stack(found) if found else none.new_zeros(0)

    def update(self, sizes: Sequence[float], norm: float) -> None:
        """Take in a step's `sizes()`. Raises TrainingDiverged if some stay zero in the first steps."""
        pairs = zip(self._silent.items(), sizes, strict=True)
        self._silent = {name: tensor for (name, tensor), size in pairs if not size}
        self._steps += norm > 0
        self._waited += 1
        late = self._late() if self._steps == self._patience or self._waited == LONGEST_WAIT else []
        if late:
            raise TrainingDiverged(
                f"{len(late)} of {self._of} trained tensors had no gradient in the first "
                f"{self._waited} steps, so they would not learn: {preview_names(late)}; the images "
                "are not to blame: please report it with recipe.toml"
            )

    def _late(self) -> list[str]:
        """Those that are silent without a reason.

        A new token has none before a caption that holds it is shown, which `verify` looks for at the end; but
        then it has one in every text encoder.
        """
        heard = {word for name, word in self._words.items() if name not in self._silent}
        return [name for name in self._silent if name not in self._words or self._words[name] in heard]


class AsyncScalars:
    """The values of a tensor [N]; the copy begins now and is waited for when they are asked for."""

    def __init__(self, values: Tensor) -> None:
        self._values, self._copied = values, None
        if values.device.type == "cuda":
            self._values = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
            self._values.copy_(values, non_blocking=True)
            self._copied = torch.cuda.Event()
            self._copied.record(torch.cuda.current_stream(values.device))

    def read(self) -> list[float]:
        if self._copied is not None:
            self._copied.synchronize()
        return [float(one) for one in self._values.tolist()]


@dataclass
class PendingStep:
    """A step that is done on the device; what it came to may still be on its way to the host."""

    step: int
    rate: float  # of learning, in the first group
    began: float  # seconds of time.perf_counter
    numbers: AsyncScalars  # loss, gradient norm, the loss's scale, and the watch's sizes
    watch: GradientWatch
    limited: AsyncScalars | None = None  # how many layers were larger than adapter.max_norm

    @property
    def done(self) -> StepResult:
        """Waits for it."""
        return StepResult(*self.numbers.read()[:3])

    @property
    def sizes(self) -> list[float]:
        return self.numbers.read()[3:]


@dataclass
class StepReporter:
    """Counts, records and reports every step, once what it came to has been read."""

    state: State
    steps: int
    max_skipped_steps: int
    record: Callable[[Row], None]
    listener: Listener
    _pending: PendingStep | None = None
    _settled_at: float = 0.0

    def push(self, pending: PendingStep) -> None:
        assert self._pending is None
        self._pending = pending

    def flush(self) -> None:
        """Wait for the expected step, if there is one, then count and report it.

        Raises TrainingDiverged if too many in a row were not finite, or a tensor gets no gradient.
        """
        pending, self._pending = self._pending, None
        if pending is None:
            return
        done = pending.done
        if done.finite:
            pending.watch.update(pending.sizes, done.grad_norm)
        self.state.counters.count(pending.step, updated=done.finite, scaled=done.scaled_too_much)
        now = time.perf_counter()
        seconds, self._settled_at = now - max(pending.began, self._settled_at), now
        limited = {} if pending.limited is None else {"limited_layers": int(pending.limited.read()[0])}
        self.record(done.row(pending.step, pending.rate, seconds) | limited)
        if done.finite:
            step, rate = pending.step, pending.rate
            self.listener(StepDone(step, self.steps, done.loss, rate, seconds, done.grad_norm))
        else:
            self._skipped(pending.step, done)

    def _skipped(self, step: int, done: StepResult) -> None:
        in_a_row, most = self.state.counters.skipped_in_a_row, self.max_skipped_steps
        scale = done.scale if done.scaled_too_much else 1.0
        self.listener(StepSkipped(step, self.steps, done.loss, done.grad_norm, in_a_row, most, scale))
        if in_a_row >= most and not done.scaled_too_much:
            what = f"step {step}: the loss is {done.loss:g} and the gradient norm {done.grad_norm:g}"
            allowed = "which is what training.max_skipped_steps allows"
            raise TrainingDiverged(f"{what}, the last of {in_a_row} bad steps in a row, {allowed}")
