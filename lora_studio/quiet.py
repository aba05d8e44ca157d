"""How loud the libraries below us are, what they import of themselves, and how long their threads spin."""

from __future__ import annotations

import gc
import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any, ParamSpec, TypeVar

BITSANDBYTES = "bitsandbytes"
WAITING = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "KMP_BLOCKTIME")  # how OpenMP's threads wait for each other
SPINS, SPINS_BESIDE_OTHERS = 30_000, 3_000  # in place of libgomp's own 300,000
BUSY = 40.0  # percent of the cores that others take
GPUS = (Path("/dev/nvidiactl"), Path("/dev/kfd"), Path("/dev/dxg"))  # NVIDIA's, AMD's, and those under WSL
LOUD = ("torchao", "torch.utils._pytree", BITSANDBYTES)  # each tells of kernels it has not got
LIBRARIES = ("transformers", "diffusers", "peft")  # whose own variables count when they are imported
DEPRECATED = "`FluxPosEmbed` is deprecated"  # diffusers' Chroma uses diffusers' own old name
Event = TypeVar("Event")
Found = TypeVar("Found")
Given = ParamSpec("Given")


def quiet_libraries() -> None:
    """Our own progress bars only, and nothing from the network that was not asked for."""
    for name in ("HF_HUB_DISABLE_PROGRESS_BARS", "HF_HUB_DISABLE_TELEMETRY"):
        os.environ.setdefault(name, "1")
    for name in ("TRANSFORMERS_VERBOSITY", "DIFFUSERS_VERBOSITY"):
        os.environ.setdefault(name, "error")
    for name in LOUD:
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", DEPRECATED, FutureWarning)


def quietly(function: Callable[Given, Found]) -> Callable[Given, Found]:
    """For another's process: the libraries are quiet while it runs, and as loud as before when it ends."""

    @wraps(function)
    def quiet(*args: Given.args, **kwargs: Given.kwargs) -> Found:
        there = {name: logging.getLogger(name).level for name in (*LOUD, *LIBRARIES) if name in sys.modules}
        quiet_libraries()
        for name in there:
            logging.getLogger(name).setLevel(logging.ERROR)
        try:
            return function(*args, **kwargs)
        finally:
            for name, level in there.items():
                logging.getLogger(name).setLevel(level)

    return quiet


def shorten_waits(device: str) -> None:
    """Let threads that train on a CPU and wait for each other soon sleep, unless the user has a say in it.

    Where other programs keep the cores busy, a thread that spins for milliseconds takes the core of the one
    that it waits for: a step of the demo took from 1 to 47 seconds in place of 0.3. So those that find the
    cores busy sleep ten times as soon, which without others costs up to a fifth of a step: sleepers are slow
    to wake. For a process of our own and before torch is imported, whose libgomp reads the environment once.
    """
    on_gpu = device.startswith("cuda") or (device != "cpu" and any(one.exists() for one in GPUS))
    if on_gpu or any(name in os.environ for name in WAITING):
        return
    import psutil

    others = psutil.cpu_percent(interval=0.1) > BUSY
    os.environ["GOMP_SPINCOUNT"] = str(SPINS_BESIDE_OTHERS if others else SPINS)


@contextmanager
def paused_collector() -> Iterator[None]:
    """No search for cycles of garbage inside: a fifth of the time to a run's first step, for nothing."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


@contextmanager
def paused_until_told() -> Iterator[Callable[[Callable[[Event], None]], Callable[[Event], None]]]:
    """A pause that ends when the first event is told to a listener; what is there by then is never searched.

    For a process of our own: in another's, garbage that is there already would stay for good.
    """

    def ends_pause(listener: Callable[[Event], None]) -> Callable[[Event], None]:
        def hear(event: Event) -> None:
            if not gc.isenabled():
                gc.freeze()
                gc.enable()
            listener(event)

        return hear

    with paused_collector():
        yield ends_pause


@contextmanager
def without_loading_bars() -> Iterator[None]:
    """Inside, transformers shows no bar of its own for weights that it reads."""
    from transformers.utils import logging as loudness

    was_shown = loudness.is_progress_bar_enabled()
    loudness.disable_progress_bar()
    try:
        yield
    finally:
        if was_shown:
            loudness.enable_progress_bar()


class _OnDemand(ModuleType):
    """A module that is imported when something of it is asked for."""

    def __getattr__(self, name: str) -> object:
        if name.startswith("__") and name != "__path__":  # whoever looks through all modules asks for such
            raise AttributeError(name)
        if sys.modules.get(self.__name__) is self:
            del sys.modules[self.__name__]
        return getattr(import_module(self.__name__), name)


def bitsandbytes_on_demand() -> None:
    """Let bitsandbytes be imported by its first use; with LazyLoader `find_spec` and `import` would do it.

    diffusers and PEFT import it whether or not anything is quantised, and with it torch's compiler: a second.
    """
    if BITSANDBYTES not in sys.modules and (spec := find_spec(BITSANDBYTES)) is not None:
        module = _OnDemand(BITSANDBYTES)
        module.__spec__, module.__file__ = spec, spec.origin
        sys.modules[BITSANDBYTES] = module


@contextmanager
def without_bitsandbytes() -> Iterator[None]:
    """Inside, PEFT does not ask bitsandbytes of each layer whether it is its own, unless that is in use."""
    from peft import import_utils

    module = sys.modules.get(BITSANDBYTES)
    if not isinstance(module, _OnDemand):
        yield
        return
    missing: Any = None  # makes an import fail
    sys.modules[BITSANDBYTES] = missing
    try:
        yield
    finally:
        sys.modules[BITSANDBYTES] = module
        import_utils.is_bnb_available.cache_clear()
        import_utils.is_bnb_4bit_available.cache_clear()
