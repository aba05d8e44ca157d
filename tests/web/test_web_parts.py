"""What the page is made of: folders, settings, measurements that grow, sheets, the start of the server."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import typer
from PIL import Image
from sites import write_run

from lora_studio import cli
from lora_studio.errors import StudioError
from lora_studio.evaluate.preview_sheet import cell_of, sheet_of
from lora_studio.jobs import Job, Queue
from lora_studio.runs.following import FollowedRows
from lora_studio.web.asked import VERB_OPTIONS, AskedVerb
from lora_studio.web.curves import FollowedCurve, ThinnedCurve, thinned
from lora_studio.web.folders import AllowedFolders, NotAllowed
from lora_studio.web.gpu_memory import GpuMemory
from lora_studio.web.live import LiveRuns, RunNow
from lora_studio.web.server import bind
from lora_studio.web.settings import PORT, WebSettings
from lora_studio.web.work import startable

TORCHLESS = """
import sys
import lora_studio.web, lora_studio.web.server, lora_studio.web.studio
import lora_studio.web.api, lora_studio.web.app
from lora_studio.web.pages import register_pages
register_pages(); lora_studio.web.api.routers()
sys.exit("torch" in sys.modules)
"""


def test_the_server_does_not_import_torch():
    pytest.importorskip("nicegui")
    assert subprocess.run([sys.executable, "-c", TORCHLESS]).returncode == 0


def test_a_path_is_resolved_within_the_folders(tmp_path: Path):
    project, other = tmp_path / "project", tmp_path / "other"
    project.mkdir()
    other.mkdir()
    folders = AllowedFolders.of([project, other])
    assert folders.resolve("a/../b.png") == project / "b.png"
    assert folders.resolve(other / "x") == other / "x"
    (project / "link").symlink_to(tmp_path)
    for path in ("..", "/etc/passwd", "link/other2", "a\0b", "~nobody/x", "a/../../b", "x" * 5000):
        if path not in ("~nobody/x", "x" * 5000):
            with pytest.raises(NotAllowed):
                folders.resolve(path)
    with pytest.raises(NotAllowed):
        folders.resolve("../other/x", within=project)


@pytest.mark.parametrize(
    ("host", "token", "why"),
    [
        ("0.0.0.0", "", "--token"),
        ("192.168.1.2", "", "--token"),
        ("127.0.0.1", "short", "16"),
        ("::", "ü" * 20, "16"),
    ],
)
def test_others_need_a_token_that_cannot_be_guessed(tmp_path: Path, host: str, token: str, why: str):
    with pytest.raises(StudioError, match=why):
        WebSettings.checked([tmp_path], host=host, port=PORT, token=token)


def test_names_and_addresses_of_this_page(tmp_path: Path):
    own = WebSettings.checked([tmp_path], host="127.0.0.1", port=7861, token="")
    assert [own.is_own_host(one) for one in ("127.0.0.1:7861", "localhost:7861", "[::1]:7861")] == [True] * 3
    assert not any(map(own.is_own_host, ("192.168.1.2:7861", "evil:7861", "127.0.0.1", "127.0.0.1:80", "")))
    everywhere = WebSettings.checked([tmp_path], host="0.0.0.0", port=7861, token="x" * 16)
    assert everywhere.is_own_host("192.168.1.2:7861") and not everywhere.is_own_host("evil.example:7861")
    assert "x" * 16 not in repr(everywhere)


def test_a_taken_port_becomes_a_free_one_unless_it_was_asked_for():
    first, port = bind("127.0.0.1", None)
    second, other = bind("127.0.0.1", None)
    with first, second:
        assert other != port
        with pytest.raises(StudioError, match="--port"):
            bind("127.0.0.1", other)


def test_measurements_are_read_on_from_where_they_were(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    followed = FollowedRows(path)
    assert not followed.look()
    path.write_text('{"step": 1, "loss": 1.0}\nbroken\n{"step": 2, "lo')
    assert followed.look() and [row["step"] for row in followed.rows] == [1]
    with path.open("a") as file:
        file.write('ss": 0.5}\n{"step": 2, "loss": 9}\n')
    assert followed.look() and followed.rows == [{"step": 1, "loss": 1.0}, {"step": 2, "loss": 0.5}]
    assert not followed.look()
    new = tmp_path / "new"
    new.write_text('{"step": 1, "loss": 3.0}\n')
    new.replace(path)  # as a resume does
    assert followed.look() and followed.rows == [{"step": 1, "loss": 3.0}]
    path.unlink()
    assert followed.look() and followed.rows == []


def test_a_run_that_has_just_begun_is_found_by_its_address(tmp_path: Path):
    live = LiveRuns(AllowedFolders.of([tmp_path]), Queue(tmp_path / "queue"))
    assert live.runs() == []
    write_run(tmp_path / "runs" / "new")  # well before the folders are looked through again
    with pytest.raises(StudioError, match="there is no run new here"):
        live.look_at("new")  # as a page that is open does many times a second
    assert live.run("new").name == "new"
    with pytest.raises(StudioError, match="there is no run old here"):
        live.run("old")


@pytest.mark.parametrize("side", [64, 300])
def test_every_image_of_a_sheet_is_found_where_it_was_put(side: int):
    colours = [["red", "green"], ["blue", "yellow"], ["black", "white"]]
    images = [[Image.new("RGB", (side, side), one) for one in row] for row in colours]
    sheet = sheet_of(
        ["a", "b", "c"], {"base": [row[0] for row in images], "tuned": [row[1] for row in images]}
    )
    for row, pair in enumerate(images):
        for column, image in enumerate(pair):
            cell = sheet.crop(cell_of(sheet.size, (row, column), (3, 2)))
            assert cell.getcolors() == [(cell.width * cell.height, image.getpixel((0, 0)))]
            assert cell.width >= side
    with pytest.raises(ValueError):
        cell_of((10, 10), (0, 0), (3, 2))


def test_options_that_may_be_asked_for_are_those_of_the_verbs():
    commands = typer.main.get_command(cli.app).commands
    for verb, options in VERB_OPTIONS.items():
        known = {name for one in commands[verb].params for name in one.opts}
        assert {f"--{name}" for name in options} <= known, verb


def test_an_option_is_one_word_with_its_value():
    asked = AskedVerb("sample", Path("-x"), {"prompt": "--out=/etc", "steps": 4})
    assert asked.arguments == ["--prompt=--out=/etc", "--steps=4", "--", "-x"]
    with pytest.raises(StudioError, match="no option"):
        AskedVerb("export", Path("x"), {"out": "y"}).arguments  # noqa: B018


def test_a_job_waits_for_a_worker_unless_it_waits_for_another():
    done, first = Job((), "", id=1, state="done"), Job((), "", id=2, after=1)
    assert startable([done, first]) and not startable([Job((), "", id=3, after=2)]) and not startable([done])


def test_long_courses_are_thinned_by_means():
    assert thinned([1.0, 2.0], 4) == [1.0, 2.0]
    assert thinned([1.0, 3.0, 5.0, 7.0], 2) == [2.0, 6.0]


@pytest.mark.parametrize("count", [1, 7, 8, 9, 50, 1000])
def test_a_curve_of_any_length_has_few_points_and_the_mean_of_all(count: int):
    curve, values = ThinnedCurve(8), [float(step**2 % 17) for step in range(count)]
    for step, value in enumerate(values):
        curve.add(step, value)
    points = curve.points
    assert len(points) == count if count < 7 else 3 <= len(points) <= 8
    steps = [step for step, _ in points]
    assert steps == sorted(steps) and all(0 <= step < count for step in steps)
    each = round(steps[1] - steps[0]) if len(steps) > 1 else 1  # measurements in every point but the last
    weights = [each] * (len(points) - 1) + [count - each * (len(points) - 1)]
    mean = sum(weight * value for weight, (_, value) in zip(weights, points, strict=True)) / count
    assert mean == pytest.approx(sum(values) / count)


def test_a_curve_goes_on_where_it_was_and_begins_anew_with_another_file(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    followed = FollowedRows(path)
    curve = FollowedCurve(followed, "loss", 600)
    path.write_text('{"step": 1, "loss": 1.0}\n{"step": 2, "loss": NaN}\n')
    followed.look()
    assert curve.points() == [(1.0, 1.0)]
    with path.open("a") as file:
        file.write('{"step": 3, "loss": 0.5}\n')
    followed.look()
    assert curve.points() == curve.points() == [(1.0, 1.0), (3.0, 0.5)]
    path.write_text('{"step": 1, "loss": 2.0}\n')
    followed.look()
    assert curve.points() == [(1.0, 2.0)]


SMI = """#!/bin/sh
echo "$@" >> {asked}
echo "NVIDIA <b>X</b>, 5120, 24576"
echo "nonsense"
"""


@pytest.mark.skipif(os.name == "nt", reason="a script stands for the program")
def test_a_gpus_memory_is_asked_for_while_a_run_is_on_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (program := tmp_path / "nvidia-smi").write_text(SMI.format(asked=tmp_path / "asked"))
    program.chmod(0o700)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    run = RunNow("a", "a", tmp_path, "running", 1, "cpu", 0, 4, None, None, (), "", "", 0.0, ())
    gpus = GpuMemory()
    for device in ("cpu", "cuda:3"):
        assert gpus.words == ""
        asyncio.run(gpus.look(replace(run, device=device)))
    asyncio.run(gpus.look(replace(run, state="finished", device="")))
    assert gpus.words == "5.00 GiB of 24.00 GiB on NVIDIA <b>X</b>"
    assert len((asked := (tmp_path / "asked").read_text()).splitlines()) == 1 and "--id=3" in asked


@pytest.mark.slow  # torch is imported three times
def test_a_verb_is_answered_as_the_command_line_does(tmp_path: Path):
    from lora_studio.web.commands import VerbRunner

    async def ask() -> object:
        runner = VerbRunner(tmp_path)
        try:
            return await runner.run("runs", "compare", "nothing")
        finally:
            await runner.close()

    (tmp_path / "json.py").write_text("raise SystemExit('imported from the project')")
    with pytest.raises(StudioError) as caught:
        asyncio.run(ask())
    command = [sys.executable, "-P", "-m", "lora_studio", "runs", "compare", "nothing", "--json"]
    told = subprocess.run(command, cwd=tmp_path, env=os.environ, capture_output=True, text=True)
    assert told.stderr == f"error: {caught.value}\n" and not json.loads(told.stdout or "[]")
