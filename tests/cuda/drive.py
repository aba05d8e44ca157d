"""`lora_studio.train` on a pretended GPU: all of a run but what asks for numbers or files that nobody has."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

from audit import Audit, place_of
from bases import make_base
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.image_processor import VaeImageProcessor
from PIL import Image
from pretend import CAPABILITY, pretended_cuda
from torch import Tensor

from lora_studio.adapters import inject
from lora_studio.data.cache.store import TensorStore
from lora_studio.data.feed import Prefetcher
from lora_studio.evaluate.validation import Validation
from lora_studio.families.base import ModelFamily
from lora_studio.recipe import Recipe
from lora_studio.training import session as session_module
from lora_studio.training.finish.verified import probe
from lora_studio.training.loop import Loop
from lora_studio.training.loop import state as state_module
from lora_studio.training.loop import watch as watch_module
from lora_studio.training.loop.watch import PreviewWatch
from lora_studio.training.planning.memory import measure_memory
from lora_studio.training.prepare import Session, checks
from lora_studio.training.prepare import data as data_module
from lora_studio.training.report import counts
from lora_studio.training.session import train

FIRST_AUDITED = 2  # the first step may make what is made once


@dataclass
class Peak:
    """Bytes on the GPU when a phase began, the first time, and at most in it."""

    before: int
    peak: int


@dataclass
class Outcome:
    """What was seen of one run, plain enough for JSON."""

    fault: str = ""  # what stopped it
    device: str = ""
    dtype: str = ""
    blocking: dict[str, int] = field(default_factory=dict)  # in audited steps, by what and where
    reads_back: list[int] = field(default_factory=list)  # asynchronous ones, of each audited step
    events: list[str] = field(default_factory=list)  # the devices on whose streams they were recorded
    misplaced: list[str] = field(default_factory=list)  # trained tensors, and those of the optimizer
    denoiser_bytes: int = 0  # of its frozen weights
    planned_bytes: int = 0  # what the plan says of them
    phases: dict[str, Peak] = field(default_factory=dict)
    order: list[str] = field(default_factory=list)  # of the last audited step: see `Audit.orders`
    offloaded: dict[str, int] = field(
        default_factory=dict
    )  # bytes that come and go, and of them there at most


def drive(
    base: str,
    recipe: Recipe,
    folder: Path,
    *,
    capability: tuple[int, int] = CAPABILITY,
    count_bytes: bool = False,
    plans: bool = False,
    times: bool = False,
) -> Outcome:
    """Train the recipe on a base of `bases.py`, and ask for its plan's memory or times."""
    outcome, audit = Outcome(), Audit(count_bytes=count_bytes)
    with (
        pretended_cuda(audit, capability),
        _without_numbers(base),
        _watched(audit, outcome, plans=plans, times=times),
    ):
        try:
            train(recipe, folder / "run")
        except Exception as error:
            place = place_of(traceback.extract_tb(error.__traceback__))
            outcome.fault = f"{type(error).__name__} {place}: {error}"
    outcome.blocking = dict(audit.found)
    return outcome


@contextmanager
def _without_numbers(base: str) -> Iterator[None]:
    """Stands in for what compares, hashes or stores numbers: of fake tensors there are none."""
    stored: dict[str, dict[str, Tensor]] = {}
    with ExitStack() as stack:

        def instead(owner: object, name: str, value: object) -> None:
            stack.enter_context(patch.object(owner, name, value))

        instead(checks, "base_of", lambda recipe, **_: make_base(base))
        instead(checks, "machine_faults", lambda machine: [])  # options are compared with float32's results
        instead(checks, "trial_faults", lambda *_: [])  # so are optimizers
        instead(ModelFamily, "fingerprint", lambda family, part: part)
        instead(ModelFamily, "text_fingerprint", lambda family: "text")
        instead(TensorStore, "save", lambda store, key, tensors: stored.update({key: tensors}))
        instead(TensorStore, "load", lambda store, key: stored.get(key))
        instead(TensorStore, "has", lambda store, key: key in stored)
        instead(state_module, "save", lambda tensors: b"")
        # a fake tensor is a subclass, which is refused as quantised
        instead(inject, "_readable", lambda layer, name, options: layer.weight)
        instead(VaeImageProcessor, "postprocess", _blank_images)
        instead(FlowMatchEulerDiscreteScheduler, "index_for_timestep", lambda *_, **__: 0)
        instead(session_module, "finish", _probe_and_preview)
        # the read-ahead's thread knows nothing of fake tensors
        instead(Prefetcher, "get", lambda ahead, step, number: ahead._make(step, number))
        yield


def _blank_images(processor: VaeImageProcessor, image: Tensor, **_: object) -> list[Image.Image]:
    image.cpu()
    return [Image.new("RGB", (image.shape[3], image.shape[2]))] * len(image)


def _probe_and_preview(session: Session, previews: PreviewWatch, *_: object, **__: object) -> None:
    """The end of a run without its file."""
    with session.loop.state.shown():
        probe(session)
        previews.finish()


@contextmanager
def _watched(audit: Audit, outcome: Outcome, *, plans: bool, times: bool) -> Iterator[None]:
    """Fills the outcome in while a run goes through its phases."""

    def phase(name: str, work: Callable[..., Any]) -> Callable[..., Any]:
        def watched(*arguments: Any, **named: Any) -> Any:
            before = audit.bytes.now
            audit.bytes.restart()
            try:
                return work(*arguments, **named)
            finally:
                known = outcome.phases.setdefault(name, Peak(before, 0))
                known.peak = max(known.peak, audit.bytes.peak)

        return watched

    def train_step(loop: Loop, step: int, *arguments: Any) -> bool:
        if step < FIRST_AUDITED:
            return trained(loop, step, *arguments)
        with audit.of_step(step):
            stops = trained(loop, step, *arguments)
        outcome.reads_back.append(audit.reads_back)
        outcome.events = sorted({*outcome.events, *map(str, audit.events)})
        outcome.order = [*audit.order]
        return stops

    def run(loop: Loop, first_step: int) -> bool:
        went = ran(loop, first_step)
        outcome.misplaced = _misplaced(loop)
        return went

    def prepared(*arguments: Any, **named: Any) -> Session:
        session = prepare(*arguments, **named)
        outcome.device, outcome.dtype = str(session.machine.device), str(session.machine.dtype)
        if session.offloaded is not None:
            sizes = sorted(session.offloaded.sizes)
            outcome.offloaded = {"all": sum(sizes), "there": sum(sizes[-2:])}
        if plans:
            _plan(session, outcome)
        return session

    trained, ran, prepare = Loop.train_step, Loop.run, session_module.prepare
    with ExitStack() as stack:
        if not times:
            stack.enter_context(patch.object(session_module, "time_everything", counts))
        for owner, name, value in (
            (Loop, "train_step", phase("training", train_step)),
            (Loop, "run", run),
            (session_module, "prepare", prepared),
            (data_module, "_latents", phase("images", data_module._latents)),
            (data_module, "prepare_texts", phase("captions", data_module.prepare_texts)),
            (Validation, "losses", phase("validation", Validation.losses)),
            (watch_module, "render", phase("previews", watch_module.render)),
        ):
            stack.enter_context(patch.object(owner, name, value))
        stack.enter_context(patch.dict(globals(), probe=phase("probe", probe)))
        yield


def _misplaced(loop: Loop) -> list[str]:
    """What is trained, and what the optimizer keeps of it, unless that is a count of steps."""
    wanted, adapters = loop.machine.device, loop.state.adapters.named_parameters()
    states = {
        f"{key} of {name}": value
        for name, tensor in adapters.items()
        for key, value in loop.state.optimizer.state.get(tensor, {}).items()
        if isinstance(value, Tensor) and value.dim()
    }
    return [name for name, one in (adapters | states).items() if one.device != wanted]


def _plan(session: Session, outcome: Outcome) -> None:
    part = session.family.denoiser
    ours = {id(one) for one in session.adapters.named_parameters().values()}
    tensors = [*session.family.parts[part].parameters(), *session.family.parts[part].buffers()]
    outcome.denoiser_bytes = sum(one.nbytes for one in tensors if id(one) not in ours)
    outcome.planned_bytes = measure_memory(session, room=0).parts.get(part, 0)
