"""All that changes while a run trains: what a checkpoint holds and a resume puts back."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save
from torch import Tensor

from lora_studio.adapters.adapter_set import AdapterSet, check_fit, put_back
from lora_studio.adapters.stack import Stack
from lora_studio.errors import CheckpointError, TrainingDiverged, reason_of
from lora_studio.runs.reading import MEASURED, SEAL, STATE, read_table, seal_of, unreadable
from lora_studio.training.optimizers.choose import Scalar, scalars_and_tensors

Kept = Scalar | Tensor  # of an optimizer's state


class Ema:
    """The exponential mean of every trained tensor, shown and exported: of factors, not of their product."""

    def __init__(self, adapters: AdapterSet, decay: float) -> None:
        self.decay = decay
        self._live = adapters.named_parameters()
        self._means = {key: tensor.detach().clone() for key, tensor in self._live.items()}

    @torch.no_grad()
    def update(self, updates: int, *, kept: Tensor | float = 1.0) -> None:
        """Take in the tensors as they are after so many updates; nothing if `kept` is 0 and not 1."""
        means: list[Tensor] = [*self._means.values()]
        live: list[Tensor] = [*self._live.values()]
        towards = torch._foreach_sub(live, means)
        share = torch.as_tensor(kept, dtype=torch.float32, device=means[0].device)
        torch._foreach_mul_(towards, share * (1 - decay_at(updates, self.decay)))
        torch._foreach_add_(means, towards)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Within it the adapters hold the mean; afterwards they are what they were, bit for bit."""
        with put_back(self._live.values()):
            with torch.no_grad():
                for key, tensor in self._live.items():
                    tensor.copy_(self._means[key])
            yield

    def state(self) -> dict[str, Tensor]:
        """By the adapters' canonical keys, float32 on the CPU."""
        return {key: tensor.float().cpu().clone() for key, tensor in self._means.items()}

    def load(self, state: dict[str, Tensor]) -> None:
        """Put a `state()` back; raises CheckpointError when it is not of these adapters."""
        check_fit(self._means, state)
        for key, tensor in self._means.items():
            tensor.copy_(state[key])


def decay_at(updates: int, decay: float) -> float:
    """Of an update, counted from 1: small at first, as in TensorFlow's moving averages with `num_updates`."""
    return min(decay, (1 + updates) / (10 + updates))


@dataclass
class Counters:
    """Counted from the first start of a run, not from the last resume."""

    step: int = 0  # the last one that is done
    updates: int = 0  # of the weights: fewer than steps if some were skipped
    skipped: int = 0
    skipped_in_a_row: int = 0  # without those that the loss's scale is to blame for
    passes: int = 1  # a micro-batch's rows are trained in so many; doubled when memory runs out
    base_passes: int = 1  # how often fewer rows than it might the base is asked about at once; doubled, too

    def count(self, step: int, *, updated: bool, scaled: bool = False) -> None:
        """One more step; `scaled`: it was skipped because the loss was scaled too much."""
        self.step = step
        self.updates += updated
        self.skipped += not updated
        if not scaled:
            self.skipped_in_a_row = 0 if updated else self.skipped_in_a_row + 1


@dataclass
class State:
    """Random numbers are keyed by the step, so there is no generator among it."""

    adapters: AdapterSet
    optimizer: torch.optim.Optimizer
    ema: Ema | None = None
    scaler: torch.amp.GradScaler | None = None  # of float16's loss
    counters: Counters = field(default_factory=Counters)
    reserved: Tensor | None = None  # the memory of the optimizer's state, as long as that does not exist

    @property
    def skips_on_device(self) -> bool:
        """Whether the optimizer can leave a step out by itself, as torch's fused ones do."""
        return getattr(self.optimizer, "_step_supports_amp_scaling", False)

    def update(self, bad: Tensor) -> Tensor | None:
        """One optimizer step, none at all if `bad` [] is 1 and not 0, which only `skips_on_device` allows.

        []: how many layers it made too large; None if they may have any size.
        """
        self.reserved = None
        if self.skips_on_device:
            self.optimizer.found_inf = bad  # type: ignore[attr-defined]
        self.optimizer.step()
        limited = self.adapters.limit()
        self.adapters.pull_tokens(kept=1 - bad)
        if self.ema is not None:
            self.ema.update(self.counters.updates + 1, kept=1 - bad)
        self.adapt_scale()
        return limited

    def end(self) -> None:
        """Give up what further steps alone would need: gradients, and what the optimizer keeps."""
        self.optimizer.zero_grad()
        for parameter in self.adapters.named_parameters().values():
            parameter.grad = None
        self.optimizer.state.clear()

    def adapt_scale(self) -> None:
        if self.scaler is not None:
            self.scaler.update()

    def scale(self, loss: Tensor) -> Tensor:
        """The loss, times a scale if float16's gradients would vanish without one."""
        return loss if self.scaler is None else self.scaler.scale(loss)

    def unscale(self) -> Tensor:
        """Divide the gradients by the loss's scale, which is 1 without one: [], float32, on the device."""
        device = self.optimizer.param_groups[0]["params"][0].device
        one = torch.ones((), device=device)
        if self.scaler is None:
            return one
        scale = self.scaler.scale(one)
        self.scaler.unscale_(self.optimizer)
        return scale

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Within it the adapters are what previews, measurements and the exported file are made of."""
        if self.ema is not None:
            with self.ema.applied():
                yield
        elif hasattr(self.optimizer, "eval"):  # its own mean; its way back through that would round
            with put_back(self.adapters.named_parameters().values()):
                self.optimizer.eval()
                try:
                    yield
                finally:
                    self.optimizer.train()  # type: ignore[attr-defined]
        else:
            yield


ADAPTERS, EMA, OPTIMIZER = "adapters.safetensors", "ema.safetensors", "optimizer.safetensors"


def state_files(state: State, *, measured: str = "") -> dict[str, bytes]:
    """The files of a checkpoint; `measured`: the sha256 of the measurements by which the best is chosen.

    Raises TrainingDiverged instead of saving weights that are not finite.
    """
    own = state.adapters
    scalars, moments = scalars_and_tensors(state.optimizer, own.named_parameters(), own.stack_of)
    tensors = {ADAPTERS: state.adapters.state(), OPTIMIZER: moments}
    if state.ema is not None:
        tensors[EMA] = state.ema.state()
    wrong = [key for key, tensor in tensors[ADAPTERS].items() if not tensor.isfinite().all()]
    if wrong:
        which = f"{len(wrong)} trained tensors are not finite, first {wrong[0]}"
        raise TrainingDiverged(f"after step {state.counters.step} {which}")
    files = {name: save(values) for name, values in tensors.items()}
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    facts = asdict(state.counters) | {"sha256": digests}
    if scalars:
        facts["optimizer"] = scalars
    if state.scaler is not None:
        facts["scaler"] = state.scaler.state_dict()  # JSON's numbers are exact: float64 and integers
    if measured:
        facts[MEASURED] = measured
    digests[STATE] = seal_of(facts)
    return files | {STATE: json.dumps(facts, indent=2).encode()}


def load_state(folder: Path, state: State) -> int:
    """At which step the checkpoint that is put back was taken. Raises CheckpointError if it is damaged."""
    try:
        return _load_state(folder, state)
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RuntimeError, SafetensorError) as error:
        raise CheckpointError(
            f"the checkpoint {folder} cannot be read ({reason_of(error)}); take an older one, as --resume "
            "does by itself and export with --checkpoint."
        ) from None


def _load_state(folder: Path, state: State) -> int:
    facts = read_table(folder / STATE)
    digests: dict[str, str] = facts.get(SEAL, {})
    seal = digests.pop(STATE, None)
    if seal not in (None, seal_of(facts)):  # None: of an earlier version
        raise ValueError(f"{STATE} is not what was written")
    scale, scalars = facts.pop("scaler", None), facts.pop("optimizer", {})
    counters = Counters(**{key: value for key, value in facts.items() if key not in (SEAL, MEASURED)})
    if any(type(one) is not int or one < 0 for one in vars(counters).values()) or not counters.passes:
        raise ValueError(f"{STATE} is not what was written")
    weights, moments = (_read(folder, name, digests) for name in (ADAPTERS, OPTIMIZER))
    means = None if state.ema is None else _read(folder, EMA, digests)
    state.adapters.load(weights)
    state.reserved = None
    if state.ema is not None and means is not None:
        state.ema.load(means)
    _load_optimizer(scalars | moments, state.adapters, state.optimizer)
    if state.scaler is not None and scale is not None:
        state.scaler.load_state_dict(scale)
    state.counters = counters
    return counters.step


def _read(folder: Path, name: str, digests: Mapping[str, str]) -> dict[str, Tensor]:
    path = folder / name
    if why := unreadable(path):
        raise ValueError(f"{name}: {why}")
    with safe_open(path, framework="pt"):  # one that is longer than its header says is refused unread
        content = path.read_bytes()
    if name in digests and hashlib.sha256(content).hexdigest() != digests[name]:
        raise ValueError(f"{name} is not what was written")
    return load(content)


def _load_optimizer(kept: Mapping[str, Kept], adapters: AdapterSet, optimizer: torch.optim.Optimizer) -> None:
    """Through `load_state_dict`, which knows where an optimizer wants each of its tensors."""
    values = optimizer.state_dict()
    ordered = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    own, parameters = set(ordered), adapters.named_parameters()
    found: dict[Tensor, dict[str, Kept]] = {}
    for name, value in kept.items():
        key, _, state = name.rpartition("|")
        if key.startswith("#"):
            values["param_groups"][int(key[1:])][state] = value
        elif key in parameters:
            found.setdefault(parameters[key], {})[state] = value
        else:
            raise CheckpointError(f"the checkpoint's optimizer state has an unknown tensor {key}.")
    for stack in adapters.stacks:
        if stack.whole in own and any(one in found for one in stack.owners):
            found[stack.whole] = _joined([found.pop(one, {}) for one in stack.owners], stack)
    values["state"] = {number: found[tensor] for number, tensor in enumerate(ordered) if tensor in found}
    optimizer.load_state_dict(values)
    for parameter, kept_of in found.items():
        for state, one in kept_of.items():
            if isinstance(one, Tensor):  # torch has made all of them floats
                optimizer.state[parameter][state] = optimizer.state[parameter][state].to(one.dtype)


def _joined(kept: Sequence[Mapping[str, Kept]], stack: Stack) -> dict[str, Kept]:
    """What an optimizer keeps of tensors that lie in one: laid together as they are, or the same number."""
    joined: dict[str, Kept] = {}
    for state, first in kept[0].items():
        each = [one[state] for one in kept]
        like_it = isinstance(first, Tensor) and first.shape == stack.owners[0].shape
        joined[state] = torch.stack(each) if like_it else first  # type: ignore[arg-type]
    return joined
