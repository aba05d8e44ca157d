"""A training step of ours beside other trainers' own programs, in processor seconds on one thread.

`python benchmarks/beside_trainers.py --diffusers train_text_to_image_lora.py [--packages FOLDER]` runs the
script that lies in diffusers' examples, unchanged but for the layers that learn, which are ours; `--peer
NAME="SCRIPT OPTIONS"` runs any other Python program, with {base}, {images}, {out}, {batch}, {rank} and
{steps} filled in. All train the pocket base in float32 on the same 32 images of 64 pixels, batch 4, rank 8,
AdamW, a cosine. Each runs in a process of its own, which a hook on torch's optimizers holds after every step:
first one process after the other, then all of them step by step in turns. `--packages`: where what they need
beside our own packages is installed. The result is benchmarks/results/beside_trainers.json.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import median, quantiles
from types import TracebackType
from typing import Any

from figures import Criterion, at_least, criteria_table, machine, table, write_json

from lora_studio.families.loading import POCKET_FOLDER
from lora_studio.pocket.scenes import draw, sample_scene

RESULTS = Path(__file__).parent / "results" / "beside_trainers.json"
NUM_IMAGES, SIDE, BATCH, RANK, STEPS = 32, 64, 4, 8, 10_000  # the run is ended long before its last step
WARM_UP, COUNTED, PROCESSES = 8, 24, 3  # steps, steps, and how often each program is started
OURS = "ours"
DEMANDS = {"diffusers": (1.6, 1.75), "kohya": (1.45, 1.7)}  # one after the other, in turns

# Tells after every step of an optimizer of so many numbers how much processor time there was, and waits.
HOOK = """
import os, runpy, sys, time
from torch.optim.optimizer import register_optimizer_step_post_hook

told, gate, packages, targets, program, *options = sys.argv[1:]

def after(optimizer, *_):
    if sum(one.numel() for group in optimizer.param_groups for one in group["params"]) > 50_000:
        os.write(int(told), f"{time.process_time()}\\n".encode())
        os.read(int(gate), 1)

register_optimizer_step_post_hook(after)
if packages:
    sys.path.append(packages)
if targets:
    import peft

    class Config(peft.LoraConfig):
        def __init__(self, **options):
            super().__init__(**{**options, "target_modules": targets.split()})

    peft.LoraConfig = Config
sys.argv = [program, *options]
if program.endswith(".py"):
    sys.path.insert(0, os.path.dirname(os.path.abspath(program)))
    runpy.run_path(program, run_name="__main__")
else:
    runpy.run_module(program, run_name="__main__", alter_sys=True)
"""
DIFFUSERS = (
    "--pretrained_model_name_or_path {base} --train_data_dir {images} --output_dir {out} --resolution 64 "
    "--train_batch_size {batch} --rank {rank} --max_train_steps {steps} --learning_rate 1e-4 --snr_gamma 5 "
    "--lr_scheduler cosine --lr_warmup_steps 0 --mixed_precision no --checkpointing_steps 100000"
)
RECIPE = """
name = "beside"
[machine]
device = "cpu"
[base]
model = "pocket"
[data]
images = "{images}"
resolution = 64
caption_dropout = 0
[adapter]
rank = {rank}
alpha = {rank}
[training]
steps = {steps}
batch_size = {batch}
learning_rate = 1e-4
checkpoint_every = {steps}
[validation]
count = 0
"""


@dataclass(frozen=True)
class Program:
    """A trainer's command line, behind `python`."""

    words: tuple[str, ...]
    packages: str = ""  # a folder of those that it needs beside ours
    targets: str = ""  # endings of the layers that PEFT is to train, if it does not ask for these itself


class Running:
    """A trainer in a process of its own, held after its last step."""

    def __init__(self, program: Program, environ: Mapping[str, str], log: Path) -> None:
        told, tell = os.pipe()
        held, self._gate = os.pipe()
        command = [sys.executable, "-c", HOOK, str(tell), str(held)]
        command += [program.packages, program.targets, *program.words]
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                command, env=dict(environ), stdout=output, stderr=output, pass_fds=(tell, held)
            )
        os.close(tell)
        os.close(held)
        self._told, self._log = os.fdopen(told), log
        try:
            self._before = self._heard()
        except RuntimeError:
            self.end()
            raise

    def __enter__(self) -> Running:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()

    def end(self) -> None:
        self._process.kill()
        self._process.wait()
        self._told.close()
        os.close(self._gate)

    def step(self) -> float:
        """Processor seconds from one step's end to the next one's."""
        os.write(self._gate, b".")
        now = self._heard()
        took, self._before = now - self._before, now
        return took

    def _heard(self) -> float:
        if not (line := self._told.readline()):
            said = self._log.read_text("utf-8", errors="replace")
            raise RuntimeError(f"a trainer ended before it was done:\n{said[-2000:]}")
        return float(line)


def draw_dataset(folder: Path) -> Path:
    """Images with a text file each, as we read captions, and metadata.jsonl, as others do."""
    folder.mkdir()
    lines = []
    for number in range(NUM_IMAGES):
        scene, name = sample_scene(number), f"{number:02}.png"
        draw(scene, SIDE, SIDE).save(folder / name)
        lines.append(json.dumps({"file_name": name, "text": scene.caption()}))
    (folder / "metadata.jsonl").write_text("\n".join(lines), "utf-8")
    return folder


def programs(scratch: Path, peers: Mapping[str, str], packages: str, targets: str) -> dict[str, Program]:
    """Ours and the others, ready to be started; `peers`: name -> script and options to be filled in."""
    images = draw_dataset(scratch / "images")
    values: dict[str, Any] = {"base": POCKET_FOLDER, "images": images, "batch": BATCH, "rank": RANK}
    file = scratch / "beside.toml"
    file.write_text(RECIPE.format(**values, steps=STEPS), "utf-8")
    out = scratch / "run"
    found = {OURS: Program(("lora_studio", "train", str(file), "--out", str(out)))}
    for name, line in peers.items():
        words = shlex.split(line.format(**values, steps=STEPS, out=scratch / name))
        found[name] = Program(tuple(words), packages, targets)
    return found


def measure(
    found: Mapping[str, Program], environ: Mapping[str, str], scratch: Path, processes: int, counted: int
) -> dict[str, dict[str, list[float]]]:
    """Name -> seconds of each step, in turns and one program after the other."""

    def start(name: str) -> Running:
        run = scratch / "run"  # of ours
        if name == OURS and run.exists():
            run.rename(scratch / f"old_run_{os.urandom(4).hex()}")
        return Running(found[name], environ, scratch / f"{name}.log")

    alone: dict[str, list[float]] = {name: [] for name in found}
    for _ in range(processes):
        for name in found:
            with start(name) as running:
                took = [running.step() for _ in range(WARM_UP + counted)]
            alone[name] += took[WARM_UP:]
    turns: dict[str, list[float]] = {name: [] for name in found}
    with ExitStack() as stack:
        running_all = {name: stack.enter_context(start(name)) for name in found}
        for number in range(WARM_UP + processes * counted):
            for name in sorted(found, reverse=number % 2 == 1):
                took_one = running_all[name].step()
                if number >= WARM_UP:
                    turns[name].append(took_one)
    return {"one after the other": alone, "in turns": turns}


def ratios(seconds: Mapping[str, Sequence[float]], *, paired: bool) -> dict[str, dict[str, float]]:
    """Name -> median seconds, how many times ours' that is, and the quartiles of that if steps are paired."""
    found = {}
    for name, own in seconds.items():
        each = [one / other for one, other in zip(own, seconds[OURS], strict=True)]
        low, middle, high = quantiles(each, n=4, method="inclusive")
        times = middle if paired else median(own) / median(seconds[OURS])
        values = {"seconds": median(own), "times_ours": times}
        values |= {"first_quartile": low, "third_quartile": high} if paired else {}
        found[name] = {key: round(value, 4) for key, value in values.items()}
    return found


def criteria(report: Mapping[str, Mapping[str, Mapping[str, float]]]) -> list[Criterion]:
    """What the project demands, of those that were measured."""
    return [
        at_least(f"{name}, {how}: times ours", report[how][name]["times_ours"], limit)
        for name, limits in DEMANDS.items()
        for how, limit in zip(report, limits, strict=True)
        if name in report[how]
    ]


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--diffusers", type=Path, help="train_text_to_image_lora.py")
    parser.add_argument("--peer", action="append", default=[], metavar="NAME=LINE", help="another program")
    parser.add_argument("--packages", type=Path, help="a folder of packages that the others need")
    parser.add_argument("--processes", type=int, default=PROCESSES)
    parser.add_argument("--steps", type=int, default=COUNTED, help="that are counted, of each process")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    from lora_studio.families.unet import ATTENTION, FEED_FORWARD

    peers = {"diffusers": f"{options.diffusers} {DIFFUSERS}"} if options.diffusers else {}
    peers |= dict(one.split("=", 1) for one in options.peer)
    if not peers:
        parser.error("there is nothing to stand beside: give --diffusers or --peer")
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        environ = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1]), "OMP_NUM_THREADS": "1"}
        environ |= {"LORA_STUDIO_CACHE": str(scratch / "cache"), "HF_HOME": str(scratch / "hub")}
        packages = str(options.packages.resolve()) if options.packages else ""
        found = programs(scratch, peers, packages, " ".join((*ATTENTION, *FEED_FORWARD)))
        seconds = measure(found, environ, scratch, options.processes, options.steps)
    report = {how: ratios(one, paired=how == "in turns") for how, one in seconds.items()}
    judged = criteria(report)
    facts = machine() | {"threads": 1, "processes": options.processes, "steps": options.steps}
    write_json(report | {"criteria": [vars(one) for one in judged], "machine": facts}, options.out)
    for how, sides in report.items():
        print(
            table((how, *next(iter(sides.values()))), [(side, *one.values()) for side, one in sides.items()])
        )
    print(criteria_table(judged))
    sys.exit(0 if all(one.passed for one in judged) else 1)


if __name__ == "__main__":
    main()
