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
import sys
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["lora_studio.training.session", "lora_studio.cli"])

Fault = Callable[[object], None]
"""A listener that does harm when it hears of a certain step."""


@dataclass(frozen=True)
class Outcome:
    """How a training ended."""

    code: int  # negative: killed by this signal
    said: str


def start(recipe: Path, folder: Path, *, resume: bool = False, fault: Fault | None = None) -> BaseProcess:
    """Begin training; what the command line would print as an error goes to `<folder>.txt`."""
    process = CONTEXT.Process(target=_train, args=(recipe, folder, resume, fault))
    process.start()
    return process


def train(recipe: Path, folder: Path, *, resume: bool = False, fault: Fault | None = None) -> Outcome:
    """Train to the end, whichever it is."""
    process = start(recipe, folder, resume=resume, fault=fault)
    process.join()
    assert process.exitcode is not None
    return Outcome(process.exitcode, said(folder))


def said(folder: Path) -> str:
    """What the last training in the folder printed."""
    return folder.with_suffix(".txt").read_text("utf-8", "replace")


def _train(recipe: Path, folder: Path, resume: bool, fault: Fault | None) -> None:
    file = os.open(folder.with_suffix(".txt"), os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
    os.dup2(file, 1)
    os.dup2(file, 2)
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
    """No file may grow beyond 100 kB: the kernel refuses writes, as it does on a full disk."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


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
