"""A run on a GPU that is not there: each phase by the code that runs it, on tensors without content."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import cache, partial

import numpy as np
import torch

from lora_studio.data.batches import cut_by_bucket
from lora_studio.data.conditioning import TEXT_BYTES
from lora_studio.data.regularization_images import BATCH_PIXELS as DRAWN_PIXELS
from lora_studio.data.regularization_images import MAX_BATCH as DRAWN_AT_ONCE
from lora_studio.data.regularization_images import ImageRequest
from lora_studio.evaluate.previews import drawn_together, keep_prompts, render
from lora_studio.evaluate.validation import TIMESTEPS
from lora_studio.families.base import ModelFamily, innermost_blocks
from lora_studio.lora_file.write import DTYPES
from lora_studio.recipe import Recipe
from lora_studio.recipe.training import SamplesConfig
from lora_studio.training.finish.verified import probe
from lora_studio.training.loop.state import State
from lora_studio.training.loop.step_result import GradientWatch
from lora_studio.training.machine.offload import blocks_of_text, own_weights
from lora_studio.training.planning.counting import CUDAS_BLOCK, LiveBytes, Work
from lora_studio.training.planning.memory import adapter_bytes
from lora_studio.training.planning.offloading import Offloading
from lora_studio.training.planning.simulation.images import Shapes
from lora_studio.training.planning.simulation.one_step import SimulatedStep
from lora_studio.training.planning.simulation.pretending import CPU, fake_like, make_fake, pretending
from lora_studio.training.planning.simulation.session import SimulatedMachine, simulated_session
from lora_studio.training.prepare import Session
from lora_studio.training.prepare.base_model import BATCH_PIXELS, plan_adapters
from lora_studio.training.prepare.data import GIGABYTE, image_encoders
from lora_studio.training.prepare.regularization_images import drawer
from lora_studio.verify.trained import CAPTION


@dataclass(frozen=True)
class Phase:
    """Bytes on the device while one thing is done, at the fullest moment."""

    name: str
    weights: Mapping[str, int]  # part of the base -> bytes, of those that are there then
    learned: Mapping[str, int]  # adapters, and what goes with them
    working: int  # activations, gradients and whatever else operations make

    @property
    def working_name(self) -> str:
        return "activations and gradients" if self.name == TRAINING else "activations"

    @property
    def peak(self) -> int:
        return sum(self.weights.values()) + sum(self.learned.values()) + self.working


ENCODING_IMAGES, ENCODING_CAPTIONS, TRAINING = "encoding images", "encoding captions", "training"
VALIDATION, PREVIEWS, VERIFYING = "validation", "previews", "verifying the file"
REGULARIZATION = "drawing regularization images"


@dataclass(frozen=True)
class Simulation:
    phases: tuple[Phase, ...]  # in the order of a run
    work: Work  # of an optimizer step
    denoiser: str  # the part
    blocks: Mapping[str, Offloading]  # its own, and of a staged base those of the largest text encoder

    @property
    def fullest(self) -> Phase:
        return max(self.phases, key=lambda one: one.peak)

    def offloaded(self, part: str, blocks: int) -> Simulation:
        """The same with so many blocks of a part, of which none was, in main memory; at most all."""
        sizes = self.blocks[part].sizes
        offloading = Offloading(sizes, min(blocks, len(sizes)))
        phases = [
            replace(one, weights={**one.weights, part: one.weights[part] - offloading.freed})
            if part in one.weights
            else one
            for one in self.phases
        ]
        return replace(self, phases=tuple(phases), blocks={**self.blocks, part: offloading})

    def fitting(self, usable: int) -> Simulation:
        """With the fewest blocks in main memory with which it fits; with all if not even that does."""
        found = self
        for part, offloading in self.blocks.items():
            most = len(offloading.sizes)
            tried = (found.offloaded(part, blocks) for blocks in range(most))
            found = next((one for one in tried if one.fits(part, usable)), found.offloaded(part, most))
        return found

    def fits(self, part: str, usable: int) -> bool:
        """Whether all phases do in which a part is on the device."""
        return all(one.peak <= usable for one in self.phases if part in one.weights)


def simulate(
    recipe: Recipe, family: ModelFamily, dtype: torch.dtype, shapes: Shapes, *, usable: int = 0
) -> Simulation:
    """Every phase of a run whose base is in `dtype`; `family` has shapes alone, and is used up.

    `usable`: the bytes of the device, for machine.offload_blocks = "auto".
    """
    found, blocks = _Simulator(recipe, family, dtype, shapes).run(), recipe.machine.offload_blocks
    return found.offloaded(found.denoiser, blocks) if isinstance(blocks, int) else found.fitting(usable)


class _Simulator:
    """Runs the phases one after the other, as a run does."""

    def __init__(self, recipe: Recipe, family: ModelFamily, dtype: torch.dtype, shapes: Shapes) -> None:
        training, self.wanted = recipe.training, recipe
        self.repeats = training.gradient_accumulation  # of a micro-batch, of which one is simulated
        passes = {"gradient_accumulation": 1, **STAND_INS.get(training.optimizer, {})}
        self.recipe = recipe.model_copy(update={"training": training.model_copy(update=passes)})
        plain = {"attention": "sdpa", "compile": False, "offload_blocks": 0}  # which is arithmetic
        machine = recipe.machine.model_copy(update=plain)
        self.machine = SimulatedMachine(CPU, dtype, recipe.base.quantize, machine)
        self.family, self.shapes = family, shapes
        self.exact = plan_adapters(recipe, family).snapshot_float32(family)
        self.machine.shrink(family)
        self.phases: list[Phase] = []
        self.learned: dict[str, int] = {}
        self.own: set[int] = set()

    def run(self) -> Simulation:
        with pretending():
            for part in self.family.parts.values():
                make_fake(part)
            self.exact = {place: fake_like(tensor) for place, tensor in self.exact.items()}
            self._draw_regularization_images()
            self._encode_images()
            self._encode_captions()
            made = simulated_session(self.recipe, self.machine, self.family, self.shapes, self.exact)
            session, stack = made
            work = self._train(session)
            self._look(session, stack)
            blocks = self._blocks(session)
        return Simulation(tuple(self.phases), work, self.family.denoiser, blocks)

    def _blocks(self, session: Session) -> dict[str, Offloading]:
        denoiser, (reader, of_reader) = self.family.denoiser, blocks_of_text(self.family)
        of_denoiser, joined = innermost_blocks(self.family.parts[denoiser]), session.adapters.joined
        blocks = {denoiser: [own_weights(one, joined) for one in of_denoiser]}
        if reader:
            blocks[reader] = [own_weights(one, ()) for one in of_reader]
        sizes = {part: [sum(one.nbytes for one in own) for own in owns] for part, owns in blocks.items()}
        return {part: Offloading(of, 0) for part, of in sizes.items()}

    def _draw_regularization_images(self) -> None:
        wanted, bucket = self.recipe.data.regularization_images, self.shapes.bucket
        if not wanted.count:
            return
        self.family.place(CPU, *self.family.parts)
        ((_, rows),) = cut_by_bucket([bucket], lambda one: one, pixels=DRAWN_PIXELS, most=DRAWN_AT_ONCE)
        requests = [ImageRequest(self.shapes.caption, bucket, number) for number in range(rows)]
        one_step = wanted.model_copy(update={"steps": 1})
        self._measure(REGULARIZATION, lambda: drawer(self.family, one_step)(requests))

    def _encode_images(self) -> None:
        """As the cache does: so many images of a bucket at once as have a megapixel."""
        self.family.place(CPU, "vae")
        encode, _ = image_encoders(self.family, DTYPES[self.recipe.base.vae_dtype])
        bucket = self.shapes.bucket
        ((_, rows),) = cut_by_bucket([bucket], lambda one: one, pixels=BATCH_PIXELS)
        pixels = torch.zeros(rows, 3, bucket.height, bucket.width)
        self._measure(ENCODING_IMAGES, lambda: encode(pixels.to(CPU)))

    def _encode_captions(self) -> None:
        """With what a staged base keeps of its text encoders for later."""

        def encode() -> None:
            self.family.encode_text([self.shapes.caption])
            keep_prompts(self.family, self._shown())
            self.family.keep_texts([CAPTION])

        self.family.place(CPU, *self.family.text_encoders)
        with torch.no_grad():
            self._measure(ENCODING_CAPTIONS, encode)

    def _shown(self) -> SamplesConfig:
        """One step of the previews that are drawn together, or of images for [evaluate]: others are alike."""
        samples, evaluates = self.recipe.samples, not self.recipe.evaluate.off
        prompts = samples.prompts or ((CAPTION,) * self.recipe.evaluate.seeds if evaluates else ())
        prompts = prompts[: drawn_together(self.recipe.data.resolution)]
        return samples.model_copy(update={"steps": 1, "prompts": prompts})

    def _train(self, session: Session) -> Work:
        loop, adapters = session.loop, adapter_bytes(session)
        loop.base_rates = [group["lr"] for group in loop.state.optimizer.param_groups]
        watch = GradientWatch(session.adapters, half=loop.state.scaler is not None)
        watch.update([1.0] * len(session.adapters.named_parameters()), 1.0)  # as after the first steps
        optimizer = first_update(loop.state)
        if self.recipe.training.optimizer != self.wanted.training.optimizer:
            optimizer = eight_bit_state(session.adapters.named_parameters().values())
        self.learned = {
            "adapters": adapters,
            "optimizer": optimizer,
            "mean of the weights": adapters if loop.state.ema else 0,
            "latents and captions": self._cached_bytes(session),
        }
        self.own = {id(one) for one in session.adapters.named_parameters().values()}
        step = SimulatedStep(loop, self.repeats)
        self._measure(TRAINING, lambda: step.run(watch))
        return step.work

    def _cached_bytes(self, session: Session) -> int:
        """Latents, if they stay on the device, and texts: of all images, or of a batch without them."""
        feed, shapes = session.loop.feed, self.shapes
        latents = 2 * feed.latents[0].mean.nbytes * max(shapes.views, shapes.images)
        if latents > self.recipe.data.latent_memory_gb * GIGABYTE:
            latents = 0
        texts = 0 if feed.texts is None else feed.texts.num_bytes // 2  # of two captions
        return latents + max(2 * texts, min(texts * shapes.captions, TEXT_BYTES))

    def _look(self, session: Session, stack: int) -> None:
        """`stack`: the bytes of weights that the run's first pass, which is validation's, lays together."""
        state, samples = session.loop.state, self._shown()
        if (validation := session.validation) is not None:
            rows = min(validation.rows_at_once, TIMESTEPS)
            first = stack + self._copies(session)
            look = partial(within, state.shown(), lambda: validation.try_out(rows))
            self._measure(VALIDATION, look, at_least=first)
        if samples.prompts:
            draw = partial(render, self.family, samples, side=self.recipe.data.resolution)
            with np.errstate(invalid="ignore"):  # one step, stretched to its end, is 0 / 0
                self._measure(PREVIEWS, lambda: within(state.shown(), draw))
        self._measure(VERIFYING, lambda: probe(session))

    def _copies(self, session: Session) -> int:
        """Bytes of the adapters in a pass's precision."""
        half = self.machine.autocast is not None
        return adapter_bytes(session) // 2 if half else 0

    def _measure(self, name: str, work: Callable[[], object], *, at_least: int = 0) -> None:
        with PhaseBytes(self.family, self._weights) as live:
            work()
        self.phases.append(Phase(name, live.weights, dict(self.learned), max(live.working, at_least)))

    def _weights(self, part: str) -> int:
        network = self.family.parts[part]
        tensors = [*network.parameters(), *network.buffers()]
        return sum(one.nbytes for one in tensors if id(one) not in self.own)


class PhaseBytes(LiveBytes):
    """Beside what operations make, the weights of the parts that are on the device meanwhile."""

    def __init__(self, family: ModelFamily, bytes_of: Callable[[str], int]) -> None:
        super().__init__(block=CUDAS_BLOCK)
        self.family, self.bytes_of = family, cache(bytes_of)
        self.weights: dict[str, int] = {}  # at the peak
        self.working = 0

    def grow(self, size: int) -> None:
        self.now += size
        placed = {part: self.bytes_of(part) for part in self.family.on_device}
        if (total := self.now + sum(placed.values())) > self.peak:
            self.peak, self.weights, self.working = total, placed, self.now


def within(context: AbstractContextManager[object], work: Callable[[], object]) -> None:
    with context:
        work()


# bitsandbytes' own operations have no fakes; its state is counted.
STAND_INS: Mapping[str, Mapping[str, object]] = {"adamw8bit": {"optimizer": "adamw", "optimizer_options": {}}}
LEAST_IN_8_BITS, IN_A_BLOCK = 4096, 256  # numbers of a tensor, and that share a scale, in bitsandbytes


def eight_bit_state(parameters: Iterable[torch.Tensor]) -> int:
    """Bytes of two moments of 8 bits; of small tensors in float32."""
    numbers = [one.numel() for one in parameters]
    return sum(8 * n if n < LEAST_IN_8_BITS else 2 * (n + 4 * -(-n // IN_A_BLOCK)) for n in numbers)


def first_update(state: State) -> int:
    """The bytes of what the optimizer keeps, which a first update makes."""
    for group in state.optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.zeros_like(parameter)
    state.optimizer.step()
    state.optimizer.zero_grad()
    kept = (one for values in state.optimizer.state.values() for one in values.values())
    return sum(one.nbytes for one in kept if isinstance(one, torch.Tensor))
