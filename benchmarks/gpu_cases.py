"""The runs of `gpu_acceptance.py`: recipes at published sizes, trained, verified and measured.

All go through `lora_studio.training.session.train`, as the command line does, on bases with random weights.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path

import torch
from guarded import Figures, NotHere
from published import TINY_SIDE, Build, published, published_at
from train_step import draw_images

from lora_studio.processes import find_device
from lora_studio.recipe.load import load_recipe
from lora_studio.training.events import Event, Note, PreviewsDrawn, Progress, StepDone, TrainingPlan
from lora_studio.training.finish import Finished
from lora_studio.training.machine.self_test import try_option
from lora_studio.training.planning.simulation import (
    ENCODING_CAPTIONS,
    ENCODING_IMAGES,
    PREVIEWS,
    TRAINING,
    VERIFYING,
)
from lora_studio.training.session import train

GIB = 2**30


@dataclass(frozen=True)
class Bench:
    """Where it happens, and in which size."""

    folder: Path
    rehearsal: bool  # tiny bases, on the CPU
    device: torch.device = field(init=False)

    def __post_init__(self) -> None:
        found = find_device("cpu" if self.rehearsal else "cuda")
        if found is None:
            raise SystemExit("there is no GPU here; --rehearse runs everything in small on the CPU.")
        object.__setattr__(self, "device", found)

    def pixels(self, resolution: int) -> int:
        return TINY_SIDE if self.rehearsal else resolution

    def images(self, resolution: int) -> Path:
        side = self.pixels(resolution)
        folder = self.folder / f"images_{side}"
        return folder if folder.is_dir() else draw_images(folder, side)

    def base(self, resolution: int) -> Path:
        """A diffusers folder with random weights in half precision, made on the device."""
        folder = self.folder / f"base_{resolution}"
        if not (folder / "model_index.json").is_file():
            with self.device:
                torch.manual_seed(0)
                size: Build = "tiny" if self.rehearsal else "published"
                family = published(published_at(resolution), dtype=torch.float16, size=size)
            family.pipeline().save_pretrained(folder)
        return folder


@dataclass(frozen=True)
class Case:
    """A short run of one recipe."""

    resolution: int
    name: str
    gib: float  # on the device, at most, as planned
    dtype: str = "bfloat16"
    batch_size: int = 1
    quantize: str = "none"
    machine: tuple[str, ...] = ()  # lines of the recipe's section
    prompts: int = 0

    @property
    def title(self) -> str:
        return f"{self.resolution} px: {self.name}"

    @property
    def is_planned(self) -> bool:
        """Whether its memory is that of no other case."""
        return self.dtype == "bfloat16" and not set(self.machine) & {COMPILE, XFORMERS}

    @property
    def steps(self) -> int:
        return 24 if self.resolution < 1024 else 14

    def recipe(self, bench: Bench, *, base: str = "") -> str:
        steps = 3 if bench.rehearsal else self.steps
        prompts = ["a red heart in a meadow", "a blue fish on a beach", "a tree", "a star"][: self.prompts]
        return f"""
name = "case"
[base]
model = "{base or bench.base(self.resolution)}"
dtype = "{self.dtype}"
quantize = "{self.quantize}"
[data]
images = "{bench.images(self.resolution)}"
resolution = {bench.pixels(self.resolution)}
[adapter]
rank = 16
alpha = 16
[training]
steps = {steps}
batch_size = {self.batch_size}
checkpoint_every = {steps}
[machine]
device = "{bench.device.type}"
{chr(10).join(self.machine)}
[validation]
count = 0
[samples]
prompts = {prompts}
steps = {2 if bench.rehearsal else 8}
"""


CHECKPOINTING, COMPILE = "gradient_checkpointing = true", "compile = true"
XFORMERS = 'attention = "xformers"'
CASES = (
    Case(512, "bfloat16, batch 1, previews", 4.5, prompts=4),
    Case(512, "bfloat16, batch 4", 8.0, batch_size=4),
    Case(512, "float16, batch 1", 4.0, dtype="float16"),
    Case(512, "bfloat16, batch 4, checkpointing", 5.0, batch_size=4, machine=(CHECKPOINTING,)),
    Case(512, "bfloat16, batch 1, compiled", 5.0, machine=(COMPILE,)),
    Case(1024, "bfloat16, batch 1, checkpointing, previews", 7.2, machine=(CHECKPOINTING,), prompts=4),
    Case(1024, "bfloat16, batch 1", 13.0),
    Case(1024, "float16, batch 1", 13.0, dtype="float16"),
    Case(1024, "bfloat16, batch 4", 36.0, batch_size=4),
    Case(1024, "bfloat16, batch 4, checkpointing", 10.0, batch_size=4, machine=(CHECKPOINTING,)),
    Case(1024, "bfloat16, batch 1, compiled", 14.0, machine=(COMPILE,)),
    Case(1024, "bnb_nf4, batch 1, checkpointing", 5.5, quantize="bnb_nf4", machine=(CHECKPOINTING,)),
    Case(1024, "bnb_int8, batch 1, checkpointing", 6.5, quantize="bnb_int8", machine=(CHECKPOINTING,)),
    Case(1024, "bfloat16, batch 1, xformers", 13.0, machine=(XFORMERS,)),
)


ENCODING = {"latents": ENCODING_IMAGES, "captions": ENCODING_CAPTIONS}  # by what progress is told of


class Phases:
    """A listener that says when steps were done, and what the device held at most up to each event."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.peaks, self.done = device, dict[str, int](), list[float]()

    def __call__(self, event: Event) -> None:
        if isinstance(event, StepDone):
            self.done.append(time.perf_counter())
        if self.device.type == "cuda" and (name := self._ended(event)):
            peak = torch.cuda.max_memory_allocated(self.device)
            self.peaks[name] = max(peak, self.peaks.get(name, 0))
            torch.cuda.reset_peak_memory_stats(self.device)

    def _ended(self, event: Event) -> str:
        """The phase that the event tells of; empty if it may come at any time."""
        if isinstance(event, Note):
            return VERIFYING if event.text.startswith("verified") else ""
        if isinstance(event, Progress):
            return ENCODING.get(event.what, "")
        return {TrainingPlan: "trial", StepDone: TRAINING, PreviewsDrawn: PREVIEWS}.get(type(event), "")

    def seconds_per_step(self) -> float:
        """Of the later half, as compilation and allocation lie in the first."""
        half = self.done[len(self.done) // 2 :]
        return (half[-1] - half[0]) / max(1, len(half) - 1)


def needs_of(case: Case, device: torch.device) -> list[str]:
    """The options, by their names in the self-test, without which the case cannot run."""
    asked = [f'base.dtype = "{case.dtype}"'] + [f"machine.{one}" for one in case.machine]
    return asked + ([f'base.quantize = "{case.quantize}"'] if case.quantize != "none" else [])


def run_case(case: Case, bench: Bench) -> Figures:
    """A whole run; its speed and memory. A file that is not what was trained is an ExportMismatch."""
    if bench.rehearsal and COMPILE in case.machine:
        raise NotHere("compiling takes minutes on a CPU, and nothing of it can be rehearsed")
    for option in needs_of(case, bench.device):
        tried = try_option(option, bench.device)
        if "not installed" in tried.why:
            raise NotHere(tried.why)
    file, folder = bench.folder / "case.toml", bench.folder / "runs" / case.title.replace(" ", "_")
    file.write_text(case.recipe(bench), "utf-8")
    phases, began = Phases(bench.device), time.perf_counter()
    result = train(load_recipe(file), folder, on_event=phases)
    assert isinstance(result, Finished)
    step = phases.seconds_per_step()
    return {
        "seconds_per_step": round(step, 4),
        "steps_per_second": round(1 / step, 2),
        "seconds_in_all": round(time.perf_counter() - began, 1),
        "seconds_to_first_step": round(phases.done[0] - began, 1),
        "loss": round(result.summary["loss_last_tenth"], 4),
        "peak_gib": {name: round(peak / GIB, 2) for name, peak in phases.peaks.items()},
    }
