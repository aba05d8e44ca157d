"""What a run holds in its device's memory: counted where it can be, and measured in a real step."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lora_studio.evaluate.previews import render
from lora_studio.text import Rows, memory_size
from lora_studio.training.optimizers.choose import optimizer_bytes
from lora_studio.training.prepare import Session

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
    passes: int = 1  # in so many the largest micro-batch had to be trained

    @property
    def resident(self) -> int:
        """What is held all the time."""
        learned = self.adapters + self.optimizer + self.mean + self.originals
        return sum(self.parts.values()) + learned + self.caches

    @property
    def total(self) -> int:
        """At the fullest moment."""
        return self.resident + max(self.gradients + self.activations, self.previews)

    @property
    def fits(self) -> bool:
        """Whether the total leaves a twentieth of the room free."""
        return self.total <= USABLE * self.room

    def to_json(self) -> dict[str, Any]:
        """All figures and their sum."""
        return asdict(self) | {"total": self.total, "fits": self.fits}

    def rows(self, device: str) -> Rows:
        """What is held, for people."""
        verdict = "fits into" if self.fits else "DOES NOT FIT into"
        held = {f"frozen {name}": size for name, size in self.parts.items()} | {
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
        if self.passes > 1:
            rows.append(("warning", f"memory ran out: the largest batch is trained in {self.passes} passes"))
        return rows


def measure_memory(session: Session, *, room: int) -> Memory:
    """By a step of the largest micro-batch and a step of the previews, which change nothing."""
    adapters = sum(tensor.nbytes for tensor in session.adapters.named_parameters().values())
    state = session.loop.state
    memory = Memory(
        parts=_weights(session),
        adapters=adapters,
        optimizer=optimizer_bytes(session.recipe.training, session.adapters),
        mean=0 if state.ema is None else adapters,
        originals=_originals(session),
        caches=_caches(session),
        gradients=adapters,
        activations=0,
        previews=_previews(session),
        room=room,
    )
    return replace(
        memory, activations=measure_activations(session), passes=session.loop.state.counters.passes
    )


def measure_activations(session: Session, *, rows: int | None = None) -> int:
    """Of the largest micro-batch, or of its first `rows`, without the adapters' gradients."""
    batch = session.loop.feed.largest()
    if rows is not None:
        batch = batch.rows(slice(0, rows))
    peak = peak_bytes(lambda: session.loop.try_out(batch), session.family.device)
    return max(0, peak - sum(tensor.nbytes for tensor in session.adapters.named_parameters().values()))


def _weights(session: Session) -> dict[str, int]:
    """Part -> bytes on the device, the adapters' own left out."""
    device, family = session.family.device, session.family
    ours = {id(tensor) for tensor in session.adapters.named_parameters().values()}
    found = {}
    for name, part in family.parts.items():
        tensors = [one for one in (*part.parameters(), *part.buffers()) if id(one) not in ours]
        found[name] = sum(one.nbytes for one in tensors if one.device == device)
    return {name: size for name, size in found.items() if size}


def _originals(session: Session) -> int:
    """Those in main memory are on the device only while nothing is trained."""
    adapters = session.adapters
    near = [
        own
        for layer in adapters.layers
        for own in layer.originals.values()
        if adapters.options.keep_base_on_device or own.device == session.family.device
    ]
    return sum(own.nbytes for own in near)


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


def _previews(session: Session) -> int:
    family, side = session.family, session.recipe.data.resolution
    samples = session.recipe.samples.model_copy(update={"steps": 1})
    if not samples.prompts:
        return 0
    return peak_bytes(lambda: render(family, samples, side=side), family.device)


def peak_bytes(work: Callable[[], object], device: torch.device) -> int:
    """How many more bytes of tensors there are during the work than before it, at most.

    On CUDA the allocator's own count. Elsewhere what every operation gives back is counted until it is freed,
    in the backward pass, too; so it holds what is computed again under gradient checkpointing, which hooks on
    saved tensors do not see. What an operation uses inside itself is not in it.
    """
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        work()
        return int(torch.cuda.max_memory_allocated(device) - before)
    with _LiveBytes() as live:
        work()
    return live.peak


class _LiveBytes(TorchDispatchMode):
    """Counts the storages that operations make, each once, as long as they live."""

    def __init__(self) -> None:
        super().__init__()
        self.now, self.peak = 0, 0
        self._known: weakref.WeakKeyDictionary[torch.UntypedStorage, None] = weakref.WeakKeyDictionary()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        given = set(_storages((args, kwargs)))
        result = func(*args, **(kwargs or {}))
        for storage in _storages(result):
            if storage not in given and storage not in self._known:
                self._count(storage)
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        self._known[storage] = None
        size = storage.nbytes()
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._freed, size)

    def _freed(self, size: int) -> None:
        self.now -= size


def _storages(tree: object) -> Iterator[torch.UntypedStorage]:
    for leaf in tree_leaves(tree):
        if isinstance(leaf, Tensor):
            try:
                yield leaf.untyped_storage()
            except NotImplementedError:  # a quantised tensor that is made of others
                continue
