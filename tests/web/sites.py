"""Servers of the page, each in a process of its own, over a project that means harm."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
from PIL import Image
from tiny import recipe_text

from lora_studio.evaluate.preview_sheet import sheet_of

TOKEN = "a-token-of-the-tests-alone"
EVIL = "<img src=x onerror=alert(1)>\"'`${alert(2)}"
EVIL_NAME = "<img src=x onerror=alert(1)>`${alert(2)}"  # without what a folder's name cannot have


@dataclass(frozen=True)
class Site:
    """A running page."""

    address: str
    launch: str  # the address that works once
    project: Path
    outside: Path  # a folder that is not the page's, with a file `secret.txt`
    process: subprocess.Popen[str]

    @property
    def host(self) -> str:
        return self.address.removeprefix("http://")

    def api(self, **headers: str) -> httpx.Client:
        """A client with the token."""
        return self.client(Authorization=f"Bearer {TOKEN}", **headers)

    def client(self, **headers: str) -> httpx.Client:
        return httpx.Client(base_url=self.address, headers=headers, timeout=60, verify=False, trust_env=False)

    @contextmanager
    def browser(self) -> Iterator[httpx.Client]:
        """A client with the cookie."""
        with self.client(Origin=self.address) as made:
            assert made.post("/sign-in", data={"token": TOKEN}).status_code == 303
            yield made

    def end(self) -> None:
        """As Ctrl-C does."""
        self.process.terminate()
        self.process.communicate(timeout=30)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def write_run(folder: Path, *, prompt: str = "a robot") -> Path:
    """A run's folder as the page reads it: recipe, measurements and a sheet of previews."""
    (folder / "previews").mkdir(parents=True)
    text = recipe_text(folder, "pocket", steps=4)
    prompts = prompt.replace("\\", "\\\\").replace('"', '\\"')
    (folder / "recipe.toml").write_text(f'{text}\n[samples]\nprompts = ["{prompts}"]\n', "utf-8")
    rows = (f'{{"step": {n}, "loss": 0.{n}, "learning_rate": 0.001, "seconds": 0.5}}\n' for n in (1, 2, 3))
    (folder / "metrics.jsonl").write_text("".join(rows))
    red, blue = (Image.new("RGB", (64, 64), colour) for colour in ("red", "blue"))
    sheet_of([prompt], {"base": [red], "tuned": [blue]}).save(folder / "previews" / "step_000002.png")
    return folder


def write_project(project: Path, outside: Path) -> None:
    """Runs with names and prompts that are scripts, broken images, and links that lead out."""
    outside.mkdir()
    (outside / "secret.txt").write_text("the secret of another folder")
    run = write_run(project / "runs" / "plain", prompt=EVIL)
    write_run(project / "runs" / EVIL_NAME, prompt=EVIL)
    (run / "link.txt").symlink_to(outside / "secret.txt")
    (run / "way").symlink_to(outside)
    (run / "page.html").write_text("<script>alert(3)</script>")
    (run / "previews" / "step_000003.png").write_bytes(b"\x89PNG\r\n\x1a\nbroken")
    (project / "runs" / "linked").symlink_to(outside)
    (outside / "recipe.toml").write_text("[training]\nsteps = 1\n")


def start_site(project: Path, outside: Path, home: Path, *more: str) -> Site:
    """Begin a server and wait for its address."""
    port = free_port()
    command = [sys.executable, "-m", "lora_studio", "web", "--no-browser", "--token", TOKEN]
    process = subprocess.Popen(
        [*command, "--port", str(port), "--folder", str(project), *more],
        env={**os.environ, "LORA_STUDIO_HOME": str(home)},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    line = process.stdout.readline()
    found = re.search(r"(http://\S+?)/\?token=\S+", line)
    assert found is not None, line
    return Site(found[1], found[0], project, outside, process)
