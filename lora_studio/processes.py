"""The processes that train one run together, one per device; usually there is one, and all this does nothing.

`accelerate launch` and `torchrun` start them and set their number in the environment. Rank 0, the main
process, writes and reports; all of them take the same steps, from summed gradients.

Small facts go through gloo, whose connections notice at once when a process has died; gradients on GPUs go
through NCCL.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, TypeVar

from lora_studio.errors import ProcessLost, RecipeError, StudioError, reason_of
from lora_studio.text import shown

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from torch.distributed import ProcessGroup


T = TypeVar("T")
BFLOAT16_FROM = (8, 0)  # compute capability

# A process that dies closes its connections, which ends the others at once. These are for a machine that
# falls silent: between two reductions lies one step; one process may draw images or verify for hours.
STEP_MINUTES = 10.0
WAIT_MINUTES = 120.0
TIMEOUT = "LORA_STUDIO_TIMEOUT_MINUTES"  # an environment variable that replaces both


def part_of(rows: int, number: int, parts: int) -> slice:
    """Which of so many rows are in a part; the parts are as equal as can be, the larger ones first."""
    size, larger = divmod(rows, parts)
    start = number * size + min(number, larger)
    return slice(start, start + size + (number < larger))


def num_launched() -> int:
    """How many processes the launcher says it started. Raises RecipeError if it says no such number."""
    return int(_said("WORLD_SIZE", 1, least=1))


def _said(name: str, default: float, *, least: float = 0, kind: type[int] | type[float] = int) -> float:
    """A number in the environment. Raises RecipeError for anything else, or a lower one than `least`."""
    text = os.environ.get(name) or str(default)
    try:
        number = kind(text)
    except ValueError:
        number = -1
    if not least <= number < 10**6:
        what = f'{name} is "{shown(text, limit=40)}" in the environment, where a number is needed'
        how = "unset it, or start with accelerate launch or torchrun, which set what they need"
        raise RecipeError(f"{what}; {how}.")
    return number


def is_main() -> bool:
    """Whether this process is the one that writes and reports; known before torch is imported."""
    alone = os.environ.get("WORLD_SIZE") in (None, "", "1")
    return alone or os.environ.get("RANK") in (None, "", "0")  # never raises: it says who may tell a fault


@dataclass(frozen=True)
class Processes:
    """This process among those of the run; by default the only one."""

    rank: int = 0
    count: int = 1
    device: str = ""  # its own, if there are several processes
    _group: ProcessGroup | None = field(default=None, repr=False)  # gloo, patient

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def share(self, rows: int) -> slice:
        """The rows of this process: as many as of the others, or one more; none if there are too few."""
        return part_of(rows, self.rank, self.count)

    def all_reduce(self, values: Tensor) -> None:
        """Sum `values` over all processes, in place; the result has the same bits everywhere."""
        if self.count > 1:
            import torch.distributed

            with _reporting_lost_processes():
                torch.distributed.all_reduce(values)

    def from_main(self, make: Callable[[], T]) -> T:
        """What `make` gives on the main process, where alone it runs; its StudioError is raised by all."""
        if self.count == 1:
            return make()
        import torch.distributed

        outcome = [self._attempt(make) if self.is_main else None]
        with _reporting_lost_processes():
            torch.distributed.broadcast_object_list(outcome, src=0, group=self._group)
        return self._agreed(outcome)[0]

    def each(self, make: Callable[[], T]) -> list[T]:
        """What `make` gives on every process, by rank, once all are done; a StudioError is raised by all."""
        if self.count == 1:
            return [make()]
        import torch.distributed

        outcomes: list[Any] = [None] * self.count
        mine = self._attempt(make)
        with _reporting_lost_processes():
            torch.distributed.all_gather_object(outcomes, mine, group=self._group)
        return self._agreed(outcomes)

    @contextmanager
    def folder_of_main(self, folder: Path) -> Iterator[Path]:
        """The files of a folder that perhaps only the main process's machine has, in a folder here."""
        if self.count == 1:
            yield folder
            return
        files = self.from_main(lambda: {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()})
        if self.is_main:
            yield folder
            return
        with TemporaryDirectory() as copy:
            for name, content in files.items():
                (Path(copy) / name).write_bytes(content)
            yield Path(copy)

    def _attempt(self, make: Callable[[], T]) -> T | StudioError:
        try:
            return make()
        except ProcessLost:
            raise
        except StudioError as error:
            return error

    def _agreed(self, outcomes: list[Any]) -> list[Any]:
        for one in outcomes:
            if isinstance(one, StudioError):
                one.told_by_main = True
                raise one
        return outcomes


ALONE = Processes()


def join_processes(device: str) -> Processes:
    """This process among those launched. Raises RecipeError without a device for each, or ProcessLost."""
    if num_launched() == 1:
        return ALONE
    import torch
    from accelerate import PartialState

    let_memory_expand()
    asked = os.environ.get("ACCELERATE_USE_CPU", "").lower() == "true"  # accelerate launch --cpu
    on_cpu = device == "cpu" or asked or not torch.cuda.is_available()
    _check_devices(device, 0 if on_cpu else torch.cuda.device_count())
    os.environ.setdefault("TORCH_NCCL_BLOCKING_WAIT", "1")  # else NCCL ends a lone process without a message
    _said("RANK", 0)
    with _reporting_lost_processes():
        try:
            state = PartialState(cpu=on_cpu, timeout=_timeout(STEP_MINUTES))
        except ValueError as error:  # of variables that a launcher sets together
            what = f"{num_launched()} processes are said to be launched, but not how they find each other"
            how = "unset WORLD_SIZE, or start with accelerate launch or torchrun"
            raise RecipeError(f"{what} ({reason_of(error)}); {how}.") from None
        import torch.distributed

        patient = torch.distributed.new_group(backend="gloo", timeout=_timeout(WAIT_MINUTES))
    name = "cpu" if on_cpu else f"cuda:{state.local_process_index}"
    return Processes(state.process_index, state.num_processes, name, patient)


def leave_processes(processes: Processes) -> None:
    if processes.count > 1:
        from accelerate import PartialState

        PartialState().destroy_process_group()


def _check_devices(device: str, num_gpus: int) -> None:
    if device.partition(":")[2]:
        launched = f"{num_launched()} processes were launched, each for a device of its own"
        raise RecipeError(f'machine.device is {device!r}, but {launched}; set it to "auto".')
    if num_gpus and _said("LOCAL_RANK", 0) >= num_gpus:
        what = f"this machine has {num_gpus} GPUs, but more processes were launched on it"
        raise RecipeError(f"{what}; launch as many on each machine as it has GPUs.")


def _timeout(minutes: float) -> timedelta:
    return timedelta(minutes=_said(TIMEOUT, minutes, least=0.01, kind=float))


@contextmanager
def _reporting_lost_processes() -> Iterator[None]:
    try:
        yield
    except (RuntimeError, ConnectionError) as error:  # torch.distributed's errors are RuntimeErrors
        text = str(error).lower()
        if any(words in text for words in ("closed", "reset by peer", "broken pipe")):
            what = "another process of this run has ended"
        elif "time" in text and "out" in text:
            what = "another process of this run has not answered in time"
        else:
            what = f"the processes of this run cannot reach each other ({reason_of(error)})"
        raise ProcessLost(what) from None


ALLOCATOR = "PYTORCH_CUDA_ALLOC_CONF"  # the name that all versions of torch read
_ITS_OTHER_NAMES = ("PYTORCH_ALLOC_CONF", "PYTORCH_HIP_ALLOC_CONF")


def let_memory_expand() -> None:
    """Have CUDA's memory grow in segments, unless the user has set its allocator up: before its first use.

    Batches come in the shapes of their buckets, and blocks of one shape are too small for another, so that a
    device ran full of gaps. Windows does not have it.
    """
    if sys.platform == "linux" and not any(os.environ.get(name) for name in (ALLOCATOR, *_ITS_OTHER_NAMES)):
        os.environ[ALLOCATOR] = "expandable_segments:True"


def find_device(asked: str) -> torch.device | None:
    """ "" and "auto" are a GPU if there is one, else the CPU; None for a device that is not there.

    As tensors say it, so with its number: `torch.device("cuda")` does not equal `torch.device("cuda:0")`.
    """
    import torch

    let_memory_expand()
    name = ("cuda" if torch.cuda.is_available() else "cpu") if asked in ("", "auto") else asked
    try:
        return torch.empty(0, device=torch.device(name)).device
    except (RuntimeError, AssertionError):  # torch without CUDA asserts
        return None


def default_precision(device: torch.device) -> torch.dtype:
    """float32, and on a GPU as `half_precision`."""
    import torch

    is_gpu = device.type == "cuda"
    return half_precision(torch.cuda.get_device_capability(device)) if is_gpu else torch.float32


def half_precision(capability: tuple[int, int]) -> torch.dtype:
    """bfloat16 on a GPU that computes in it, float16 on an older one.

    torch emulates bfloat16 below compute capability 8.0 (T4, RTX 20), slowly and without some kernels.
    """
    import torch

    return torch.bfloat16 if capability >= BFLOAT16_FROM else torch.float16


def to_device(values: Tensor, device: torch.device) -> Tensor:
    """The same values there, for which the host does not wait: a GPU copies them from pinned memory."""
    if device.type == "cuda" and values.device.type == "cpu":
        return values.pin_memory().to(device, non_blocking=True)
    return values.to(device)
