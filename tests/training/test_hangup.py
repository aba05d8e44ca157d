"""A terminal that closes, as when an ssh connection is lost, costs no step."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from tiny import recipe_text

from lora_studio.recipe.load import load_recipe
from lora_studio.runs import Run
from lora_studio.runs.interrupts import interruptible
from lora_studio.runs.lock import LOCK
from lora_studio.training.events import Event
from lora_studio.training.finish import Finished
from lora_studio.training.session import train

needs_hangup = pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="Windows has no SIGHUP")


@pytest.fixture(autouse=True)
def as_in_a_terminal() -> Iterator[None]:
    """Also where the tests run under nohup."""
    if hangup := getattr(signal, "SIGHUP", None):
        before = signal.signal(hangup, signal.SIG_DFL)
        yield
        signal.signal(hangup, before)
    else:
        yield


@needs_hangup
def test_a_hangup_asks_once_and_is_ignored_where_it_was() -> None:
    with interruptible() as asked:
        signal.raise_signal(signal.SIGHUP)
        assert asked.is_set()
        signal.raise_signal(signal.SIGHUP)  # kernel and shell may both send one
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    assert signal.getsignal(signal.SIGHUP) == signal.SIG_DFL
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        with interruptible() as asked:
            signal.raise_signal(signal.SIGHUP)
            assert not asked.is_set()
    finally:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)


@needs_hangup
def test_a_terminal_that_closes_leaves_a_checkpoint(tmp_path: Path, images: Path, tiny_base: Path) -> None:
    import fcntl
    import termios

    (tmp_path / "r.toml").write_text(recipe_text(images, str(tiny_base), steps=3000), "utf-8")
    master, terminal = os.openpty()
    command = [sys.executable, "-m", "lora_studio", "train", str(tmp_path / "r.toml"), "--out"]
    process = subprocess.Popen(
        [*command, str(tmp_path / "run"), "--set", "training.checkpoint_every=3000"],
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    )
    os.close(terminal)
    try:
        os.set_blocking(master, False)
        run, end = Run(tmp_path / "run"), time.monotonic() + 120
        while len(run.metrics()) < 2 and process.poll() is None and time.monotonic() < end:
            time.sleep(0.1)
            with suppress(BlockingIOError):
                os.read(master, 2**16)  # a terminal that is not read stops the writer
        os.close(master)
        assert process.wait(60) == 130  # as after Ctrl-C
    finally:
        process.kill()
    done = run.metrics()[-1]["step"]
    assert 2 <= done < 3000
    assert [path.name for path in run.checkpoints()] == [f"step_{done:06}"]
    assert not (run.folder / LOCK).exists()


def test_a_listener_without_its_terminal_is_heard_no_more_and_the_run_ends_well(
    tmp_path: Path, images: Path, tiny_base: Path
) -> None:
    (tmp_path / "r.toml").write_text(recipe_text(images, str(tiny_base), steps=2), "utf-8")
    heard = list[Event]()

    def listen(event: Event) -> None:
        heard.append(event)
        raise OSError(errno.EIO, "Input/output error")

    result = train(load_recipe(tmp_path / "r.toml"), tmp_path / "run", on_event=listen)
    assert isinstance(result, Finished) and len(heard) == 1

    def full(event: Event) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        train(load_recipe(tmp_path / "r.toml"), tmp_path / "other", on_event=full)
