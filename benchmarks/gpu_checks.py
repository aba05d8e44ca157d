"""What `gpu_acceptance.py` tries, in this order, and how long each may take.

A check gives back its figures, raises NotHere where this machine lacks what it is about, and anything else
where something is wrong. All that trains goes through `lora_studio.training.session.train`.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler
from diffusers.optimization import get_scheduler
from gpu_cases import CASES, COMPILE, GIB, Bench, Case, run_case
from guarded import Check, Figures
from published import Build, conditioning_for, fake_tensors, published, published_at
from safetensors.torch import load_file
from step_launches import arm
from torch.utils.flop_counter import FlopCounterMode

from lora_studio.recipe.load import PRESET_FOLDER, load_recipe
from lora_studio.runs import ReadOnlyRun
from lora_studio.training.finish import Finished
from lora_studio.training.machine.self_test import environment, trials, try_option
from lora_studio.training.planning.for_card import plan_for
from lora_studio.training.session import train

LEARNED = 0.5  # of the base's validation loss, at most, after the demo; 0.38 on a CPU
SAME = 1e-3  # of a tensor's largest number: what a resumed run may differ by on a GPU, where sums race
CUDA, PLENTY = "cuda", 1000.0  # GiB: a plan that fits asks for no changes
SIDES = {"published": 8192, "tiny": 256}  # of the matrices whose product says what the device can do


def machine_figures(bench: Bench) -> Figures:
    """What it is, and how fast it multiplies and copies."""
    found: Figures = environment(bench.device)
    for dtype in (torch.bfloat16, torch.float16):
        name = str(dtype).removeprefix("torch.")
        found[f"tflops_{name}"] = round(matrix_rate(bench, dtype) / 1e12, 3)
    return found


def matrix_rate(bench: Bench, dtype: torch.dtype) -> float:
    """FLOP per second of large matrix products."""
    side = SIDES["tiny" if bench.rehearsal else "published"]
    left, right = torch.randn(2, side, side, device=bench.device, dtype=dtype)
    seconds = _seconds(bench, lambda: left @ right, times=2 if bench.rehearsal else 30)
    return 2 * side**3 / seconds


def _seconds(bench: Bench, work: Callable[[], object], *, times: int) -> float:
    """For one, after a few that are not counted."""
    for _ in range(3):
        work()
    _wait(bench.device)
    began = time.perf_counter()
    for _ in range(times):
        work()
    _wait(bench.device)
    return (time.perf_counter() - began) / times


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def try_options(bench: Bench) -> Figures:
    """The trainer's own self-test of every option. Raises AssertionError for what is there and fails."""
    names = [name for name in trials(bench.device) if not (bench.rehearsal and "compile" in name)]
    found = {name: try_option(name, bench.device) for name in names}
    absent = ("not installed", "has no", "needs")
    broken = {name: one.why for name, one in found.items() if not one.works}
    wrong = {name: why for name, why in broken.items() if not any(word in why for word in absent)}
    if wrong and not bench.rehearsal:
        raise AssertionError("; ".join(f"{name}: {why}" for name, why in wrong.items()))
    return {name: one.why or f"works, {one.seconds} s" for name, one in found.items()}


def make_base(resolution: int, bench: Bench) -> Figures:
    """Write the base and the images that the runs after it use."""
    folder = bench.base(resolution)
    bench.images(resolution)
    return {"gib": round(sum(one.stat().st_size for one in folder.rglob("*")) / GIB, 2)}


def plain_loop(resolution: int, bench: Bench) -> Figures:
    """Seconds of a step of diffusers' denoiser with PEFT's layers, as in public scripts, all cached."""
    found: Figures = {"tflop_of_a_step_batch_1": round(step_flops(resolution, bench) / 1e12, 6)}
    for batch, checkpointing in ((1, False), (1, True), (4, True), (4, False)):
        try:
            step = _plain_step(resolution, batch, checkpointing, bench)
            took = _seconds(bench, step, times=1 if bench.rehearsal else 8)
        except torch.OutOfMemoryError:
            continue  # it may be too large where ours with checkpointing is not
        found[plain_key(batch, checkpointing)] = round(took, 4)
        del step
        if bench.device.type == "cuda":
            torch.cuda.empty_cache()
    return found


def plan_title(case: Case) -> str:
    return f"plan of {case.title}"


def plain_key(batch: int, checkpointing: bool) -> str:
    return f"seconds_per_step_batch_{batch}{'_checkpointing' if checkpointing else ''}"


def _plain_step(resolution: int, batch: int, checkpointing: bool, bench: Bench) -> Callable[[], None]:
    size: Build = "tiny" if bench.rehearsal else "published"
    with bench.device:
        family = published(published_at(resolution), dtype=torch.bfloat16, size=size, made=("unet",))
        arm(family, "peft", torch.bfloat16)
        denoiser: Any = family.parts[family.denoiser]
        if checkpointing:
            denoiser.enable_gradient_checkpointing()
        side = bench.pixels(resolution) // family.pixels_per_latent
        latents, conditioning = torch.randn(batch, 4, side, side), conditioning_for(family, batch)
        geometry = torch.full((batch, 6), float(resolution))
    trained = [one for one in denoiser.parameters() if one.requires_grad]
    optimizer, noises = torch.optim.AdamW(trained, lr=1e-4), DDPMScheduler()
    rates = get_scheduler("cosine", optimizer, num_warmup_steps=0, num_training_steps=1000)

    def step() -> None:
        noise = torch.randn_like(latents)
        steps = torch.randint(0, noises.config.num_train_timesteps, (batch,), device=bench.device)
        with torch.autocast(bench.device.type, torch.bfloat16):
            prediction = family.denoise(
                noises.add_noise(latents, noise, steps), steps, conditioning, geometry
            )
        loss = F.mse_loss(prediction.float(), noise)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        rates.step()
        optimizer.zero_grad()
        loss.item()

    return step


def step_flops(resolution: int, bench: Bench) -> int:
    """Of the forward and backward pass of one image with plain LoRA layers, counted on fake tensors."""
    size: Build = "tiny" if bench.rehearsal else "published"
    with fake_tensors():
        family = published(published_at(resolution), dtype=torch.bfloat16, size=size, made=("unet",))
        arm(family, "peft", torch.bfloat16)
        side = bench.pixels(resolution) // family.pixels_per_latent
        inputs = torch.zeros(1, 4, side, side), torch.full((1,), 500), conditioning_for(family, 1)
        with FlopCounterMode(display=False) as counted, torch.autocast("cpu", torch.bfloat16):
            family.denoise(*inputs, torch.zeros(1, 6)).float().square().mean().backward()
    return int(counted.get_total_flops())


def demo_learns(bench: Bench) -> Figures:
    """The shipped style recipe on the pocket base, with four images held back."""
    short = ("training.steps=6", "training.batch_size=2", "samples.steps=2") if bench.rehearsal else ()
    changes = ("validation.count=4", f'machine.device="{bench.device.type}"', *short)
    began, recipe = time.perf_counter(), load_recipe(PRESET_FOLDER / "pocket_style.toml", changes=changes)
    result = train(recipe, bench.folder / "runs" / "demo")
    assert isinstance(result, Finished)
    best = result.summary["validation"]["relative_best"]
    if best > LEARNED and not bench.rehearsal:
        raise AssertionError(f"its validation loss is {best:.1%} of the base's; {LEARNED:.0%} was expected")
    return {"validation_of_the_base": best, "seconds": round(time.perf_counter() - began, 1)}


RESUMED = """
name = "resumed"
[base]
model = "pocket"
[data]
images = "{images}"
resolution = 64
[training]
steps = {steps}
batch_size = 2
checkpoint_every = {every}
[machine]
device = "{device}"
[validation]
count = 0
"""


def resumes_after_kill(bench: Bench) -> Figures:
    """A run that is killed and resumed gives the file of one that never stopped."""
    every = 4 if bench.rehearsal else 20
    file, killed = bench.folder / "resumed.toml", bench.folder / "runs" / "killed"
    values = {"images": bench.images(64), "device": bench.device.type}
    file.write_text(RESUMED.format(**values, steps=4 * every, every=every), "utf-8")
    command = [sys.executable, "-m", "lora_studio", "train", str(file), "--out", str(killed)]
    environ = os.environ | {"PYTHONPATH": str(PRESET_FOLDER.parent)}
    process = subprocess.Popen(command, env=environ, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    while process.poll() is None and not ReadOnlyRun(killed).checkpoints():
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    if (killed / "summary.json").is_file() or not ReadOnlyRun(killed).checkpoints():
        raise AssertionError(f"it ended by itself, with {process.returncode}, before it was killed")
    at = ReadOnlyRun(killed).checkpoints()[-1].name
    subprocess.run([*command, "--resume"], env=environ, check=True, capture_output=True)
    whole = train(load_recipe(file), bench.folder / "runs" / "whole")
    assert isinstance(whole, Finished) and whole.lora_file is not None
    expected, found = load_file(whole.lora_file), load_file(killed / whole.lora_file.name)
    far = max(float((found[key] - one).abs().max() / one.abs().max()) for key, one in expected.items())
    if far > (0.0 if bench.device.type == "cpu" else SAME):
        raise AssertionError(f"killed at {at} and resumed, its numbers are {far:.1e} of their size off")
    return {"killed_at": at, "same_numbers": far == 0, "largest_difference": far}


def _runs(bench: Bench, resolution: int, *, base: int, case: int, compiled: int) -> list[Check]:
    """Everything at one size; the numbers are seconds."""
    group, cases = f"{resolution} px", [one for one in CASES if one.resolution == resolution]

    def seconds(one: Case) -> int:
        return compiled if COMPILE in one.machine else case

    made = Check(f"{group}: base", group, base, partial(make_base, resolution, bench))
    runs = [Check(one.title, group, seconds(one), partial(run_case, one, bench), one.gib) for one in cases]
    least = min(one.gib for one in cases if one.quantize == "none")
    plain = Check(f"{group}: plain loop", group, base, partial(plain_loop, resolution, bench), least)
    return [made, plain, *runs]


def plan_case(case: Case, bench: Bench) -> Figures:
    """GiB in each phase, as `lora-studio plan --for` says; on no device, and without the base's weights."""
    file = bench.folder / f"plan_{case.title.replace(' ', '_')}.toml"
    base = "" if bench.rehearsal else published_at(case.resolution)
    file.write_text(case.recipe(bench, base=base), "utf-8")
    found = plan_for(load_recipe(file), CUDA, memory_gib=PLENTY)
    return {phase.name: round(phase.peak / GIB, 2) for phase in found.phases}


def checks_of(bench: Bench) -> list[Check]:
    """All of them, the most telling first."""
    return [
        Check("machine", "environment", 8, partial(machine_figures, bench)),
        Check("options", "environment", 45, partial(try_options, bench)),
        *_runs(bench, 512, base=8, case=12, compiled=30),
        Check("the demo learns", "learning", 30, partial(demo_learns, bench)),
        Check("resume after SIGKILL", "learning", 40, partial(resumes_after_kill, bench)),
        *_runs(bench, 1024, base=20, case=22, compiled=60),
        *(
            Check(plan_title(one), "plans", 60, partial(plan_case, one, bench), beside=True)
            for one in CASES
            if one.is_planned
        ),
    ]
