"""The process that is kept beside the page's server: it answers, is begun again, and stays behind nobody."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import psutil
import pytest

from lora_studio.errors import StudioError
from lora_studio.web.kept_process import KeptProcess

_SERVER = """
import os, sys, time
from lora_studio.web.kept_process import KeptProcess
if __name__ == "__main__":
    kept = KeptProcess()
    print(kept.call(os.getpid).result(), flush=True)
    long = kept.call(time.sleep, 600)
    if sys.argv[1] == "close":
        kept.close()
    else:
        time.sleep(600)
"""


@pytest.fixture
def kept() -> Iterator[KeptProcess]:
    made = KeptProcess()
    yield made
    made.close()


def refuse(words: str) -> None:
    raise StudioError(words)


def gone(process: psutil.Process) -> bool:
    """Not running, and no zombie of somebody who has yet to look."""
    try:
        process.wait(timeout=30)
    except psutil.TimeoutExpired:
        return False
    return True


def test_all_calls_are_answered_by_one_process_that_is_not_this_one(kept: KeptProcess):
    first, second = kept.call(os.getpid).result(), kept.call(os.getpid).result()
    assert first == second != os.getpid() and kept.call(divmod, 17, 5).result() == (3, 2)


def test_what_a_function_raises_is_raised_from_its_result(kept: KeptProcess):
    with pytest.raises(StudioError, match="no such base"):
        kept.call(refuse, "no such base").result()
    assert kept.call(abs, -3).result() == 3


def test_one_that_was_killed_is_a_sentence_and_the_next_call_begins_another(kept: KeptProcess):
    before = kept.call(os.getpid).result()
    with pytest.raises(StudioError, match="too little memory"):
        kept.call(os.kill, before, signal.SIGKILL).result()
    assert kept.call(os.getpid).result() != before


def test_it_ends_in_the_midst_of_a_call_without_a_warning_when_the_server_ends():
    done = subprocess.run(
        [sys.executable, "-c", _SERVER, "close"], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert not psutil.pid_exists(int(done.stdout))


@pytest.mark.skipif(os.name == "nt", reason="SIGKILL is of POSIX")
def test_none_stays_behind_a_server_that_was_killed():
    idle = _SERVER.replace("long = kept.call(time.sleep, 600)", "")
    with subprocess.Popen([sys.executable, "-c", idle, "wait"], stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        child = psutil.Process(int(server.stdout.readline()))
        beside = psutil.Process(server.pid).children(recursive=True)
        server.kill()
    assert child in beside and all(map(gone, beside))
