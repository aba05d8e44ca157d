"""A run is the queue's: it goes on when the page's server is killed, and the next one finds it again."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("nicegui")
from sites import Site, start_site
from tiny import image_folder, recipe_text


def until(true: Callable[[], object], seconds: float = 90) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.2)


def run_of(site: Site) -> dict[str, object]:
    with site.api() as api:
        return next(iter(api.get("/api/runs").json()), {})


@pytest.mark.slow
def test_a_run_survives_the_server(tmp_path: Path, tiny_base: Path):
    project, outside, home = tmp_path / "project", tmp_path / "outside", tmp_path / "home"
    images = image_folder(project / "images")
    recipe = project / "tiny.toml"
    recipe.write_text(recipe_text(images, str(tiny_base), steps=3000))
    first = start_site(project, outside, home)
    with first.api() as api:
        assert api.post("/api/jobs", json={"recipe": "tiny.toml"}).status_code == 201
    until(lambda: int(str(run_of(first).get("step") or 0)) > 3)
    first.process.send_signal(signal.SIGKILL)
    first.process.communicate()
    rows = project / "runs" / "tiny" / "metrics.jsonl"
    before = rows.stat().st_size
    until(lambda: rows.stat().st_size > before)  # nobody looks, and it goes on
    second = start_site(project, outside, home)
    try:
        found = run_of(second)
        assert found["state"] == "running" and int(str(found["step"])) > 3
        with second.api() as api:
            until(lambda: len(api.get("/api/runs/tiny").json()["checkpoints"]) > 0)
            api.post(f"/api/jobs/{found['job']}/stop")
            until(lambda: run_of(second)["state"] == "stopped")
            assert api.get("/api/runs/tiny/metrics").json()[-1]["step"] >= 2
    finally:
        second.end()
    told = [entry for entry in (home / "web_worker.log").read_text().splitlines() if "running" in entry]
    assert len(told) == 1  # no second worker has begun it again
