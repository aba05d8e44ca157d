"""`plan(recipe)`: what a run will train, and take of memory, disk and time, from a trial step."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import torch

from lora_studio.adapters import ADAPTERS
from lora_studio.families.base import innermost_blocks
from lora_studio.processes import find_device
from lora_studio.recipe import Recipe
from lora_studio.recipe.adapter import NO_ADAPTER
from lora_studio.recipe.load import load_recipe
from lora_studio.runs import ReadOnlyRun, run_folder
from lora_studio.text import Rows, duration, memory_size
from lora_studio.training.events import Event, Listener, Progress, TrainingPlan, ignore_events
from lora_studio.training.machine import Waiting, unless_out_of_memory
from lora_studio.training.machine.offload import own_weights
from lora_studio.training.planning.cards import memory_bytes
from lora_studio.training.planning.memory import (
    TEXT_ENCODERS,
    Disk,
    Memory,
    measure_activations,
    measure_disk,
    measure_memory,
    sizes_of_text_blocks,
)
from lora_studio.training.planning.offloading import Offloading
from lora_studio.training.planning.untouched import error_rows, untouched_error
from lora_studio.training.prepare import Session, all_blocks, prepare
from lora_studio.training.prepare.checks import offload_faults
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
    base_error: float | None = None  # of flow matching: the untouched base's, by the target's variance

    @property
    def rows(self) -> Rows:
        """(title, text): memory, how it could fit, disk, and the time before the first step."""
        made = ", ".join(f"{count} {what}" for what, count in self.cached.items())
        before = f"{duration(self.seconds_of_preparing)} to read, check and encode"
        rows = [
            *self.memory.rows(self.training.data["device"]),
            *advice_rows(self.memory, self.advice),
            *self.disk.rows(),
            ("before it", f"{before}; {made} were computed and are cached now" if made else before),
            *error_rows(self.base_error),
        ]
        if self.folder_in_use:
            folder = self.training.data["folder"]
            rows.append(("note", f"{folder} holds a run already: continue it with --resume, or use --out"))
        return rows

    def to_json(self) -> dict[str, Any]:
        """Bytes and seconds by name, with the sums."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        values |= {"training": self.training.data, "memory": self.memory.to_json()}
        values["disk"] = asdict(self.disk) | {"total": self.disk.total}
        values["timing"] = asdict(self.timing) | {"total": self.timing.total}
        values["advice"] = [asdict(one) for one in self.advice]
        return dict(json.loads(json.dumps(values)))


def plan(
    recipe: Recipe | Path | str,
    *,
    memory_gib: float | None = None,
    on_event: Listener = ignore_events,
    choose_offload: Callable[..., Waiting] = all_blocks,
) -> RunPlan:
    """What a run of the recipe, or of the one in a TOML file, will train and take.

    Images and captions that are not in the caches yet are encoded, and regularization images drawn, as a run
    would do; nothing else is written. `memory_gib`: instead of what this machine's device has free.
    `choose_offload`: as for `prepare`, with `room` in bytes. Raises StudioError for whatever the user can
    fix.
    """
    if not isinstance(recipe, Recipe):
        recipe = load_recipe(Path(recipe))
    run, counter = ReadOnlyRun(run_folder(recipe.name)), _CacheCounter(on_event)
    began = time.perf_counter()
    with torch.random.fork_rng():  # libraries draw first values of adapters, which ours then replace
        room = _free_memory(recipe) if memory_gib is None else memory_bytes(memory_gib)
        session = prepare(recipe, run, counter, choose_offload=partial(choose_offload, room=room))
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
            base_error=unless_out_of_memory(partial(untouched_error, session)),
        )


def _free_memory(recipe: Recipe) -> int:
    device = find_device(recipe.machine.device)
    if device is not None and device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return int(psutil.virtual_memory().available)


class _CacheCounter:
    """A listener that passes events on and counts what is made for the caches."""

    def __init__(self, listener: Listener) -> None:
        self.listener, self.cached = listener, dict[str, int]()

    def __call__(self, event: Event) -> None:
        self.listener(event)
        if isinstance(event, Progress) and event.what in ("latents", "captions", "regularization images"):
            self.cached[event.what] = event.done


LOWER = {1024: 768, 768: 512}  # sides of the areas that bases are used at
LAST = "take a smaller base or another device"
NF4_BYTES = 0.5 + 4 / 64  # of a number: four bits, and a float32 for every 64
BFLOAT16_SHARE = 0.5


@dataclass(frozen=True)
class Advice:
    """A change of the recipe, and what each part of the memory is multiplied by with it."""

    change: str  # in the words of --set
    cost: str  # what one pays for it
    as_good: bool  # the result
    measured: bool  # else counted, or the least it brings
    activations: float = 1.0
    previews: float = 1.0
    parts: dict[str, float] = field(default_factory=dict)
    stages: dict[str, float] = field(default_factory=dict)
    saves: int = 0  # bytes, alone
    enough: bool = False  # alone

    def applied(self, memory: Memory) -> Memory:
        """The memory with this change alone, in bytes."""
        return replace(
            memory,
            activations=round(memory.activations * self.activations),
            previews=round(memory.previews * self.previews),
            parts=_scaled(memory.parts, self.parts),
            stages=_scaled(memory.stages, self.stages),
        )


def _scaled(sizes: Mapping[str, int], shares: Mapping[str, float]) -> dict[str, int]:
    return {name: round(size * shares.get(name, 1.0)) for name, size in sizes.items()}


def advise(session: Session, memory: Memory) -> tuple[Advice, ...]:
    """What helps, best first: enough by itself, as good a result, the most memory. Nothing if it fits."""
    if memory.fits:
        return ()
    tried = ((one, one.applied(memory)) for one in _candidates(session, memory))
    found = [replace(one, saves=memory.total - then.total, enough=then.fits) for one, then in tried]
    helpful = (one for one in found if one.saves > 0)
    return tuple(sorted(helpful, key=lambda one: (not one.enough, not one.as_good, -one.saves)))


def together(memory: Memory, advice: Sequence[Advice]) -> tuple[int, Memory]:
    """How many of the first ones are needed until it fits, and the memory then; all if not even they do."""
    for count, one in enumerate(advice, start=1):
        memory = one.applied(memory)
        if memory.fits:
            return count, memory
    return len(advice), memory


def advice_rows(memory: Memory, advice: Sequence[Advice]) -> Rows:
    """What to change, best first, and how many of these are enough together; nothing if it fits."""
    if memory.fits:
        return []
    if not advice:
        return [("change", f"nothing helps: {LAST}")]
    rows = [("change" if one is advice[0] else "", _in_words(one)) for one in advice]
    if not advice[0].enough:
        count, after = together(memory, advice)
        which = "all of these" if count == len(advice) else f"the first {count} of these"
        result = "which fits" if after.fits else f"which does not fit either: {LAST}"
        rows.append(("", f"{which} together: about {memory_size(after.total)}, {result}"))
    return rows


def _in_words(one: Advice) -> str:
    enough = ", enough alone" if one.enough else ""
    known = "measured" if one.measured else "counted"
    return f"{one.change}: {memory_size(one.saves)} less ({known}){enough}; {one.cost}"


def _candidates(session: Session, memory: Memory) -> Iterator[Advice]:
    yield from _checkpointing(session, memory)
    yield from _smaller_batch(session, memory)
    yield from _fewer_bits(session, memory)
    if session.family.device.type != "cpu":
        yield from in_main_memory(session, memory)
    yield from _lower_resolution(session)
    if session.recipe.samples.prompts:
        yield Advice("samples.prompts = []", "no previews to judge by", True, False, previews=0.0)


def _checkpointing(session: Session, memory: Memory) -> Iterator[Advice]:
    denoiser = session.family.parts[session.family.denoiser]
    can_be_less = memory.activations and hasattr(denoiser, "enable_gradient_checkpointing")
    if session.recipe.machine.gradient_checkpointing or not can_be_less:
        return
    denoiser.enable_gradient_checkpointing()  # type: ignore[operator]
    try:
        share = measure_activations(session) / memory.activations
    finally:
        denoiser.disable_gradient_checkpointing()  # type: ignore[operator]
    cost = "the same result, and steps take about a third longer"
    yield Advice("machine.gradient_checkpointing = true", cost, True, True, activations=share)


def _smaller_batch(session: Session, memory: Memory) -> Iterator[Advice]:
    """The largest part of the batch that is enough, or one image at a time."""
    training = session.recipe.training
    divisors = [rows for rows in range(training.batch_size - 1, 0, -1) if training.batch_size % rows == 0]
    for rows in divisors if memory.activations else ():
        share = measure_activations(session, rows=rows) / memory.activations
        gradient_accumulation = training.gradient_accumulation * training.batch_size // rows
        change = f"training.batch_size = {rows}, training.gradient_accumulation = {gradient_accumulation}"
        advice = Advice(change, "as many images a step, which takes longer", True, True, activations=share)
        if rows == 1 or advice.applied(memory).fits:
            yield advice
            return


def _fewer_bits(session: Session, memory: Memory) -> Iterator[Advice]:
    family, recipe = session.family, session.recipe
    if session.machine.dtype == torch.float32:
        parts = {name: BFLOAT16_SHARE for name in memory.parts if name != "vae"}
        yield Advice('base.dtype = "bfloat16"', "the base is a little less exact", False, False, parts=parts)
    if recipe.base.quantize != "none" or family.denoiser not in memory.parts or not stays_whole(recipe):
        return
    adapted = [layer for layer in session.adapters.layers if layer.part == family.denoiser]
    weights = [layer.module.get_base_layer().weight for layer in adapted]
    linear = [weight for weight in weights if weight.dim() == 2]
    saved = sum(weight.nbytes - weight.numel() * NF4_BYTES for weight in linear)
    share = 1 - saved / memory.parts[family.denoiser]
    cost = "the base is less exact, and slower; needs bitsandbytes"
    yield Advice('base.quantize = "bnb_nf4"', cost, False, False, parts={family.denoiser: share})


def in_main_memory(session: Session, memory: Memory) -> Iterator[Advice]:
    """All blocks of the denoiser and of the text encoder: the most that "auto" can have wait."""
    family, recipe = session.family, session.recipe
    machine = recipe.machine.model_copy(update={"offload_blocks": "auto"})
    asked = recipe.model_copy(update={"machine": machine})
    refused = not stays_whole(recipe) or offload_faults(asked, session.processes)
    if recipe.machine.offload_blocks or refused or family.denoiser not in memory.parts:
        return
    joined, denoiser = session.adapters.joined, family.parts[family.denoiser]
    blocks = [own_weights(one, joined) for one in innermost_blocks(denoiser)]
    sizes = {
        family.denoiser: [sum(one.nbytes for one in own) for own in blocks],
        TEXT_ENCODERS: sizes_of_text_blocks(family),
    }
    held = {**memory.parts, **memory.stages}
    left = {
        name: 1 - Offloading(of, len(of)).freed / held[name] for name, of in sizes.items() if name in held
    }
    cost = "the same result; steps may wait for weights from main memory"
    yield Advice('machine.offload_blocks = "auto"', cost, True, False, parts=left, stages=left)


def stays_whole(recipe: Recipe) -> bool:
    """Whether the denoiser's own layers are neither trained nor read: it can be quantised and offloaded."""
    if recipe.adapter.kind == NO_ADAPTER:
        return True
    kind = ADAPTERS[recipe.adapter.kind]
    return not kind.trains_layers and not kind.reads_weight and recipe.adapter.start == "default"


def lower_side(side: int) -> int | None:
    """The next smaller one that bases are used at."""
    return next((LOWER[one] for one in LOWER if one <= side), None)


def _lower_resolution(session: Session) -> Iterator[Advice]:
    side = session.recipe.data.resolution
    if (lower := lower_side(side)) is not None:
        share = (lower / side) ** 2
        cost = "details are learned less well"
        yield Advice(f"data.resolution = {lower}", cost, False, False, activations=share, previews=share)
