"""What the page of `lora-studio web` costs: until it is ready, for a grid of thousands, beside a training.

`python benchmarks/studio.py` starts the page on a project of its own and opens it in Chromium, by playwright
(CHROMIUM names its program). A training on the pocket base, with one thread, runs while five pages show it
and while none does, in turns of some steps each, in the order ABBA: whatever else the machine does hits both.
By the clock a step is so much slower with the pages, of each four turns, and the median of these is told:
with pages that are open at other machines, which are told all and drawn elsewhere, so that what they cost is
the run's part, and this is judged; with a browser here that draws them without a GPU, on a core of its own;
and with all on the same cores. The server may use every core in all of them. Processor seconds are of the
server alone, of the browser, and of the training's process; waiting for a busy machine is not in them. Turns
without pages begin once the server follows none any more, some twenty seconds later. It binds processes as
only Linux can. By the clock nothing is told by a machine with other work.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from statistics import mean, median
from typing import Any, BinaryIO

import httpx
import numpy as np
import psutil
from figures import Criterion, at_least, at_most, criteria_table, machine, write_json
from PIL import Image
from playwright.sync_api import Page, sync_playwright

RESULTS = Path(__file__).parent / "results" / "studio.json"
SAMPLES = Path(__file__).parents[1] / "sample_images" / "style_woodcut"
TOKEN = "a-token-of-this-benchmark-alone"
SIZES = ((1024, 768), (768, 1024), (1024, 1024), (1536, 1024))  # of the images, in pixels
PAGES = 5
ELSEWHERE, OWN_CORE, SAME_CORES = "seen elsewhere", "a core for the browser", "all on the same cores"
ARMS = (ELSEWHERE, OWN_CORE, ELSEWHERE, ELSEWHERE, SAME_CORES, ELSEWHERE)  # in turn; mostly what is judged
LET_GO = 0.005  # of a core, below which the server follows no page
_CHANGES = [
    *("training.steps=100000", "training.checkpoint_every=100000", "training.batch_size=1"),
    *("adapter.rank=4", "objective.preservation=0", "samples.prompts=[]"),  # more than five steps a second
]
# From the key to the last thumbnail on the screen; the browser tells, since asking it would cost time, too.
_FIRST_SCREEN = """() => {
  let begun;
  addEventListener("keydown", () => { begun = performance.now(); }, { once: true, capture: true });
  window.firstScreen = new Promise((done) => document.addEventListener("load", () => {
    const seen = [...document.querySelectorAll(".image-grid img")].filter((one) => {
      const box = one.getBoundingClientRect();
      return box.top < innerHeight && box.bottom > 0;
    });
    const drawn = seen.length >= 5 && seen.every((one) => one.complete && one.naturalWidth);
    if (drawn) done(performance.now() - begun);
  }, true));
}"""
_UPDATES = "window.updates || 0"  # of a page that had to be loaded again
_COUNT_UPDATES = """() => {
  window.updates = 0;
  const count = () => { window.updates += 1; };
  new MutationObserver(count).observe(document.querySelector(".numbers span"),
    { childList: true, characterData: true, subtree: true });
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


def bind(processes: Iterable[psutil.Process], cores: Collection[int]) -> None:
    """All of their threads and what they begin later, at one priority: Chromium of root has others."""
    own = os.getpriority(os.PRIO_PROCESS, 0)
    for one in processes:
        with suppress(psutil.NoSuchProcess):
            for thread in one.threads():
                with suppress(ProcessLookupError):  # it has ended
                    os.sched_setaffinity(thread.id, cores)
                with suppress(ProcessLookupError, PermissionError):  # only root may give a higher one
                    os.setpriority(os.PRIO_PROCESS, thread.id, own)


def wait_until_alone(server: psutil.Process) -> None:
    """It follows a page for some seconds after that was closed, in case it comes back."""
    for _ in range(60):
        before = seconds_of(server)
        time.sleep(5)  # psutil tells hundredths of a second
        if seconds_of(server) - before < 5 * LET_GO:
            return
    raise TimeoutError("the server goes on after its pages were closed.")


@contextmanager
def served(project: Path, home: Path) -> Iterator[tuple[str, psutil.Process, float]]:
    """The page's address, its server and how many seconds it took until it was ready."""
    command = [sys.executable, "-m", "lora_studio", "web", "--no-browser", "--folder", str(project)]
    own = {"LORA_STUDIO_HOME": str(home), "XDG_CACHE_HOME": str(home), "LORA_STUDIO_WEB_TOKEN": TOKEN}
    own["OMP_NUM_THREADS"] = "1"  # of the training, which its worker begins
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
    """From the key that opens the folder to the last thumbnail on the screen, in seconds.

    Thumbnails are made in the first round and lie in the cache afterwards.
    """
    found: dict[str, list[float]] = {"clock": [], "server": [], "browser": []}
    for _ in range(rounds):
        page.goto(f"{address}/dataset")
        field = page.get_by_role("textbox", name="A folder of images, or a recipe")
        field.fill("many")
        page.evaluate(_FIRST_SCREEN)
        page.wait_for_timeout(1000)  # until what filling it in has begun is done
        before = seconds_of(server), browsers_seconds()
        field.press("Enter")
        clock = page.evaluate("window.firstScreen") / 1000
        after = seconds_of(server), browsers_seconds()
        for name, value in zip(found, (clock, after[0] - before[0], after[1] - before[1]), strict=True):
            found[name].append(round(value, 3))
    return found


class Training:
    """A run that the page's queue has begun, by its rows; ended with it."""

    def __init__(self, project: Path, address: str) -> None:
        self._api = httpx.Client(
            base_url=f"{address}/api",
            headers={"Authorization": f"Bearer {TOKEN}"},
            trust_env=False,
            timeout=60,
        )
        shutil.copytree(SAMPLES, project / "images")
        words = ("--images", "images", "--trigger", "woodcut print in ink on paper", "--name", "beside")
        command = [sys.executable, "-m", "lora_studio", "init", "pocket_style", *words]
        subprocess.run(command, cwd=project, check=True, capture_output=True)
        asked = {"recipe": "beside.toml", "changes": _CHANGES}
        self._job = self._api.post("/jobs", json=asked).raise_for_status().json()["id"]
        self._rows = project / "runs" / "beside" / "metrics.jsonl"
        while not self._rows.is_file():
            time.sleep(0.2)
        self._process = psutil.Process(json.loads((self._rows.parent / "lock.json").read_bytes())["pid"])

    def steps(self, count: int) -> tuple[list[float], float]:
        """The seconds of the next steps, and those of processors that one of them took."""
        with self._rows.open("rb") as file:
            file.seek(0, os.SEEK_END)
            self._next(file)
            before = seconds_of(self._process)
            rows = [self._next(file) for _ in range(count)]
        return [float(one["seconds"]) for one in rows], (seconds_of(self._process) - before) / count

    def bind(self, cores: Collection[int]) -> None:
        """Its own threads alone."""
        bind([self._process], cores)

    def _next(self, file: BinaryIO) -> dict[str, Any]:
        """The next whole row, as soon as it is written."""
        line = b""
        while not line.endswith(b"\n"):
            line += (more := file.readline())
            time.sleep(0 if more else 0.002)
        return dict(json.loads(line))

    def end(self) -> None:
        """Its folder is nobody's afterwards."""
        self._api.post(f"/jobs/{self._job}/stop").raise_for_status()
        while self._process.is_running() and self._process.status() != psutil.STATUS_ZOMBIE:
            time.sleep(0.2)


@contextmanager
def drawn_here(pages: list[Page], address: str) -> Iterator[Callable[[], float]]:
    """Shown by the browser; gives how many times each one's numbers have changed."""
    for page in pages:
        page.goto(f"{address}/run/beside")
        page.wait_for_selector(".chart canvas")
        page.evaluate(_COUNT_UPDATES)
    yield lambda: mean(page.evaluate(_UPDATES) for page in pages)
    for page in pages:
        page.goto(f"{address}/api")  # a text


@contextmanager
def seen_elsewhere(pages: list[Page], address: str) -> Iterator[Callable[[], float]]:
    """As many pages, by `viewers.py`."""
    program = [sys.executable, str(Path(__file__).with_name("viewers.py"))]
    command = [*program, address, "/run/beside", str(len(pages))]
    own = os.environ | {"LORA_STUDIO_WEB_TOKEN": TOKEN}
    with subprocess.Popen(
        command, env=own, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as viewers:
        asks, answers = viewers.stdin, viewers.stdout
        assert asks is not None and answers is not None

        def told() -> float:
            print(file=asks, flush=True)
            return int(answers.readline()) / len(pages)

        told()  # once they are open
        yield told
        asks.close()


def beside_a_training(
    pages: list[Page], address: str, server: psutil.Process, training: Training, options: argparse.Namespace
) -> dict[str, dict[str, list[float]]]:
    """Of each arm the turns, four of each at a time."""
    found: dict[str, dict[str, list[float]]] = {arm: defaultdict(list) for arm in ARMS}
    every = sorted(os.sched_getaffinity(0))
    for turn in range(4 * len(ARMS) * options.rounds):
        arm, shown = ARMS[turn // 4 % len(ARMS)], turn % 4 in (0, 3)
        if not shown:
            wait_until_alone(server)
        viewers, trainers = (every, every) if arm == SAME_CORES else (every[-1:], every[:1])
        showing = seen_elsewhere if arm == ELSEWHERE else drawn_here
        with showing(pages, address) if shown else nullcontext() as updates:
            training.bind(trainers)
            own = psutil.Process()  # with playwright's, which tells the browser what to do
            kept = {server.pid, *(one.pid for one in server.children(recursive=True))}
            bind([own, *(one for one in own.children(recursive=True) if one.pid not in kept)], viewers)
            pages[0].wait_for_timeout(3000)
            for name, value in one_turn(updates, server, training, options.steps).items():
                found[arm][name].append(round(value, 5))
        name = "with" if shown else "without"
        print(f"{arm}, {name} the pages: {found[arm][name][-1]:.4f} s a step", flush=True)
    return {arm: {**turns} for arm, turns in found.items()}


def one_turn(
    updates: Callable[[], float] | None, server: psutil.Process, training: Training, steps: int
) -> dict[str, float]:
    """A step's seconds and processor seconds, and what the pages that are shown took."""
    told = updates() if updates else 0.0
    before = time.perf_counter(), seconds_of(server), browsers_seconds()
    seconds, processor = training.steps(steps)
    after = time.perf_counter(), seconds_of(server), browsers_seconds()
    clock, of_server, of_browser = (end - begin for begin, end in zip(before, after, strict=True))
    name = "with" if updates else "without"
    found = {name: mean(seconds)}
    found |= {f"{name}, processor s": processor, f"{name}, cores of the server": of_server / clock}
    if updates:
        found["updates/s of a page"] = (updates() - told) / clock
        found["cores of the browser"] = of_browser / clock
    return found


def slower(turns: dict[str, list[float]]) -> list[float]:
    """The share by which the pages make a step longer, of each four turns."""
    fours = zip(*(turns[name][half::2] for name in ("with", "without") for half in (0, 1)), strict=True)
    return [round((one + other) / (free + freed) - 1, 5) for one, other, free, freed in fours]


def measured(folder: Path, options: argparse.Namespace) -> tuple[dict[str, object], list[Criterion]]:
    """All three, on a project that is made in the folder."""
    project = folder / "project"
    write_images(project / "many", 2000)
    program = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    with served(project, folder / "home") as (address, server, ready), sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        # In windows of their own: what is behind others is not drawn, and on a busy machine hardly runs.
        pages = [browser.new_context().new_page() for _ in range(PAGES)]
        for page in pages:
            page.set_default_timeout(120_000)  # milliseconds
        pages[0].goto(address)
        pages[0].fill("#token", TOKEN)
        pages[0].get_by_role("button", name="Open the studio").click()
        pages[0].wait_for_selector("header.top")
        (cookie,) = pages[0].context.cookies()
        for page in pages[1:]:
            page.context.add_cookies([{"name": cookie["name"], "value": cookie["value"], "url": address}])
        grid = first_screens(pages[0], address, server, options.openings)
        print("first screens:", grid, flush=True)
        pages[0].goto("about:blank")  # the doctor need not go on
        training = Training(project, address)
        try:
            beside = beside_a_training(pages, address, server, training, options)
        finally:
            training.end()
        browser.close()
    longer = {arm: slower(turns) for arm, turns in beside.items()}
    for arm, shares in longer.items():
        print(f"{arm}: by the clock a step took {median(shares):.2%} longer, of {shares}", flush=True)
    found = {"ready": round(ready, 2), "first_screen": grid, "beside_a_training": beside, "longer": longer}
    return found, judged(ready, grid, beside, median(longer[ELSEWHERE]))


def judged(
    ready: float, grid: dict[str, list[float]], beside: dict[str, dict[str, list[float]]], longer: float
) -> list[Criterion]:
    took = median(grid["server"][1:]) + median(grid["browser"][1:])
    updates = min(median(turns["updates/s of a page"]) for turns in beside.values())
    return [
        at_most("ready, s by the clock", ready, 3),
        at_most("first screen of 2,000 images, s by the browser's clock", median(grid["clock"][1:]), 1),
        at_most("first screen of 2,000 images, processor s of server and browser", took, 1),
        at_least("updates a second on each of five pages", updates, 4.5),
        at_most("five pages that are seen elsewhere: longer by the clock a step is", longer, 0.02),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--openings", type=int, default=6, help="of the grid")
    help_of_rounds = "beside the training: four turns each of both arms with a browser, 16 of the other"
    parser.add_argument("--rounds", type=int, default=3, help=help_of_rounds)
    parser.add_argument("--steps", type=int, default=60, help="of a turn")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # whose training and server end then, too
    with tempfile.TemporaryDirectory() as scratch:
        found, judged = measured(Path(scratch), options)
    write_json(found | {"criteria": [vars(one) for one in judged], "machine": machine()}, options.out)
    print(criteria_table(judged))
    sys.exit(0 if all(one.passed for one in judged) else 1)


if __name__ == "__main__":
    main()
