"""What a run holds in its device's memory, counted or measured in a real step, and leaves on the disk."""

from __future__ import annotations

import shutil
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

from PIL import Image

from lora_studio.evaluate.material import asked_of
from lora_studio.evaluate.preview_sheet import sheet_of
from lora_studio.evaluate.previews import as_png, drawn_together, render
from lora_studio.families.base import ModelFamily
from lora_studio.families.stored import MAPPED_BYTES
from lora_studio.lora_file.factors import most_bytes
from lora_studio.lora_file.forms import rows_of_fused
from lora_studio.lora_file.write import DTYPES
from lora_studio.text import Rows, memory_size
from lora_studio.training.machine import unless_out_of_memory
from lora_studio.training.machine.convolutions import kept_bytes
from lora_studio.training.machine.offload import blocks_of_text, own_weights
from lora_studio.training.optimizers.choose import optimizer_bytes
from lora_studio.training.planning.counting import peak_bytes
from lora_studio.training.planning.offloading import Offloading
from lora_studio.training.prepare import Session
from lora_studio.training.report import Timing

HEADER_BYTES = 3 * 140  # of a layer in a LoRA file: names and shapes of its three tensors
TEXT_ENCODERS = "text encoders"  # a stage
USABLE = 0.95  # of the room: allocators leave gaps, and a device that is full gets slow before it refuses


@dataclass(frozen=True)
class Memory:
    """Bytes at the fullest moment, which is in a step at the largest bucket or while previews are drawn."""

    parts: dict[str, int]  # frozen weights, and buffers, that lie on the device while it trains
    adapters: int
    optimizer: int
    mean: int  # of the weights, with training.ema
    originals: int  # what the base has in place of layers that are trained themselves, if it stays there
    caches: int  # latents and conditioning on the device
    gradients: int
    activations: int  # of a step's forward and backward pass, at most
    previews: int  # beside the weights, while they are drawn
    room: int  # on the device before anything was loaded, or what --memory says
    made: int = 0  # of convolutions' weights, once, and kept
    passes: int = 1  # in so many the largest micro-batch had to be trained
    stages: dict[str, int] = field(default_factory=dict)  # parts that come and go before the first step
    reading: int = 0  # in main memory, while a large base's parts are read onto another device

    @property
    def resident(self) -> int:
        learned = self.adapters + self.optimizer + self.mean + self.originals
        return sum(self.parts.values()) + self.made + learned + self.caches

    @property
    def total(self) -> int:
        training = self.resident + max(self.gradients + self.activations, self.previews)
        return max(training, *self.stages.values(), 0)

    @property
    def fits(self) -> bool:
        """Whether the total leaves a twentieth of the room free."""
        return self.total <= USABLE * self.room

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"total": self.total, "fits": self.fits}

    def rows(self, device: str) -> Rows:
        """(title, text): whether it fits, and every part that takes any, with a warning if memory ran out."""
        verdict = "fits into" if self.fits else "DOES NOT FIT into"
        held = {f"frozen {name}": size for name, size in self.parts.items()} | {
            "convolutions' weights laid out for products": self.made,
            "adapters": self.adapters,
            "optimizer": self.optimizer,
            "mean of the weights": self.mean,
            "the base's own values of what is trained": self.originals,
            "latents and captions": self.caches,
            "gradients": self.gradients,
            "activations": self.activations,
            "while previews are drawn, instead of a step's": self.previews,
        }
        rows = [("memory", f"{memory_size(self.total)} on {device}: {verdict} {memory_size(self.room)}")]
        rows += [("", f"{memory_size(size)} {what}") for what, size in held.items() if size]
        if self.stages:
            parts = ", then ".join(f"{memory_size(size)} {name}" for name, size in self.stages.items())
            rows.append(("", f"before the first step, and gone by then: {parts}"))
        if self.reading:
            rows.append(("main memory", f"{memory_size(self.reading)} at a time, while parts are read"))
        if self.passes > 1:
            rows.append(("warning", f"memory ran out: the largest batch is trained in {self.passes} passes"))
        return rows


def measure_memory(session: Session, *, room: int) -> Memory:
    """By a step of the largest micro-batch and a step of the previews, which change nothing.

    Previews that the device has no room for take as much as there is, so that nothing fits.
    """
    adapters, state = adapter_bytes(session), session.loop.state
    draw = partial(_draw_a_step, session, number=drawn_together(session.recipe.data.resolution))
    previews = unless_out_of_memory(lambda: peak_bytes(draw, session.family.device))
    activations = measure_activations(session)
    return Memory(
        parts=_weights(session),
        adapters=adapters,
        optimizer=optimizer_bytes(session.recipe.training, session.adapters),
        mean=0 if state.ema is None else adapters,
        originals=_originals(session),
        caches=_caches(session),
        gradients=adapters,
        previews=room if previews is None else previews,
        activations=activations,
        room=room,
        made=kept_bytes(session.family.parts[session.family.denoiser]),
        passes=state.counters.passes,  # known when the activations are
        stages=stage_bytes(session.family, session.machine.text_blocks),
        reading=0 if session.family.device.type == "cpu" else reading_bytes(session.family),
    )


def stage_bytes(family: ModelFamily, text_blocks: int = 0) -> dict[str, int]:
    """What of a staged family is on the device before the denoiser is, one line after the other.

    `text_blocks`: so many of the largest text encoder wait in main memory.
    """
    if not family.staged:
        return {}
    encoders = sum(_part_bytes(family, name) for name in family.text_encoders)
    sizes = sizes_of_text_blocks(family)
    freed = Offloading(sizes, min(text_blocks, len(sizes))).freed
    return {TEXT_ENCODERS: encoders - freed, "VAE": _part_bytes(family, "vae")}


def sizes_of_text_blocks(family: ModelFamily) -> list[int]:
    """Bytes of each block of a staged base's largest text encoder, which may have shapes only."""
    name, blocks = blocks_of_text(family)
    return [
        family.dtype_of(name).itemsize * sum(one.numel() for one in own_weights(block, ()))
        for block in blocks
    ]


def reading_bytes(family: ModelFamily) -> int:
    """What is mapped of the files at once, and the largest tensor in another dtype beside it."""
    if not family.staged:
        return 0
    sizes = (
        one.numel() * family.dtype_of(name).itemsize
        for name, part in family.parts.items()
        for one in part.parameters()
    )
    return MAPPED_BYTES + max(sizes)


def _part_bytes(family: ModelFamily, name: str) -> int:
    return sum(one.numel() for one in family.parts[name].parameters()) * family.dtype_of(name).itemsize


def measure_activations(session: Session, *, rows: int | None = None) -> int:
    """Of the largest micro-batch, or of its first `rows`, without the adapters' gradients."""
    batch = session.loop.feed.largest()
    if rows is not None:
        batch = batch.rows(slice(0, rows))
    peak = peak_bytes(lambda: session.loop.try_out(batch), session.family.device)
    return max(0, peak - adapter_bytes(session))


def adapter_bytes(session: Session) -> int:
    return sum(tensor.nbytes for tensor in session.adapters.named_parameters().values())


def _weights(session: Session) -> dict[str, int]:
    """Part -> bytes on the device, the adapters' own left out."""
    device, family = session.family.device, session.family
    ours = {id(tensor) for tensor in session.adapters.named_parameters().values()}
    found = {}
    for name, part in family.parts.items():
        tensors = [one for one in (*part.parameters(), *part.buffers()) if id(one) not in ours]
        found[name] = sum(one.nbytes for one in tensors if one.device == device)
    if (offloaded := session.offloaded) is not None:
        found[family.denoiser] -= Offloading(offloaded.sizes, len(offloaded.sizes)).freed
    return {name: size for name, size in found.items() if size}


def _originals(session: Session) -> int:
    """Those in main memory are on the device only while nothing is trained."""
    kept, device = session.adapters.options.keep_base_on_device, session.family.device
    originals = (own for layer in session.adapters.layers for own in layer.originals.values())
    return sum(own.nbytes for own in originals if kept or own.device == device)


def _caches(session: Session) -> int:
    feed, validation = session.loop.feed, session.validation
    latents = 0 if feed.latents.on_disk else latent_bytes(session)
    held = 0 if validation is None else sum(one.latents.nbytes for one in validation.images)
    texts = 0 if feed.texts is None else feed.texts.num_bytes
    return latents + held + texts


def latent_bytes(session: Session) -> int:
    """Of all views, mean and standard deviation in float32."""
    latents = session.loop.feed.latents
    return sum(8 * latents.size(index) for index in range(len(latents)))


def _draw_a_step(session: Session, *, number: int | None = None) -> list[Image.Image]:
    """The first previews after one step: nearly noise, which no format makes smaller.

    Of a `number` at most; without previews the first that [evaluate] asks for, if it asks for any.
    """
    samples = session.recipe.samples
    prompts = samples.prompts or tuple(
        one.prompt for one in asked_of(session.recipe, session.manifest, session.family)
    )
    samples = samples.model_copy(update={"steps": 1, "prompts": prompts[:number]})
    return render(session.family, samples, side=session.recipe.data.resolution) if samples.prompts else []


@dataclass(frozen=True)
class Disk:
    """Bytes, at most; what the caches hold already is counted, too."""

    caches: int  # latents and conditioning, shared with other runs
    checkpoints: int  # as many as there are at one time
    num_checkpoints: int
    previews: int
    file: int
    free: int  # on the run folder's disk
    drawn: int = 0  # images of evaluations in the caches, shared with other runs on the base

    @property
    def total(self) -> int:
        """In the run folder."""
        return self.checkpoints + self.previews + self.file

    def rows(self) -> Rows:
        """(title, text): what the run folder and the caches take, with a warning if that is too much."""
        rows = [
            ("disk", f"{memory_size(self.total)} in the run folder, {memory_size(self.free)} are free"),
            ("", f"{memory_size(self.checkpoints)} for {self.num_checkpoints} checkpoints at a time"),
            ("", f"{memory_size(self.previews)} previews, {memory_size(self.file)} the finished files"),
            ("", f"{memory_size(self.caches)} in the caches for all runs"),
        ]
        if self.drawn:
            rows.append(("", f"{memory_size(self.drawn)} there for images of the evaluation"))
        if self.total > self.free:
            rows.append(("warning", "that is more than is free: make room, or keep fewer checkpoints"))
        return rows


def measure_disk(session: Session, timing: Timing, *, optimizer: int) -> Disk:
    """From the sizes of tensors, and from a sheet of previews with one step."""
    training, adapters = session.recipe.training, session.adapters.num_parameters * 4
    made = -(-training.steps // training.checkpoint_every)
    # the newest ones, the best, and a new one before an old one goes
    count = min(made, training.keep_checkpoints + (session.validation is not None) + 1)
    if every := session.recipe.evaluate.every:  # each that is measured stays
        measured = {*range(every, training.steps, every), training.steps}
        others = {*range(training.checkpoint_every, training.steps, training.checkpoint_every)} - measured
        count = len(measured) + min(len(others), count)
    means = 0 if session.loop.state.ema is None else adapters
    folder = session.run.folder.resolve()
    return Disk(
        caches=latent_bytes(session) + _texts(session),
        checkpoints=count * (adapters + optimizer + means),
        num_checkpoints=count,
        previews=_previews(session, timing) if session.recipe.samples.prompts else 0,
        file=_result(session),
        drawn=_evaluated(session),
        free=shutil.disk_usage(next(one for one in (folder, *folder.parents) if one.is_dir())).free,
    )


def _evaluated(session: Session) -> int:
    """The base's images, those of the result, and those of one checkpoint at a time."""
    recipe = session.recipe
    number = len(asked_of(recipe, session.manifest, session.family)) * recipe.evaluate.seeds
    drawn = unless_out_of_memory(lambda: _draw_a_step(session, number=1)) if number else None
    return 2 * number * len(as_png(drawn[0])) if drawn else 0


def _result(session: Session) -> int:
    """The LoRA file and embeddings, or all of a base's parts."""
    dtype, adapters = session.recipe.export.dtype, session.adapters
    if not adapters.trains_layers:
        rows = partial(rows_of_fused, session.family)
        return most_bytes(adapters, dtype, rows) + len(adapters.trained) * HEADER_BYTES
    numbers = sum(one.numel() for part in session.family.parts.values() for one in part.parameters())
    return numbers * DTYPES[dtype].itemsize


def _texts(session: Session) -> int:
    if (texts := session.loop.feed.texts) is None:
        return 0
    one = sum(tensor.nbytes for tensor in texts.batch([""]).values())
    return one * (len(session.caption_set.texts) if session.caption_set.complete else 1)


def _previews(session: Session, timing: Timing) -> int:
    if not (drawn := unless_out_of_memory(lambda: _draw_a_step(session))):
        return 0
    sheet = as_png(sheet_of(session.recipe.samples.prompts, {"base": drawn, "tuned": drawn}))
    return len(sheet) * timing.previews + sum(len(as_png(image)) for image in drawn)
