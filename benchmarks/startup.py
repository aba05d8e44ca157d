"""How long commands take to start, in processor seconds, for two source trees side by side.

`python benchmarks/startup.py BEFORE AFTER` runs each command in a process of its own, the trees in turns, so
that whatever else the machine does hits both, and takes the median of several rounds. One thread: waiting
threads spin, which would be counted. The training start ends when the demo's first step is done; its caches
are warm, of each tree its own. The result is benchmarks/results/startup.json.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np
from figures import Criterion, at_most, criteria_table, machine, table, two_trees, write_json
from PIL import Image
from safetensors.numpy import save_file

RESULTS = Path(__file__).parent / "results" / "startup.json"
NUM_IMAGES, SIDE = 30, 512  # pixels
NUM_FILES = 500
MANY_FILES = f"inspect {NUM_FILES} files"
FIRST_STEP = "first step of the demo"

TO_FIRST_STEP = """
import os, shutil, sys
from lora_studio.cli import main
from lora_studio.training.events import StepDone

StepDone.__init__ = lambda *_, **__: os._exit(0)
shutil.rmtree(sys.argv[1], ignore_errors=True)
sys.argv = ["lora-studio", "demo", "--out", sys.argv[1]]
main()
"""


@dataclass(frozen=True)
class Start:
    """A command, and the processor seconds that it may take."""

    name: str
    arguments: tuple[str, ...]  # of Python
    limit: float
    codes: tuple[int, ...] = (0,)  # that it may exit with


def starts(folder: Path) -> list[Start]:
    """The commands on a LoRA file and images that are made in `folder`."""
    file, images = write_lora(folder / "lora.safetensors"), write_images(folder / "images")
    files, out = copies(file, folder / "files"), ("--force", "--out", str(folder / "made.safetensors"))

    def verb(*words: str, limit: float, name: str = "", codes: tuple[int, ...] = (0,)) -> Start:
        return Start(name or words[0], ("-m", "lora_studio", *words), limit, codes)

    return [
        verb("--help", limit=0.3),
        verb("inspect", str(file), limit=0.8),
        verb("inspect", str(files), limit=4.0, name=MANY_FILES),
        verb("metadata", str(file), limit=0.8),
        verb("verify", str(file), limit=0.8),
        verb("resize", str(file), "--rank", "4", *out, limit=2.2),
        verb("combine", f"{file}:0.8", f"{file}:0.6", *out, limit=2.2),
        verb("convert", str(file), "--to", "diffusers", *out, limit=2.2),
        verb("doctor", str(images), limit=2.5, codes=(0, 1)),
        Start(FIRST_STEP, ("-c", TO_FIRST_STEP, str(folder / "run")), limit=8.0),
    ]


def write_lora(path: Path) -> Path:
    """Rank 8 in the attention of SD1.5's denoiser, in kohya's spelling, with random numbers."""
    rng, tensors = np.random.default_rng(0), {}
    places = {f"down_blocks_{block}": (2, 320 * 2**block) for block in range(3)}
    places |= {f"up_blocks_{4 - block}": (3, 320 * 2 ** (block - 1)) for block in range(1, 4)}
    for place, (depth, width) in {**places, "mid_block": (1, 1280)}.items():
        for number in range(depth):
            for layer in (
                "attn1_to_q",
                "attn1_to_k",
                "attn1_to_v",
                "attn1_to_out_0",
                "attn2_to_q",
                "attn2_to_k",
            ):
                inside = 768 if layer == "attn2_to_k" else width
                name = f"lora_unet_{place}_attentions_{number}_transformer_blocks_0_{layer}"
                tensors[f"{name}.lora_down.weight"] = rng.normal(size=(8, inside)).astype(np.float16)
                tensors[f"{name}.lora_up.weight"] = rng.normal(size=(width, 8)).astype(np.float16)
                tensors[f"{name}.alpha"] = np.array(8, np.float16)
    save_file(tensors, path, {"ss_network_module": "networks.lora", "ss_base_model_version": "sd_v1"})
    return path


def copies(file: Path, folder: Path) -> Path:
    """A folder of links to the file; each is read and judged as a file of its own."""
    folder.mkdir()
    for number in range(NUM_FILES):
        os.link(file, folder / f"{number:03}.safetensors")
    return folder


def write_images(folder: Path) -> Path:
    """Coloured squares in noise, each with its caption."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(NUM_IMAGES):
        coarse = Image.fromarray(rng.integers(0, 255, (8, 8, 3), np.uint8)).resize((SIDE, SIDE))
        pixels = np.asarray(coarse).astype(np.int16) + rng.integers(-20, 20, (SIDE, SIDE, 3), np.int16)
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"{number:02}.png")
        (folder / f"{number:02}.txt").write_text(f"squares of many colours, number {number}", "utf-8")
    return folder


def processor_seconds(start: Start, tree: Path, cache: Path) -> float:
    """User and system time of the command with the package in `tree`. Raises RuntimeError if it fails."""
    environment = os.environ | {
        "PYTHONPATH": str(tree),
        "LORA_STUDIO_CACHE": str(cache),
        "OMP_NUM_THREADS": "1",
        "OMP_WAIT_POLICY": "passive",
        "PYTHONDONTWRITEBYTECODE": "",  # as an installed package, which is compiled once
    }
    process = subprocess.Popen(
        [sys.executable, *start.arguments],
        cwd=tree,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode not in start.codes:
        raise RuntimeError(f"{start.name} exits with {process.returncode}; run it alone to see why")
    return usage.ru_utime + usage.ru_stime


def measure(
    asked: list[Start], trees: Mapping[str, Path], folder: Path, rounds: int
) -> dict[str, dict[str, float]]:
    """The median seconds of each command for each tree; a first round, which warms caches, is not counted."""
    seconds: dict[str, dict[str, list[float]]] = {one.name: {name: [] for name in trees} for one in asked}
    for turn in range(rounds + 1):
        for start in asked:
            for name in sorted(trees, reverse=turn % 2 == 1):
                took = processor_seconds(start, trees[name], folder / f"cache_{name}")
                if turn:
                    seconds[start.name][name].append(took)
    return {
        start: {name: round(median(took), 3) for name, took in of_trees.items()}
        for start, of_trees in seconds.items()
    }


def criteria(asked: list[Start], found: Mapping[str, Mapping[str, float]]) -> list[Criterion]:
    """The limits of the tree `after`."""
    return [at_most(f"{one.name}, processor seconds", found[one.name]["after"], one.limit) for one in asked]


def main() -> None:
    """The command line."""
    parser = two_trees(__doc__ or "")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    trees = {"before": options.before.resolve(), "after": options.after.resolve()}
    with tempfile.TemporaryDirectory() as scratch:
        asked = starts(Path(scratch))
        found = measure(asked, trees, Path(scratch), options.rounds)
    judged = criteria(asked, found)
    facts = machine() | {"threads": 1, "rounds": options.rounds}
    write_json(
        {"processor_seconds": found, "criteria": [vars(one) for one in judged], "machine": facts}, options.out
    )
    print(table(("command", "before s", "after s"), [(name, *took.values()) for name, took in found.items()]))
    print(criteria_table(judged))
    sys.exit(0 if all(one.passed for one in judged) else 1)


if __name__ == "__main__":
    main()
