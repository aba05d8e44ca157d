"""Images from a run's base with what its checkpoints hold: adapters are swapped, the base stays loaded."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

import torch
from PIL import Image
from torch import Tensor

from lora_studio.adapters.adapter_set import AdapterSet
from lora_studio.errors import StudioError
from lora_studio.evaluate.artist import Brush
from lora_studio.evaluate.result import Size, Variant
from lora_studio.files import digest
from lora_studio.quantization import NONE
from lora_studio.runs.reading import STATE
from lora_studio.training.loop.state import State, load_state
from lora_studio.training.prepare import TrainedRun

WeightChange = tuple[Tensor, Callable[[], Tensor]]  # a weight, and what makes its change in float32


@dataclass
class TrainedArtist:
    """Draws through a run's own family and adapters, in training or after it.

    A variant without a step is what the adapters hold now; another one's checkpoint is loaded into them, with
    all that belongs to it, and stays there until the next: one that trains loads its own again.
    """

    trained: TrainedRun
    state: State
    brush: Brush
    drawn_with: Mapping[str, str | int | float] = field(init=False)

    def __post_init__(self) -> None:
        quantized = self.trained.recipe.base.quantize
        own: dict[str, str | int | float] = {"quantized": quantized} if quantized != NONE else {}
        if rank := self.trained.processes.rank:  # each of several takes away its own, once measured
            own["process"] = rank
        self.drawn_with = dict(self.brush.drawn_with) | own

    def draw(
        self, asked: Sequence[tuple[str, int]], variant: Variant | None, size: Size | None = None
    ) -> list[Image.Image]:
        """One image for each prompt and seed; of the base alone without a variant."""
        with self.showing(variant):
            return self.brush.draw(asked, size)

    def learned(self, variant: Variant) -> str:
        """SHA-256 of the checkpoint's state, which has the digests of all else in it.

        Of what is not saved yet over all that was learned, as it is shown; the strength is not in it.
        """
        if variant.step is not None:
            path = self.trained.run.checkpoint_of(variant.step) / STATE
            if path.is_file():
                return digest(path)
        self.load(variant.step)
        seen = hashlib.sha256()
        with self.state.shown():
            for key, tensor in sorted(self.trained.adapters.state().items()):
                seen.update(f"{key} {tuple(tensor.shape)}\n".encode())
                seen.update(tensor.contiguous().numpy().tobytes())
        return seen.hexdigest()

    @contextmanager
    def showing(self, variant: Variant | None) -> Iterator[None]:
        """Within it the family is the base, or has a variant. Raises StudioError for another strength."""
        if variant is None:
            with self.trained.adapters.disabled():
                yield
            return
        if fault := strength_fault(self.trained, [variant.strength]):
            raise StudioError(f"{fault}.")
        self.load(variant.step)
        with self.state.shown(), at_strength(self.trained.adapters, variant.strength):
            yield

    def load(self, step: int | None) -> None:
        """A checkpoint into adapters and optimizer, unless they hold it. Raises CheckpointError."""
        if step is not None and step != self.state.counters.step:
            load_state(self.trained.run.checkpoint_of(step), self.state)


def strength_fault(trained: TrainedRun, strengths: Iterable[float]) -> str:
    """Why not all of them can be shown, as what is no change of a weight has one; empty if they can."""
    why = "has its base in few bits" if trained.machine.quantize != NONE else ""
    if trained.machine.offloads:
        why = "has blocks of its base in main memory"
    if not trained.adapters.layers:
        why = "learned words alone"
    if trained.adapters.trains_layers:
        why = "trained the base's own layers"
    different = any(one != 1 for one in strengths)
    return f"this run {why}, so it can be shown with strength 1 alone" if why and different else ""


@contextmanager
def at_strength(adapters: AdapterSet, strength: float) -> Iterator[None]:
    """At strength 1 through the adapters, else with their changes in the weights; words as learned."""
    if strength == 1:
        yield
        return
    with ExitStack() as stack:
        changes = [(one.module.get_base_layer().weight, one.delta) for one in adapters.layers]
        stack.enter_context(added(changes, strength))
        for one in adapters.layers:  # not the learned tokens
            one.module.enable_adapters(False)
            stack.callback(one.module.enable_adapters, True)
        yield


@contextmanager
def added(changes: Sequence[WeightChange], strength: float) -> Iterator[None]:
    """Within it the weights have their changes in them; afterwards they are what they were, bit for bit."""
    before = list[tuple[Tensor, Tensor]]()
    with torch.no_grad():
        try:
            for weight, change in changes:
                before.append((weight, weight.detach().to("cpu", copy=True)))
                moved = strength * change().to(weight.device).view(weight.shape)
                weight.copy_(weight.float() + moved)
            yield
        finally:
            for weight, value in before:
                weight.copy_(value)
