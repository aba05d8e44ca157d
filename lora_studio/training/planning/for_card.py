"""`plan_for(recipe, card)`: what a run takes on a graphics card that this machine does not have."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from lora_studio.errors import RecipeError
from lora_studio.families.base import ModelFamily
from lora_studio.processes import BFLOAT16_FROM
from lora_studio.quantization import NONE
from lora_studio.quiet import paused_collector
from lora_studio.recipe import Recipe
from lora_studio.recipe.load import load_recipe, with_steps
from lora_studio.text import Rows, duration, memory_size
from lora_studio.training.machine import Machine, Waiting
from lora_studio.training.planning import GIB
from lora_studio.training.planning.card_changes import CardChange, base_dtype, changes_until_it_fits
from lora_studio.training.planning.cards import Card, find_card, memory_bytes
from lora_studio.training.planning.counting import Work
from lora_studio.training.planning.offloading import BUS_GBS, Offloading
from lora_studio.training.planning.simulation import (
    Phase,
    simulate,
)
from lora_studio.training.planning.simulation.images import Shapes, shapes_of
from lora_studio.training.planning.simulation.session import base_without_weights
from lora_studio.training.prepare.checks import name_faults

CONTEXT = GIB // 2  # CUDA's own and its libraries': 0.3 to 0.5 GiB
GAPS = 0.04  # of the rest, between the allocator's blocks
LIBRARIES = 2 * GIB  # of main memory: Python, torch, and what a run of SDXL on a CPU took beside its base


@dataclass(frozen=True)
class Range:
    """Seconds, from a well used card to a badly used one."""

    low: float
    high: float

    def times(self, count: float) -> Range:
        return Range(self.low * count, self.high * count)

    def __str__(self) -> str:
        low, high = (duration(one) if one >= 20 else f"{one:.2g} s" for one in (self.low, self.high))
        return f"{low} to {high}"


# Shares of the peak rates that training reaches, and seconds that the host takes for a launch.
FAST, SLOW = (0.60, 0.85, 5e-6), (0.25, 0.50, 20e-6)


def bus_seconds(size: int) -> Range:
    """Of so many bytes from pinned main memory."""
    return Range(*(size / (rate * 1e9) for rate in BUS_GBS))


def step_seconds(work: Work, card: Card, *, tf32: bool, copied: int = 0) -> Range | None:
    """Of one optimizer step, beside which so many bytes come over the bus; None for a card without rates."""
    if card.matrix_tflops is None or card.float32_tflops is None or card.bandwidth_gbs is None:
        return None
    float32 = card.matrix_tflops / 2 if tf32 and card.capability >= BFLOAT16_FROM else card.float32_tflops
    rates = {torch.float32: float32}

    def seconds(share: float, of_bandwidth: float, launch: float) -> float:
        products = sum(
            flops / (share * rates.get(dtype, card.matrix_tflops or 0) * 1e12)
            for dtype, flops in work.flops.items()
        )
        device = products + work.bytes / (of_bandwidth * (card.bandwidth_gbs or 0) * 1e9)
        return max(device, work.launches * launch)

    bus = bus_seconds(copied)
    return Range(max(seconds(*FAST), bus.low), max(seconds(*SLOW), bus.high))


@dataclass(frozen=True)
class CardPlan:
    """What a run takes on a card, phase by phase, counted on tensors without content."""

    name: str
    card: Card
    precision: str
    memory: int  # bytes of the card, or what --memory says
    phases: tuple[Phase, ...]
    step: Range | None  # seconds
    steps: int | None  # None: in epochs of images that are not there
    work: Work  # of a step
    main_memory: int  # bytes of the machine's
    changes: tuple[CardChange, ...]  # none if it fits
    notes: tuple[str, ...]
    offloading: Offloading
    text_offloading: Offloading
    copied: int  # bytes that come from main memory in a step

    @property
    def usable(self) -> int:
        return usable_memory(self.memory)

    @property
    def fullest(self) -> Phase:
        return max(self.phases, key=lambda one: one.peak)

    @property
    def fits(self) -> bool:
        return self.fullest.peak <= self.usable

    def peak(self, phase: str) -> int:
        """Bytes; raises KeyError for a phase that this run does not have."""
        return {one.name: one.peak for one in self.phases}[phase]

    @property
    def rows(self) -> Rows:
        rows = [*self._memory_rows(), *self._offload_rows(), *self._change_rows()]
        return [*rows, *self._time_rows(), *self._other_rows()]

    def to_json(self) -> dict[str, Any]:
        """Bytes, flops and seconds by name; `fits` is what the exit code says."""
        return {
            "name": self.name,
            "card": asdict(self.card),
            "precision": self.precision,
            "memory": self.memory,
            "usable": self.usable,
            "fits": self.fits,
            "phases": [asdict(one) | {"peak": one.peak} for one in self.phases],
            "changes": [asdict(one) for one in self.changes],
            "seconds_per_step": None if self.step is None else asdict(self.step),
            "steps": self.steps,
            "flops": {str(d).removeprefix("torch."): flops for d, flops in self.work.flops.items()},
            "bytes_moved": self.work.bytes,
            "launches": self.work.launches,
            "main_memory": self.main_memory,
            "offload_blocks": self.offloading.blocks,
            "offloaded_bytes": sum(self.offloading.waiting),
            "copied": self.copied,
            "offload_text_blocks": self.text_offloading.blocks,
            "copied_per_caption": sum(self.text_offloading.waiting),
            "notes": list(self.notes),
        }

    def _memory_rows(self) -> Rows:
        full = self.fullest
        verdict = "it fits" if self.fits else "it DOES NOT FIT"
        what = f"{memory_size(full.peak)} at most, while {WHILE[full.name]}: {verdict}"
        spare = f"usable are {memory_size(self.usable)} of {memory_size(self.memory)}"
        rows = [
            ("memory", what),
            ("", f"{spare}: {memory_size(CONTEXT)} for CUDA itself, {GAPS:.0%} for gaps between tensors"),
        ]
        return rows + [(one.name, _phase_in_words(one)) for one in self.phases]

    def _offload_rows(self) -> Rows:
        rows = list[tuple[str, str]]()
        if (text := self.text_offloading).blocks:
            what = f"{text.blocks} of {len(text.sizes)} blocks of the text encoder wait in main memory"
            seconds = bus_seconds(sum(text.waiting))
            rows.append(("offload", f"{what}: {seconds} for each caption, which is cached then"))
        if not self.offloading.blocks:
            return rows
        blocks, size = self.offloading.blocks, memory_size(sum(self.offloading.waiting))
        what = f"{blocks} of {len(self.offloading.sizes)} blocks of the base wait in main memory, {size}"
        time, rates = bus_seconds(self.copied), "{:g} or {:g} GB/s".format(*BUS_GBS)
        cost = f"a step copies {memory_size(self.copied)}, {time} at {rates}, while it computes"
        return [*rows, ("offload", what), ("", f"{cost}: it takes as long as the longer of the two")]

    def _change_rows(self) -> Rows:
        rows = [
            ("change" if one is self.changes[0] else "and", _change_in_words(one)) for one in self.changes
        ]
        if not self.fits and not (self.changes and self.changes[-1].fits):
            rows.append(("", "even that does not fit: take a smaller base or a card with more memory"))
        return rows

    def _time_rows(self) -> Rows:
        if self.step is None:
            return [("time", "not known without the card's rates; give its name as --for NAME")]
        total = "" if self.steps is None else f"; {self.step.times(self.steps)} for {self.steps} steps"
        flops = sum(self.work.flops.values()) / 1e12
        moved = self.work.bytes / 1e9
        counted = f"{flops:.3g} TFLOP, {moved:.3g} GB moved and {self.work.launches:,} launches a step"
        low, high = (f"{one[0]:.0%} and {one[1]:.0%}" for one in (FAST, SLOW))
        return [
            ("time", f"{self.step} a step{total}; encoding, validation and previews come on top"),
            ("", f"from {counted}, at {low} of the card's matrix rate and bandwidth, or {high}"),
        ]

    def _other_rows(self) -> Rows:
        rows = [("main memory", f"about {memory_size(self.main_memory)}, for the base and the libraries")]
        return rows + [("note", note) for note in self.notes]


WHILE = {
    "encoding images": "images are encoded",
    "encoding captions": "captions are encoded",
    "training": "it trains",
    "validation": "the validation loss is measured",
    "previews": "previews are drawn",
    "verifying the file": "the file is verified",
    "drawing regularization images": "regularization images are drawn",
}


def usable_memory(memory: int) -> int:
    return round((memory - CONTEXT) * (1 - GAPS))


def _phase_in_words(phase: Phase) -> str:
    held = {**phase.weights, **{name: size for name, size in phase.learned.items() if size}}
    parts = [f"{memory_size(size)} {name}" for name, size in held.items() if size >= GIB / 100]
    working = f"{memory_size(phase.working)} {phase.working_name}"
    return f"{memory_size(phase.peak)} = {' + '.join([*parts, working])}"


def _change_in_words(one: CardChange) -> str:
    verdict = "it fits" if one.fits else "not enough yet"
    return f"{one.change}: {memory_size(one.peak)} while {WHILE[one.phase]}, {verdict}; {one.cost}"


@paused_collector()
def plan_for(recipe: Recipe | Path | str, card: Card | str, *, memory_gib: float | None = None) -> CardPlan:
    """What a run of the recipe would take on a card, by running all its phases on tensors without content.

    Needs neither the card nor the base's weights nor, for a published base, any file of it; if the recipe's
    images are there, their largest bucket decides, else data.resolution. `card`: one, or its name, or "cuda"
    with `memory_gib`, which also stands in for the memory of a named one. Raises StudioError for whatever the
    user can mend.
    """
    if not isinstance(recipe, Recipe):
        recipe = load_recipe(Path(recipe))
    if isinstance(card, str):
        card = find_card(card, memory_gib=memory_gib)
    if faults := name_faults(recipe):
        raise RecipeError("\n".join(faults))
    memory = memory_bytes(card.memory_gib if memory_gib is None else memory_gib)
    recipe, absent = _without_absent_helper(recipe)
    dtype = base_dtype(recipe, card.precision)
    steps = recipe.training.steps if recipe.training.epochs is None else None
    if recipe.training.epochs is not None:
        recipe = with_steps(recipe, recipe.training.steps)
    with torch.random.fork_rng():
        family = base_without_weights(recipe)
        shapes, in_main_memory = shapes_of(recipe, family), main_memory(family, dtype)
        usable = usable_memory(memory)
        found = simulate(recipe, family, dtype, shapes, usable=usable)
        changes = tuple(changes_until_it_fits(recipe, dtype, found, usable))
    offloading = found.blocks[found.denoiser]
    text = [one for part, one in found.blocks.items() if part != found.denoiser]
    copied = offloading.copied(recipe.training.gradient_accumulation)
    return CardPlan(
        name=recipe.name,
        card=card,
        precision=str(dtype).removeprefix("torch."),
        memory=memory,
        phases=found.phases,
        step=step_seconds(found.work, card, tf32=recipe.machine.tf32, copied=copied),
        steps=steps,
        work=found.work,
        main_memory=in_main_memory,
        changes=changes,
        notes=(*absent, *_notes(recipe, card, shapes, dtype)),
        offloading=offloading,
        text_offloading=text[0] if text else Offloading((), 0),
        copied=copied,
    )


def fewest_blocks_in_main_memory(recipe: Recipe, machine: Machine, room: int | None = None) -> Waiting:
    """How many a run needs there to fit on the GPU, by simulation; `room`: bytes in place of what is free."""
    if room is None:
        room = torch.cuda.mem_get_info(machine.device)[0]
    recipe, _ = _without_absent_helper(recipe)
    with torch.random.fork_rng():
        family = base_without_weights(recipe)
        shapes, usable = shapes_of(recipe, family), usable_memory(room)
        found = simulate(recipe, family, machine.dtype, shapes, usable=usable)
    return Waiting(*(one.blocks for one in found.blocks.values()))


def _without_absent_helper(recipe: Recipe) -> tuple[Recipe, tuple[str, ...]]:
    """Without a training adapter that is still to be fetched, and a note on that."""
    helper = recipe.base.training_adapter
    if helper is None or helper.exists():
        return recipe, ()
    base = recipe.base.model_copy(update={"training_adapter": None})
    note = f"base.training_adapter is not there and was left out: {helper.name} takes its size besides"
    return recipe.model_copy(update={"base": base}), (note,)


def main_memory(family: ModelFamily, dtype: torch.dtype) -> int:
    """Bytes at most: the base, whose tensors are cast as they are read, and what programs take.

    Of a staged base one part at a time is there, the largest at most.
    """
    parts = ((part, torch.float32 if name == "vae" else dtype) for name, part in family.parts.items())
    sizes = [kept.itemsize * sum(one.numel() for one in part.parameters()) for part, kept in parts]
    return (max(sizes) if family.staged else sum(sizes)) + LIBRARIES


def _notes(recipe: Recipe, card: Card, shapes: Shapes, dtype: torch.dtype) -> Iterator[str]:
    bucket = f"{shapes.images} of {shapes.bucket.width}x{shapes.bucket.height}"
    if shapes.is_known:
        yield f"the largest micro-batch of the recipe's images is {bucket}"
    else:
        by = "as training.batch_size and data.resolution say"
        yield f"the recipe's images are not there: {bucket} were taken, {by}"
    if dtype == torch.bfloat16 and card.capability < BFLOAT16_FROM:
        slow = f"is emulated on the {card.name}, and many times slower"
        yield f'base.dtype = "bfloat16" {slow}; leave it out, and it is float16'
    if recipe.base.quantize != NONE:
        kept = "the bytes that are kept, and a whole weight while it is used"
        yield f"base.quantize = {recipe.base.quantize!r} is arithmetic: {kept}"
    if recipe.machine.compile is True or recipe.machine.attention != "sdpa":
        yield "without machine.compile and with torch's own attention, which take about as much memory"
