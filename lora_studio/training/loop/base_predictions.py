"""What the frozen base predicts where that is the target, for the rows of several steps in one pass.

A step asks it about a few rows only, and few rows take nearly as long as many. The steps of a window are
asked about together when the first of them is trained. Windows begin at fixed steps and hold nothing that
training changes, so a run that is resumed inside one makes the same passes, and the same bits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from lora_studio.data.batches import Batch
from lora_studio.families.base import Conditioning, ModelFamily
from lora_studio.objectives.base import NoisyBatch
from lora_studio.objectives.timesteps import DrawPosition
from lora_studio.processes import Processes, to_device
from lora_studio.recipe.training import TrainingConfig
from lora_studio.text import plural
from lora_studio.training.events import Listener, Note
from lora_studio.training.loop.batch_split import shares
from lora_studio.training.loop.state import State
from lora_studio.training.machine import Machine, out_of_memory, within_memory

WINDOW = 16  # micro-batches; more of them save little (benchmarks/demo_time.py)
# Rows of a pass, in batches: without gradients they need less memory than a training pass of one.
BATCHES_A_PASS, BATCHES_BESIDE_CHECKPOINTING = 4, 1

Numbered = tuple[int, Batch, NoisyBatch]


class Targets(NamedTuple):
    """What the denoiser should predict, each [B, C, H, W]."""

    learned: Tensor  # the objective's targets; in the preserved rows the base's predictions
    outside: Tensor  # the base's predictions in the masked rows, too: what counts outside of their masks

    def rows(self, wanted: slice) -> Targets:
        return Targets(*(one[wanted] for one in self))


class BaseQuestion(NamedTuple):
    """Rows of a micro-batch that the base is asked about: N of them."""

    latents: Tensor  # [N, C, H, W]
    timestep: Tensor  # [N]
    conditioning: Conditioning
    geometry: Tensor  # [N, 6]

    @property
    def shapes(self) -> object:
        """What those have in common that are asked in one pass."""
        texts = [(name, one.shape[1:]) for name, one in sorted(self.conditioning.items())]
        return self.latents.shape[1:], tuple(texts)

    def rows(self, wanted: slice) -> BaseQuestion:
        texts = {name: one[wanted] for name, one in self.conditioning.items()}
        return BaseQuestion(self.latents[wanted], self.timestep[wanted], texts, self.geometry[wanted])


@dataclass
class BasePredictions:
    """The targets of micro-batches, which are known by their numbers in the run, counted from 0."""

    family: ModelFamily
    state: State
    config: TrainingConfig
    machine: Machine
    batch_at: Callable[[int], tuple[Batch, NoisyBatch]]  # a micro-batch and its noise
    processes: Processes
    listener: Listener
    window: range = range(0)  # of micro-batches, that the base was asked about last
    _found: dict[int, Tensor] = field(default_factory=dict)  # of the window: [N, C, H, W]

    def targets(self, batch: Batch, noisy: NoisyBatch, position: DrawPosition | None = None) -> Targets:
        """Of a micro-batch of the run; without a position, of one that is in no window."""
        if not (rows := self._asked(batch)):
            return Targets(noisy.target, noisy.target)
        if position is None:
            (found,) = self._predict(lambda: [(0, batch, noisy)]).values()
        else:
            found = self._of(position.number)
        return _replaced(noisy, batch, rows, found)

    def _asked(self, batch: Batch) -> list[int]:
        """The rows that this process trains and has to ask about, preserved and masked ones alike."""
        own = self.processes.share(len(batch))
        return [row for row in sorted({*batch.preserved, *batch.masked}) if own.start <= row < own.stop]

    def _of(self, number: int) -> Tensor:
        if number not in self.window:
            self.window, self._found = range(0), {}  # their memory is needed
            window = self._window_of(number)
            self._found = self._predict(lambda: ((one, *self.batch_at(one)) for one in window))
            self.window = window
        return self._found[number]

    def _predict(self, micro_batches: Callable[[], Iterable[Numbered]]) -> dict[int, Tensor]:
        """In passes of fewer rows each time memory runs out."""
        return within_memory(lambda: self._ask(micro_batches()), self._use_fewer_rows)

    @torch.no_grad()
    def _ask(self, micro_batches: Iterable[Numbered]) -> dict[int, Tensor]:
        dtype, questions = self.machine.autocast, dict[int, BaseQuestion]()
        autocast = torch.autocast(self.family.device.type, dtype, enabled=dtype is not None)
        with autocast, self.state.adapters.disabled():
            for number, batch, noisy in micro_batches:
                if rows := self._asked(batch):
                    questions[number] = _question(noisy, batch, rows, self.family)
            found = predict([*questions.values()], self.family, rows_a_pass=self._rows_a_pass)
        return dict(zip(questions, found, strict=True))

    def _window_of(self, number: int) -> range:
        """Whole steps."""
        accumulated = self.config.gradient_accumulation
        size = max(1, WINDOW // accumulated) * accumulated
        start = number - number % size
        return range(start, min(start + size, self.config.steps * accumulated))

    @property
    def _rows_a_pass(self) -> int:
        checkpointing = self.machine.config.gradient_checkpointing
        batches = BATCHES_BESIDE_CHECKPOINTING if checkpointing else BATCHES_A_PASS
        rows = batches * -(-self.config.batch_size // self.processes.count)
        return max(1, rows // self.state.counters.base_passes)

    def _use_fewer_rows(self) -> None:
        """In the state's counters, so that a resumed run asks about as many at once."""
        if self._rows_a_pass == 1:
            raise out_of_memory(f"with one image at a time in the base on {self.machine.device}")
        self.state.counters.base_passes *= 2
        images = plural(self._rows_a_pass)
        self.listener(Note(f"memory ran out: the base predicts for up to {images} at a time from now on"))


def _question(noisy: NoisyBatch, batch: Batch, rows: Sequence[int], family: ModelFamily) -> BaseQuestion:
    places = _indices(rows, family.device)
    if batch.conditioning is None:
        captions = [batch.captions[row] for row in rows]
        conditioning = family.encode_text(captions, like=batch.like or batch.captions)
    else:
        here = _indices(rows, torch.device("cpu"))  # masks lie in main memory
        asked = {"cpu": here, family.device.type: places}
        conditioning = {name: one[asked[one.device.type]] for name, one in batch.conditioning.items()}
    return BaseQuestion(noisy.latents[places], noisy.timestep[places], conditioning, batch.geometry[places])


def predict(questions: Sequence[BaseQuestion], family: ModelFamily, *, rows_a_pass: int) -> list[Tensor]:
    """The base's prediction for the rows of each, [N, C, H, W]; those of one shape share their passes."""
    groups: dict[object, list[int]] = {}
    for place, one in enumerate(questions):
        groups.setdefault(one.shapes, []).append(place)
    found: dict[int, Tensor] = {}
    for places in groups.values():
        sizes = [len(questions[place].latents) for place in places]
        together = _joined([questions[place] for place in places])
        parts = shares(slice(0, sum(sizes)), -(-sum(sizes) // rows_a_pass))
        prediction = torch.cat([family.denoise(*together.rows(part)) for part in parts])
        found |= zip(places, prediction.split(sizes), strict=True)
    return [found[place] for place in range(len(questions))]


def _joined(questions: Sequence[BaseQuestion]) -> BaseQuestion:
    latents, timestep, conditioning, geometry = zip(*questions, strict=True)
    texts = {name: torch.cat([one[name] for one in conditioning]) for name in conditioning[0]}
    return BaseQuestion(torch.cat(latents), torch.cat(timestep), texts, torch.cat(geometry))


def _replaced(noisy: NoisyBatch, batch: Batch, rows: Sequence[int], prediction: Tensor) -> Targets:
    """`prediction` [N, C, H, W] of these rows in place of what the objective wants of them."""
    device, prediction = noisy.target.device, prediction.to(noisy.target.dtype)
    outside = noisy.target.index_copy(0, _indices(rows, device), prediction)
    preserved = [row for row in batch.preserved if row in rows]
    if preserved == rows:
        return Targets(outside, outside)
    of_preserved = prediction.index_select(0, _indices([rows.index(row) for row in preserved], device))
    return Targets(noisy.target.index_copy(0, _indices(preserved, device), of_preserved), outside)


def _indices(rows: Sequence[int], device: torch.device) -> Tensor:
    return to_device(torch.tensor(rows, dtype=torch.int64), device)
