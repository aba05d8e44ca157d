"""What a run tells while it goes on: in a file, and to whoever presses Ctrl-C."""

from __future__ import annotations

import io
import os
import re
import signal
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
from tiny import recipe_text

from lora_studio.console import Screen
from lora_studio.console.run import RunLines, RunScreen, run_screen
from lora_studio.console.terminal import answer_interrupts
from lora_studio.errors import Interrupted
from lora_studio.runs.interrupts import interruptible
from lora_studio.training.events import Note, Progress, StepDone, StopAsked
from lora_studio.training.session import train


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def lines_of(events: list[tuple[float, object]]) -> list[str]:
    """What is printed of events, each so many seconds behind the one before."""
    paper, clock = io.StringIO(), Clock()
    with RunLines(Screen(file=paper, width=60), clock) as lines:
        for seconds, event in events:
            clock.now += seconds
            lines(event)
    return paper.getvalue().splitlines()


def steps(count: int, seconds: float) -> list[tuple[float, object]]:
    return [
        (seconds, StepDone(step, count, loss=step, learning_rate=1, seconds=seconds, grad_norm=1))
        for step in range(1, count + 1)
    ]


def test_a_file_gets_a_line_at_once_then_every_few_seconds_and_at_the_end() -> None:
    found = lines_of(steps(60, 1.0))
    assert found[0] == "step 1 of 60: loss 1.0000, 1.00 s/step, 59 s left"
    assert found[1] == "step 6 of 60: loss 4.0000, 1.00 s/step, 54 s left"  # the mean of 2 to 6
    assert found[-1].startswith("step 60 of 60: loss 58.5000") and found[-1].endswith("0 s left")
    assert len(found) == 13


def test_a_long_run_has_a_line_a_minute() -> None:
    found = lines_of(steps(3 * 3600, 1.0))
    told = [int(re.match(r"step (\d+)", line)[1]) for line in found]
    gaps = [after - before for before, after in pairwise(told)]
    assert max(gaps) == 60 and gaps[0] == 5 and len(found) < 300
    assert "2 h 59 min left" in found[0]


def test_a_slow_step_is_told_each_time_and_a_resumed_run_knows_its_speed() -> None:
    found = lines_of(steps(20, 30.0)[10:])
    assert len(found) == 10 and found[0].startswith("step 11 of 20: loss 11.0000, 30.00 s/step, 4 min 30 s")


def test_other_work_is_told_when_it_begins_and_ends() -> None:
    work = [(0.1, Progress("latents", done, 28)) for done in range(1, 29)]
    assert lines_of([*work, (0, Note("verified"))]) == ["latents: 1 of 28", "latents: 28 of 28", "verified"]
    slow = [(2.0, Progress("latents", done, 10)) for done in range(1, 11)]
    assert [line.split()[1] for line in lines_of(slow)] == ["1", "4", "7", "10"]


def test_a_terminal_gets_bars_and_a_file_lines() -> None:
    assert isinstance(run_screen(Screen(file=io.StringIO())), RunLines)
    terminal = Screen(file=io.StringIO())
    terminal._force_terminal = True
    assert isinstance(run_screen(terminal), RunScreen)


WATCHED = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in whatever a shell's background began
class Watch:
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            DO
sys.meta_path.insert(0, Watch())
from lora_studio.__main__ import main
main()
"""


def started(tmp_path: Path, when_torch_is_imported: str) -> subprocess.CompletedProcess[str]:
    (tmp_path / "a.toml").write_text(recipe_text(tmp_path / "none", "pocket"), "utf-8")
    script = WATCHED.replace("DO", when_torch_is_imported)
    words = [sys.executable, "-c", script, "train", "a.toml"]
    return subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=60)


def test_the_first_line_comes_before_what_takes_long_to_import(tmp_path: Path) -> None:
    ended = started(tmp_path, "sys.stdout.flush(); os._exit(7)")
    assert ended.returncode == 7 and ended.stdout == "tiny: reading the base model and the images\n"


def test_ctrl_c_while_it_is_imported_is_answered_and_ends_in_a_sentence(tmp_path: Path) -> None:
    ended = started(tmp_path, "os.kill(os.getpid(), signal.SIGINT)")
    assert ended.returncode in (130, -signal.SIGINT)
    assert ended.stderr.split("\n") == ["", "stopping", "stopped at once; no checkpoint was written yet", ""]


def test_ctrl_c_before_anything_has_begun_is_a_sentence(tmp_path: Path) -> None:
    script = "import sys; from lora_studio import __main__ as m; sys.modules['lora_studio.cli'] = None; "
    script += "import os, signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
    script += "sys.meta_path.insert(0, type('W', (), {'find_spec': staticmethod("
    script += (
        "lambda *a: os.kill(os.getpid(), signal.SIGINT))})()); del sys.modules['lora_studio.cli']; m.main()"
    )
    words = [sys.executable, "-c", script]
    ended = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=60)
    assert (ended.returncode, ended.stderr) == (130, "\nstopped before anything was begun\n")


@pytest.fixture
def usual_interrupts():
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_a_second_ctrl_c_is_answered_too_and_stops_at_once(usual_interrupts, capfd) -> None:
    answer_interrupts()
    told = []
    with pytest.raises(KeyboardInterrupt), interruptible(lambda: told.append("first")) as asked:
        os.kill(os.getpid(), signal.SIGINT)
        assert asked.wait(5) and told == ["first"]
        os.kill(os.getpid(), signal.SIGINT)
        asked.clear()
        asked.wait(5)
    assert capfd.readouterr().err == "\nstopping\n"


def test_what_a_background_job_ignores_stays_ignored(usual_interrupts) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    answer_interrupts()
    assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN


def test_ctrl_c_in_a_step_says_at_once_that_the_step_is_ended_first(tmp_path, images, tiny_base) -> None:
    (tmp_path / "a.toml").write_text(recipe_text(images, str(tiny_base)), "utf-8")
    heard: list[object] = []

    def listen(event: object) -> None:
        heard.append(event)
        if isinstance(event, StepDone) and event.step == 1:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(Interrupted) as stopped:
        train(tmp_path / "a.toml", tmp_path / "run", on_event=listen)
    kinds = [type(event) for event in heard if isinstance(event, StepDone | StopAsked)]
    assert kinds[:2] == [StepDone, StopAsked] and stopped.value.step == 1
    assert "with a checkpoint" in next(event.text for event in heard if isinstance(event, StopAsked))


def test_the_answer_goes_past_a_stream_that_is_busy(capfd) -> None:
    class Busy(io.StringIO):
        def write(self, text: str) -> int:
            raise RuntimeError("reentrant call")

    RunLines(Screen(file=Busy()))(StopAsked("wait"))
    assert capfd.readouterr().err == "\nwait\n"
