"""What a training step launches on a GPU, counted on fake tensors, and its host time on narrow twins.

`python benchmarks/step_launches.py` takes the published sizes (SD1.5 at 512 pixels, SDXL at 1024; batch 1,
bfloat16 base, float32 adapters of rank 16 in attention and feed-forward, autocast), but no weights and no
GPU: every operation of one forward and backward pass goes through torch's FakeTensorMode, which computes
shapes alone. An operation that only gives back a view or takes memory launches nothing. Beside ours, with
whatever it renews every step, stand the floor (the frozen base, backward down to the first adapter's place)
and PEFT's layers. `--host` adds processor seconds of a step on trees of as many layers that are 32 channels
wide, sides in turns: what handing the operations over costs.
"""

from __future__ import annotations

import argparse
import sys
import time
import weakref
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.training_utils import cast_training_params
from figures import Criterion, at_most, criteria_table, machine, table, write_json
from published import TINY_SIDE, Build, conditioning_for, fake_tensors, published, published_at
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lora_studio.adapters.inject import inject
from lora_studio.adapters.rules import AdapterOptions
from lora_studio.families.base import ModelFamily
from lora_studio.quiet import bitsandbytes_on_demand, quiet_libraries, without_bitsandbytes
from lora_studio.training.machine import Machine

RESULTS = Path(__file__).parent / "results" / "step_launches.json"
SIDES = ("floor", "ours", "peft")
RANK = 16
TWIN_RESOLUTION = 64  # pixels
HOST_LIMIT = 1.6  # times the floor's time
GIB = 2**30
_EMPTY = ("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided")
ALLOCATIONS = {f"aten::{name}" for name in _EMPTY}
Step = Callable[[], Tensor]


@dataclass(frozen=True)
class Size:
    """A published base by its resolution, and what is demanded of a step of ours at most."""

    resolution: int  # pixels
    launches: int
    kept_gib: float | None = None


SIZES = {"512": Size(512, launches=2_300), "1024": Size(1024, launches=6_500, kept_gib=5.6)}


@dataclass(frozen=True)
class Count:
    """What one step comes to."""

    forward: int  # launches
    backward: int
    casts: int  # of these
    allocations: int  # operations beside these, that only take memory
    kept_gib: float  # of what the forward pass made, until the backward pass

    @property
    def launches(self) -> int:
        return self.forward + self.backward


class Launches(TorchDispatchMode):
    """Counts operations that give back more than a view, and the bytes of theirs that are still there."""

    def __init__(self) -> None:
        super().__init__()
        self.launched, self.casts, self.allocations, self.bytes = 0, 0, 0, 0
        self._known: weakref.WeakKeyDictionary[torch.UntypedStorage, None] = weakref.WeakKeyDictionary()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        given = {one.untyped_storage() for one in _tensors((args, kwargs))}
        result = func(*args, **(kwargs or {}))
        fresh = {one.untyped_storage() for one in _tensors(result)} - given
        if func._schema.name in ALLOCATIONS:
            self.allocations += 1
        elif fresh or func._schema.is_mutable:
            self.launched += 1
            self.casts += _is_cast(func._schema.name, args, _tensors(result))
        for storage in (one for one in fresh if one not in self._known):
            self._known[storage] = None
            self.bytes += storage.nbytes()
            weakref.finalize(storage, self._freed, storage.nbytes())
        return result

    def _freed(self, size: int) -> None:
        self.bytes -= size


def _tensors(tree: object) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def _is_cast(operation: str, args: tuple[Any, ...], result: list[Tensor]) -> bool:
    if operation == "aten::_to_copy":
        return bool(args[0].dtype != result[0].dtype)
    if operation in ("aten::copy_", "aten::_foreach_copy_"):
        pairs = zip(_tensors(args[0]), _tensors(args[1]), strict=True)
        return any(to.dtype != source.dtype for to, source in pairs)
    return False


def arm(family: ModelFamily, side: str, dtype: torch.dtype) -> Callable[[], None]:
    """Put the side's adapters into the family; what it gives back is to be called before every step.

    The floor has none, and its gradients begin where the first of ours would stand.
    """
    denoiser: Any = family.parts[family.denoiser]
    endings = family.targets[family.denoiser]
    if side == "ours":
        options, targets = AdapterOptions("lora", RANK, float(RANK), seed=0), {family.denoiser: endings}
        adapters = inject(
            family.parts,
            targets,
            options,
            canonical_path=family.canonical_path,
            together=family.together,
        )
        Machine(torch.device("cpu"), dtype).speed_up(family, adapters.parts)
        return lambda: adapters.at_step(1)
    if side == "peft":
        from peft import LoraConfig

        with without_bitsandbytes():
            denoiser.add_adapter(LoraConfig(r=RANK, lora_alpha=RANK, target_modules=[*endings]))
        cast_training_params(denoiser)  # to float32, as public scripts do
    else:
        first = next(one for path, one in denoiser.named_modules() if path.endswith(endings))
        first.register_forward_hook(lambda module, args, output: output.requires_grad_())
    return lambda: None


def step_of(family: ModelFamily, side: str, resolution: int) -> Step:
    """The forward pass of a training step of this side; what it gives back is its loss."""
    dtype, latent = torch.bfloat16, resolution // family.pixels_per_latent
    begin = arm(family, side, dtype)
    latents, target = torch.zeros(2, 1, 4, latent, latent)
    timestep, geometry = torch.full((1,), 500), torch.full((1, 6), float(resolution))
    conditioning = conditioning_for(family, 1)

    def step() -> Tensor:
        begin()
        with torch.autocast("cpu", dtype):
            prediction = family.denoise(latents, timestep, conditioning, geometry)
        return F.mse_loss(prediction.float(), target)

    return step


def _base(size: Size, build: Build) -> ModelFamily:
    return published(published_at(size.resolution), dtype=torch.bfloat16, size=build, made=("unet",))


def count(size: Size, side: str, build: Build = "published") -> Count:
    """Of one step of this side, on fake tensors."""
    with fake_tensors():
        resolution = size.resolution if build == "published" else TINY_SIDE
        step = step_of(_base(size, build), side, resolution)
        with Launches() as seen:
            loss = step()
            forward, kept = seen.launched, seen.bytes
            loss.backward()
    backward = seen.launched - forward
    return Count(forward, backward, seen.casts, seen.allocations, round(kept / GIB, 2))


def host_times(size: Size, *, rounds: int) -> dict[str, list[float]]:
    """Processor seconds of each step on narrow twins, sides in turns; a first round is not counted."""
    steps = {side: step_of(_base(size, "narrow"), side, TWIN_RESOLUTION) for side in SIDES}
    seconds: dict[str, list[float]] = {side: [] for side in SIDES}
    for turn in range(rounds + 1):
        for side in sorted(SIDES, reverse=turn % 2 == 1):
            began = time.process_time()
            steps[side]().backward()
            if turn:
                seconds[side].append(time.process_time() - began)
    return seconds


def times_the_floor(seconds: dict[str, list[float]]) -> dict[str, dict[str, float]]:
    """Side -> median and quartiles of its time over the floor's in the same round, and median seconds."""
    found = {}
    for side, own in seconds.items():
        ratios = [one / other for one, other in zip(own, seconds["floor"], strict=True)]
        low, middle, high = quantiles(ratios, n=4, method="inclusive")
        parts = {
            "of_the_floor": middle,
            "first_quartile": low,
            "third_quartile": high,
            "seconds": median(own),
        }
        found[side] = {name: round(value, 4) for name, value in parts.items()}
    return found


Host = dict[str, dict[str, float]]


def criteria(name: str, size: Size, ours: Count, host: Host | None = None) -> list[Criterion]:
    """What the project demands of its own step."""
    found = [at_most(f"{name} px: launches", ours.launches, size.launches)]
    if size.kept_gib is not None:
        found.append(at_most(f"{name} px: GiB kept for the backward pass", ours.kept_gib, size.kept_gib))
    if host is not None:
        times = host["ours"]["of_the_floor"]
        found.append(at_most(f"{name} px: host time, times the floor's", times, HOST_LIMIT))
    return found


def show(name: str, counts: dict[str, Count], host: Host | None) -> None:
    """Print what was found of one size."""
    header = (
        f"{name} px",
        "forward",
        "backward",
        "casts",
        "allocations",
        "kept GiB",
        "launches",
        "host / floor",
    )
    times = {side: host[side]["of_the_floor"] if host else "" for side in counts}
    rows = [(side, *asdict(one).values(), one.launches, times[side]) for side, one in counts.items()]
    print(table(header, rows), flush=True)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=[*SIZES])
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=[*SIDES], help="that are counted")
    parser.add_argument("--host", action="store_true", help="measure host time, too: two minutes")
    parser.add_argument("--rounds", type=int, default=12, help="steps of each side for the host time")
    parser.add_argument("--save", action="store_true", help=f"write {RESULTS.name} beside the other results")
    options = parser.parse_args()
    quiet_libraries()
    bitsandbytes_on_demand()
    torch.set_num_threads(1)
    report: dict[str, object] = {}
    judged: list[Criterion] = []
    for name in options.sizes:
        size = SIZES[name]
        counts = {side: count(size, side) for side in SIDES if side in options.sides}
        host = times_the_floor(host_times(size, rounds=options.rounds)) if options.host else None
        show(name, counts, host)
        judged += criteria(name, size, counts["ours"], host) if "ours" in counts else []
        report[f"{name} px"] = {
            side: asdict(one) | {"launches": one.launches} for side, one in counts.items()
        }
        report |= {f"{name} px, host time": host} if host else {}
    print(criteria_table(judged))
    if options.save:
        write_json(report | {"criteria": [vars(one) for one in judged], "machine": machine()}, RESULTS)
    sys.exit(0 if all(one.passed for one in judged) else 1)


if __name__ == "__main__":
    main()
