"""The demo's training time and what it learns, for two source trees side by side.

`python benchmarks/demo_time.py BEFORE AFTER [--turns N] [--steps N] [--seeds N] [--loaded N] [--runs DIR]`

Both demos train at once and take their steps in turns, each waiting while the other runs, so that whatever
else the machine does hits both; then the same with two processes beside them that never rest. What is learned
is the loss on new scenes, of the base's: those of the style with its trigger (less is better), and plain ones
(1 is best), for several seeds, whose demos lie in --runs and are not trained again. The result is
benchmarks/results/demo_time.json.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median

import numpy as np
import torch
from figures import Criterion, at_most, criteria_table, machine, table, two_trees, write_json

from lora_studio.evaluate.validation import Validation, ValidationImage
from lora_studio.families.base import ModelFamily
from lora_studio.families.loading import load_base
from lora_studio.lora_file.open import Merged, merge_plain
from lora_studio.objectives.base import ObjectiveOptions
from lora_studio.pocket.samples import STYLE, STYLE_TRIGGER
from lora_studio.pocket.scenes import draw, held_out_scenes

RESULTS = Path(__file__).parent / "results" / "demo_time.json"
SIDE, NUM_SCENES = 64, 24
STEPS = 440  # of the demo
TURN = 32  # steps of a turn: whole windows of the base's predictions
LOADED_TURN, LOADED_SECONDS = 1, 60.0
MOST_RATIO = 90 / 120  # 90 seconds where it was two minutes

IN_TURNS = """
import os, sys, time
from lora_studio.cli import main
from lora_studio.training.events import StepDone

plain, left = StepDone.__init__, [int(sys.argv.pop(1))]

def done(event, *values, **named):
    plain(event, *values, **named)
    left[0] -= 1
    if not left[0]:
        print("TURN", time.process_time(), file=sys.stderr, flush=True)
        asked = sys.stdin.readline()
        if not asked:  # whoever asks is gone
            os._exit(1)
        left[0] = int(asked)

StepDone.__init__ = done
main()
"""


@dataclass(frozen=True)
class Turn:
    """Seconds of a step, over the steps of a turn."""

    wall: float
    processor: float


class Trainer:
    """A demo in a process of its own, which stands still between its turns."""

    def __init__(self, tree: Path, scratch: Path, *, warm_up: int) -> None:
        arguments = ("-c", IN_TURNS, str(warm_up), "demo", "--out", str(scratch / "run"))
        self._process = subprocess.Popen(
            [sys.executable, *arguments],
            cwd=tree,
            env=environment(tree, scratch / "cache"),
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._processor = self._wait()  # the first steps pay for what is made once

    def _wait(self) -> float:
        assert self._process.stderr is not None
        for line in self._process.stderr:
            if line.startswith("TURN "):
                return float(line.split()[1])
        raise RuntimeError("the demo has ended; run it alone to see why")

    def take(self, steps: int) -> Turn:
        assert self._process.stdin is not None
        began, before = time.perf_counter(), self._processor
        self._process.stdin.write(f"{steps}\n")
        self._process.stdin.flush()
        self._processor = self._wait()
        return Turn((time.perf_counter() - began) / steps, (self._processor - before) / steps)

    def end(self) -> None:
        self._process.kill()
        self._process.communicate()


def environment(tree: Path, cache: Path) -> dict[str, str]:
    """How threads wait is up to the tree."""
    ours = {
        key: value for key, value in os.environ.items() if key not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
    }
    return ours | {"PYTHONPATH": str(tree), "LORA_STUDIO_CACHE": str(cache)}


@contextmanager
def busy_processes(count: int) -> Iterator[None]:
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for one in busy:
            one.kill()
            one.wait()


def in_turns(trainers: Mapping[str, Trainer], turns: int, steps: int, limit: float) -> dict[str, list[Turn]]:
    """So many turns of so many steps each; no more are begun after `limit` seconds."""
    found: dict[str, list[Turn]] = {name: [] for name in trainers}
    began = time.monotonic()
    for turn in range(turns):
        if time.monotonic() - began > limit:
            break
        for name in sorted(trainers, reverse=turn % 2 == 1):
            found[name].append(trainers[name].take(steps))
    return found


def summary(turns: Mapping[str, Sequence[Turn]]) -> dict[str, object]:
    """Seconds of a step and of all the demo's, and how much of `before` the tree `after` takes by turn."""
    pairs = list(zip(turns["after"], turns["before"], strict=True))
    seconds = {name: median(one.wall for one in taken) for name, taken in turns.items()}
    return {
        "seconds_of_a_step": {name: round(one, 4) for name, one in seconds.items()},
        "processor_seconds_of_a_step": {
            name: round(median(one.processor for one in taken), 4) for name, taken in turns.items()
        },
        "slowest_turn": {name: round(max(one.wall for one in taken), 3) for name, taken in turns.items()},
        "seconds_of_training": {name: round(STEPS * one, 1) for name, one in seconds.items()},
        "ratio": round(median(after.wall / before.wall for after, before in pairs), 3),
        "processor_ratio": round(median(after.processor / before.processor for after, before in pairs), 3),
        "turns": len(pairs),
    }


def measure_time(trees: Mapping[str, Path], turns: int, steps: int, loaded: int) -> dict[str, object]:
    """Of both trees in turns: with the machine as it is, then beside two busy processes."""
    with tempfile.TemporaryDirectory() as scratch:
        trainers = {name: Trainer(tree, Path(scratch) / name, warm_up=steps) for name, tree in trees.items()}
        try:
            found = {"alone": summary(in_turns(trainers, turns, steps, limit=1e9))} if turns else {}
            if loaded:
                with busy_processes(2):
                    beside = in_turns(trainers, loaded, LOADED_TURN, LOADED_SECONDS)
                found["beside_two_busy_processes"] = summary(beside)
        finally:
            for one in trainers.values():
                one.end()
    return dict(found)


def train_demos(trees: Mapping[str, Path], seeds: int, runs: Path) -> dict[str, list[Path]]:
    """The finished files, by tree, of so many seeds."""
    found: dict[str, list[Path]] = {name: [] for name in trees}
    for seed in range(1, seeds + 1):
        for name, tree in trees.items():
            folder = runs / f"{name}_{seed}"
            if not (folder / "summary.json").is_file():
                command = [sys.executable, "-m", "lora_studio", "demo", "--out", str(folder.resolve())]
                command += ["--set", f"training.seed={seed}"]
                surrounding = environment(tree, runs.resolve() / f"cache_{name}")
                subprocess.run(command, cwd=tree, env=surrounding, stdout=subprocess.DEVNULL, check=True)
            found[name].append(folder / "pocket_style.safetensors")
    return found


def scenes(family: ModelFamily, style: str, trigger: str) -> list[ValidationImage]:
    """New scenes with their captions, encoded."""
    found = []
    for number, scene in enumerate(held_out_scenes(NUM_SCENES, seed=1)):
        pixels = torch.from_numpy(np.asarray(draw(scene, SIDE, SIDE, style=style)).copy()).permute(2, 0, 1)
        with torch.no_grad():
            latents, _ = family.encode_image(pixels[None] / 127.5 - 1)
        found.append(
            ValidationImage(
                name=f"{style}_{number}",
                sha256=hashlib.sha256(pixels.numpy().tobytes()).hexdigest(),
                caption=scene.caption(trigger),
                latents=latents[0],
                geometry=torch.tensor([SIDE, SIDE, 0, 0, SIDE, SIDE], dtype=torch.float32),
                weight=torch.ones(1, 1),
            )
        )
    return found


def relative_losses(file: Path | None) -> dict[str, float]:
    """Of the base's, with a LoRA merged into it: "learned" on the style's scenes, "kept" on plain ones."""
    family = load_base("pocket")
    objective, wanted = (
        family.objective(ObjectiveOptions()),
        {"learned": (STYLE, STYLE_TRIGGER), "kept": ("plain", "")},
    )
    measured = {
        name: Validation(scenes(family, *one), None, family, objective, autocast=None, rows_at_once=8)
        for name, one in wanted.items()
    }
    for one in measured.values():
        one.measure_base()
    if file is not None:
        merge_plain(family, [Merged(file, 1.0)])
    return {name: round(one.measure(1).row()["relative"], 4) for name, one in measured.items()}


def learning(files: Mapping[str, Sequence[Path]]) -> dict[str, dict[str, list[float]]]:
    """ "learned" and "kept", then the tree -> a figure of every seed."""
    found = {name: [relative_losses(file) for file in of_tree] for name, of_tree in files.items()}
    return {
        figure: {name: [one[figure] for one in seeds] for name, seeds in found.items()}
        for figure in ("learned", "kept")
    }


def criteria(
    times: Mapping[str, object], learned: Mapping[str, Mapping[str, Sequence[float]]]
) -> list[Criterion]:
    """The time that `after` may take, and figures no farther from `before` than its seeds from each other."""
    found = []
    if "alone" in times:
        ratio = dict(times["alone"])["ratio"]  # type: ignore[call-overload]
        found.append(at_most("the demo's training, of the time before", float(ratio), MOST_RATIO))
    for name, of_tree in learned.items():
        before, after = of_tree["before"], of_tree["after"]
        spread = max(before) - min(before)
        found.append(at_most(f"{name}: difference of the means", abs(mean(after) - mean(before)), spread))
    return found


def main() -> None:
    """The command line."""
    parser = two_trees(__doc__ or "")
    parser.add_argument("--turns", type=int, default=12, help="of so many --steps each")
    parser.add_argument("--steps", type=int, default=TURN, help="a multiple of 16")
    parser.add_argument(
        "--loaded", type=int, default=16, help=f"turns of {LOADED_TURN} step beside busy processes"
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--runs", type=Path, default=Path("runs/demo_time"))
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    trees = {"before": options.before.resolve(), "after": options.after.resolve()}
    times = measure_time(trees, options.turns, options.steps, options.loaded)
    print(json.dumps(times, indent=2), flush=True)
    options.runs.mkdir(parents=True, exist_ok=True)
    learned = learning(train_demos(trees, options.seeds, options.runs)) if options.seeds else {}
    found = criteria(times, learned)
    facts = machine() | {"threads": torch.get_num_threads()}
    results = {"time": times, "learning": learned, "criteria": [vars(one) for one in found], "machine": facts}
    write_json(results, options.out)
    if learned:
        rows = [
            (name, tree, *figures) for name, of_tree in learned.items() for tree, figures in of_tree.items()
        ]
        print(table(("of the base's loss", "tree", *(f"seed {n + 1}" for n in range(options.seeds))), rows))
    print(criteria_table(found))
    sys.exit(0 if all(one.passed for one in found) else 1)


if __name__ == "__main__":
    main()
