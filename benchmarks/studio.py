"""What the page of `lora-studio web` costs: until it is ready, for a grid of thousands, beside a training.

`python benchmarks/studio.py` starts the page on a project of its own and opens it in Chromium, by playwright
(CHROMIUM names its program). A training on the pocket base runs while five pages show it and while none does,
in turns, so that whatever else the machine does hits both: the ratio of its speeds is of one run. Processor
seconds are of the server alone and of the browser; waiting for a busy machine is not in them.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

import httpx
import numpy as np
import psutil
from figures import Criterion, at_most, criteria_table, machine, write_json
from PIL import Image
from playwright.sync_api import Page, sync_playwright

RESULTS = Path(__file__).parent / "results" / "studio.json"
SAMPLES = Path(__file__).parents[1] / "sample_images" / "style_woodcut"
TOKEN = "a-token-of-this-benchmark-alone"
SIZES = ((1024, 768), (768, 1024), (1024, 1024), (1536, 1024))  # of the images, in pixels
PAGES = 5
_CHANGES = [
    *("training.steps=100000", "training.checkpoint_every=100000", "training.batch_size=1"),
    *("adapter.rank=4", "objective.preservation=0", "samples.prompts=[]"),  # several steps a second
]
_DRAWN = """() => {
  const seen = [...document.querySelectorAll(".image-grid img")].filter((one) => {
    const box = one.getBoundingClientRect();
    return box.top < innerHeight && box.bottom > 0;
  });
  return seen.length >= 5 && seen.every((one) => one.complete && one.naturalWidth);
}"""


def write_images(folder: Path, count: int) -> None:
    """JPEGs of a few contents, each a file of its own with a caption."""
    folder.mkdir(parents=True)
    rng, made = np.random.default_rng(0), list[bytes]()
    for width, height in SIZES * 6:
        small = rng.integers(0, 255, (height // 16, width // 16, 3), dtype=np.uint8)
        written = io.BytesIO()
        Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC).save(
            written, "JPEG", quality=88
        )
        made.append(written.getvalue())
    for number in range(count):
        (folder / f"{number:05}.jpg").write_bytes(made[number % len(made)] + b"\0" * number)
        (folder / f"{number:05}.txt").write_text(
            f"a thing, number {number}, and words about what is to be seen"
        )


def seconds_of(process: psutil.Process) -> float:
    """Of processors, without the processes that it began: the doctor's, or a worker's."""
    times = process.cpu_times()
    return float(times.user + times.system)


def browsers_seconds() -> float:
    """Of all processes of the browser that this one has begun."""
    total = 0.0
    for one in psutil.Process().children(recursive=True):
        try:
            total += seconds_of(one) if "chrom" in one.name().lower() else 0.0
        except psutil.Error:
            continue
    return total


@contextmanager
def served(project: Path, home: Path) -> Iterator[tuple[str, psutil.Process, float]]:
    """The page's address, its server and how many seconds it took until it was ready."""
    command = [sys.executable, "-m", "lora_studio", "web", "--no-browser", "--folder", str(project)]
    own = {"LORA_STUDIO_HOME": str(home), "XDG_CACHE_HOME": str(home), "LORA_STUDIO_WEB_TOKEN": TOKEN}
    begun = time.perf_counter()
    with subprocess.Popen(command, env=os.environ | own, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            found = re.search(r"(http://\S+?)/\?token=", process.stdout.readline())
            assert found is not None
            httpx.get(found[1], trust_env=False)
            yield found[1], psutil.Process(process.pid), time.perf_counter() - begun
        finally:
            process.terminate()


def first_screens(page: Page, address: str, server: psutil.Process, rounds: int) -> dict[str, list[float]]:
    """From the key that opens the folder to the last thumbnail on the screen, in seconds."""
    found: dict[str, list[float]] = {"clock": [], "server": [], "browser": []}
    for _ in range(rounds):
        page.goto(f"{address}/dataset")
        field = page.get_by_role("textbox", name="A folder of images, or a recipe")
        field.fill("many")
        page.wait_for_timeout(1500)
        before = time.perf_counter(), seconds_of(server), browsers_seconds()
        field.press("Enter")
        page.wait_for_function(_DRAWN)
        after = time.perf_counter(), seconds_of(server), browsers_seconds()
        for name, end, begin in zip(found, after, before, strict=True):
            found[name].append(round(end - begin, 3))
    return found


def train(project: Path, address: str) -> Path:
    """Have a training begun by the page's queue; its file of measurements, once there is one."""
    shutil.copytree(SAMPLES, project / "images")
    words = ("--images", "images", "--trigger", "woodcut print in ink on paper", "--name", "beside")
    command = [sys.executable, "-m", "lora_studio", "init", "pocket_style", *words]
    subprocess.run(command, cwd=project, check=True, capture_output=True)
    headers = {"Authorization": f"Bearer {TOKEN}"}
    asked = {"recipe": "beside.toml", "changes": _CHANGES}
    httpx.post(f"{address}/api/jobs", json=asked, headers=headers, trust_env=False).raise_for_status()
    rows = project / "runs" / "beside" / "metrics.jsonl"
    while not rows.is_file():
        time.sleep(0.5)
    return rows


def beside_a_training(
    pages: list[Page], address: str, server: psutil.Process, rows: Path, options: argparse.Namespace
) -> dict[str, list[float]]:
    """Of each round: the run's seconds a step with the pages and without, and what these took a second."""
    found: dict[str, list[float]] = {"with": [], "without": [], "server": [], "browser": []}
    for round_ in range(2 * options.rounds):
        shown = round_ % 2 == 0
        for page in pages:
            page.goto(f"{address}/run/beside" if shown else "about:blank")
        pages[0].wait_for_timeout(2000)
        begin = rows.stat().st_size, time.perf_counter(), seconds_of(server), browsers_seconds()
        pages[0].wait_for_timeout(1000 * options.seconds)
        clock = time.perf_counter() - begin[1]
        with rows.open("rb") as file:
            file.seek(begin[0])
            steps = [json.loads(line)["seconds"] for line in file.read().splitlines()[1:-1]]
        found["with" if shown else "without"].append(median(steps))
        if shown:
            found["server"].append((seconds_of(server) - begin[2]) / clock)
            found["browser"].append((browsers_seconds() - begin[3]) / clock)
    return found


def measured(folder: Path, options: argparse.Namespace) -> tuple[dict[str, object], list[Criterion]]:
    """All three, on a project that is made in the folder."""
    project = folder / "project"
    write_images(project / "many", 2000)
    program = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    with served(project, folder / "home") as (address, server, ready), sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        pages = [(context := browser.new_context()).new_page()]
        pages += [context.new_page() for _ in range(PAGES - 1)]
        context.set_default_timeout(300_000)  # milliseconds
        pages[0].goto(address)
        pages[0].fill("#token", TOKEN)
        pages[0].get_by_role("button", name="Open the studio").click()
        pages[0].wait_for_selector("header.top")
        grid = first_screens(pages[0], address, server, options.rounds)
        rows = train(project, address)
        beside = beside_a_training(pages, address, server, rows, options)
        httpx.post(
            f"{address}/api/jobs/1/stop", headers={"Authorization": f"Bearer {TOKEN}"}, trust_env=False
        )
        browser.close()
    slower = median(beside["with"]) / median(beside["without"]) - 1
    took = median(grid["server"][1:]) + median(grid["browser"][1:])
    judged = [
        at_most("ready, s by the clock", ready, 3),
        at_most("first screen of 2,000 images, processor s of server and browser", took, 1),
        at_most("five pages beside a training, cores of the server", median(beside["server"]), 0.02),
        at_most("how much slower a step is with the browser on the same machine", slower, 0.02),
    ]
    return {"ready": round(ready, 2), "first_screen": grid, "beside_a_training": beside}, judged


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=30, help="of a round beside the training")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        found, judged = measured(Path(scratch), options)
    write_json(found | {"criteria": [vars(one) for one in judged], "machine": machine()}, options.out)
    print(criteria_table(judged))
    sys.exit(0 if all(one.passed for one in judged) else 1)


if __name__ == "__main__":
    main()
