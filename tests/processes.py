"""Whole trainings in processes of their own, which may be killed or refused the disk at chosen moments.

They are forked from a process that has only imported what is needed, so that each starts at once; all have
the same number of threads, which is part of "the same machine".
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import resource
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path

CONTEXT = multiprocessing.get_context("forkserver")
PRELOADED = (
    *("lora_studio.training.session", "lora_studio.cli", "lora_studio.verify.trained"),
    *("bitsandbytes", "peft", "matplotlib.pyplot", "torch.distributed.fsdp", "torch._dynamo"),
    *("diffusers.models.unets.unet_2d_condition", "diffusers.models.autoencoders.autoencoder_kl"),
    *("diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion", "diffusers.loaders"),
    "transformers.models.clip.modeling_clip",
)
"""What a training imports, also what only when it is needed: four of the five seconds that one takes."""
CONTEXT.set_forkserver_preload([*PRELOADED])

Fault = Callable[[object], None]
"""A listener that does harm when it hears of a certain step."""


@dataclass(frozen=True)
class Outcome:
    """How a training ended."""

    code: int  # negative: killed by this signal
    said: str


def start(recipe: Path, folder: Path, *, resume: bool = False, fault: Fault | None = None) -> BaseProcess:
    """Begin training; what the command line would print as an error goes to `<folder>.txt`."""
    process = CONTEXT.Process(target=_train, args=(recipe, folder, resume, fault, {}))
    process.start()
    return process


def start_verb(folder: Path, *arguments: str, environment: dict[str, str] | None = None) -> BaseProcess:
    """Begin what the command line does with these arguments; what it prints goes to `<folder>.txt`."""
    process = CONTEXT.Process(target=_verb, args=(_log(folder, 0), arguments, environment or {}))
    process.start()
    return process


def start_several(
    recipe: Path,
    folder: Path,
    environments: Sequence[dict[str, str]] = ({}, {}),
    *,
    resume: bool = False,
    fault: Fault | None = None,
) -> list[BaseProcess]:
    """The same in several processes, as a launcher starts them, with something of its own for each.

    What process 1 prints goes to `<folder>_1.txt`.
    """
    launched = launch_environments(len(environments))
    processes = [
        CONTEXT.Process(target=_train, args=(recipe, folder, resume, fault, {**extra, **own}))
        for extra, own in zip(launched, environments, strict=True)
    ]
    for process in processes:
        process.start()
    return processes


def launch_environments(count: int) -> list[dict[str, str]]:
    """What torchrun tells each of so many processes on this machine."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    shared = {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count), "OMP_NUM_THREADS": "1"}
    shared |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return [shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(count)]


def ends_of(processes: Sequence[BaseProcess], *, seconds: float = 100) -> list[int | None]:
    """Their exit codes, once all have ended; None for one that hangs, and is killed."""
    deadline = time.monotonic() + seconds
    for process in processes:
        process.join(max(0.0, deadline - time.monotonic()))
    codes = [process.exitcode for process in processes]
    for process in processes:
        process.kill()
    return codes


def train(recipe: Path, folder: Path, *, resume: bool = False, fault: Fault | None = None) -> Outcome:
    """Train to the end, whichever it is."""
    process = start(recipe, folder, resume=resume, fault=fault)
    process.join()
    assert process.exitcode is not None
    return Outcome(process.exitcode, said(folder))


def said(folder: Path, rank: int = 0) -> str:
    """What the last training in the folder printed, or one of its processes."""
    return _log(folder, rank).read_text("utf-8", "replace")


def _log(folder: Path, rank: int) -> Path:
    return folder.with_name(f"{folder.name}_{rank}.txt" if rank else f"{folder.name}.txt")


def _train(
    recipe: Path, folder: Path, resume: bool, fault: Fault | None, environment: dict[str, str]
) -> None:
    os.environ.update(environment)
    os.fsync = os.fstat  # as in conftest.py; a kill loses nothing that the system was given
    _print_to(_log(folder, int(environment.get("RANK", 0))))
    import torch

    import lora_studio
    from lora_studio.cli import guarded

    torch.set_num_threads(1)

    def run() -> None:
        if fault is None:
            lora_studio.train(recipe, folder, resume=resume)
        else:
            lora_studio.train(recipe, folder, resume=resume, on_event=fault)

    sys.exit(guarded(run))


def _verb(log: Path, arguments: Sequence[str], environment: dict[str, str]) -> None:
    os.environ.update(environment)
    _print_to(log)
    import torch

    from lora_studio.cli import main

    torch.set_num_threads(1)
    sys.argv[1:] = arguments
    main()


def _print_to(log: Path) -> None:
    file = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
    os.dup2(file, 1)
    os.dup2(file, 2)


@dataclass(frozen=True)
class AtStep:
    """Does something as soon as a step is done."""

    step: int
    do: Callable[[], None]

    def __call__(self, event: object) -> None:
        if type(event).__name__ == "StepDone" and event.step == self.step:  # type: ignore[attr-defined]
            self.do()


def interrupt() -> None:
    """Ctrl-C."""
    os.kill(os.getpid(), signal.SIGINT)


def kill() -> None:
    """What a machine that fails does."""
    os.kill(os.getpid(), signal.SIGKILL)


@dataclass(frozen=True)
class DieAtWrite:
    """SIGKILL before the n-th of the calls that make a file durable or give it its name."""

    number: int

    def __call__(self) -> None:
        calls = iter(range(1, 10_000))

        def dying(call: Callable[..., object]) -> Callable[..., object]:
            def wrapped(*arguments: object) -> object:
                if next(calls) == self.number:
                    os.kill(os.getpid(), signal.SIGKILL)
                return call(*arguments)

            return wrapped

        for name in ("fsync", "rename", "replace"):
            setattr(os, name, dying(getattr(os, name)))


def small_files_only() -> None:
    """No file may grow beyond 30 kB: the kernel refuses writes, as it does on a full disk."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


@dataclass(frozen=True)
class ReadOnly:
    """Takes the right to write from a folder, and from root the right to write all the same."""

    folder: Path

    def __call__(self) -> None:
        self.folder.chmod(0o555)
        if os.geteuid() == 0:
            header, sets = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
            library = ctypes.CDLL(None, use_errno=True)
            assert library.capget(header, sets) == 0
            sets[0] &= ~(1 << 1)  # CAP_DAC_OVERRIDE among the effective ones
            assert library.capset(header, sets) == 0
