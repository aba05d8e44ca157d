"""The screen that every verb prints to."""

from __future__ import annotations

import ast
import io
import re
from pathlib import Path

import pytest
from rich.text import Text

import lora_studio
from lora_studio.console import Bars, Screen, print_plan
from lora_studio.text import PlanSection
from lora_studio.training.events import TrainingPlan


@pytest.fixture
def paper() -> io.StringIO:
    return io.StringIO()


@pytest.fixture
def screen(paper: io.StringIO) -> Screen:
    return Screen(file=paper, width=40)


def test_names_are_printed_as_they_are_and_long_lines_stay_whole(screen: Screen, paper: io.StringIO) -> None:
    name = "[bold]:dog: [link=x] 12 'a' " * 5
    screen.say(name)
    screen.say_rows([("file", name)])
    assert paper.getvalue().splitlines() == [name, f"{'file':12} {name}"]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_breaks_lines_between_words_and_never_in_a_command_or_what_is_longer() -> None:
    terminal, command = Terminal(), "lora-studio sample 'my run' --prompt 'a fox in the snow'"
    screen = Screen(file=terminal, width=40)
    screen.say_rows([("next", f"other prompts, strengths and seeds: {command}")])
    screen.say("photos without a caption; `lora-studio caption photos` writes them")
    screen.say("  " + "/".join(["folder"] * 9))
    screen.say(Text("狐" * 10 + " " + "狐" * 12))
    assert re.sub(r"\x1b\[[0-9;]*m", "", terminal.getvalue()).splitlines() == [
        f"{'next':12} other prompts, strengths",
        f"{'':12} and seeds:",
        f"{'':12} {command}",
        "photos without a caption;",
        "  `lora-studio caption photos` writes",
        "  them",
        "  " + "/".join(["folder"] * 9),
        "狐" * 10,
        "  " + "狐" * 12,
    ]


def test_rows_are_broken_within_their_column(screen: Screen, paper: io.StringIO) -> None:
    screen.print_rows([("base", "x" * 60), ("", "[bold]")], heading="a plan")
    lines = [line.rstrip() for line in paper.getvalue().splitlines()]
    assert lines[0] == "a plan" and lines[-1].strip() == "[bold]"
    assert "".join(line.removeprefix("base").strip() for line in lines[1:-1]) == "x" * 60
    assert max(map(len, lines)) <= 40


def test_a_plan_prints_sections_that_it_knows_nothing_of(screen: Screen, paper: io.StringIO) -> None:
    sections = (
        PlanSection([("colour", "blue"), ("", "or green")], {"colour": ["blue", "green"]}),
        PlanSection([], {"taste": None}),
    )
    plan = TrainingPlan("fox", sections)
    print_plan(plan, screen)
    assert [line.split() for line in paper.getvalue().splitlines()] == [
        ["fox:", "what", "will", "be", "trained"],
        ["colour", "blue"],
        ["or", "green"],
    ]
    assert plan.data == {"name": "fox", "colour": ["blue", "green"], "taste": None}


def test_a_bar_appears_with_the_first_news_of_its_work(screen: Screen) -> None:
    with Bars(screen) as bars:
        assert not bars.tasks
        bars.show("latents", 3, 28)
        bars.show("latents", 4, 28)
        bars.show("steps", 7, 10, "loss 0.1")
    found = [(task.description, task.completed, task.total, task.fields["facts"]) for task in bars.tasks]
    assert found == [("latents", 4, 28, ""), ("steps", 7, 10, "loss 0.1")]


def test_no_module_makes_a_console_of_its_own() -> None:
    """So what is printed of files and hubs passes one place."""
    root = Path(lora_studio.__file__).parent
    makers = {
        path.relative_to(root).as_posix()
        for path in root.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.ImportFrom) and node.module == "rich.console"
    }
    assert makers == {"console/__init__.py"}


@pytest.mark.parametrize(("columns", "width"), [("0", 80), ("1", 20), ("20", 20), ("120", 120)])
def test_a_screen_without_a_width_still_shows_what_is_said(
    columns: str, width: int, paper: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some containers and editors set COLUMNS=0."""
    monkeypatch.setenv("COLUMNS", columns)
    screen = Screen(file=paper)
    screen.print_rows([("file", "a.safetensors")])
    assert screen.width == width and "file" in paper.getvalue() and ".safetensors" in paper.getvalue()
