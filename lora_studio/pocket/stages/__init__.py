"""The stages that make the pocket base from nothing, and what they share.

That is a resumable training loop, averaged weights, and images as tensors.
"""

from __future__ import annotations

import itertools
import json
import os
import time
import tomllib
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch._utils import _flatten_dense_tensors, _unflatten_dense_tensors
from torch.multiprocessing.spawn import spawn

CHECKPOINT_SECONDS = 150
_ADAMW, _MUON = ("step", "exp_avg", "exp_avg_sq"), ("momentum_buffer",)  # what each knows of a parameter


@dataclass(frozen=True)
class StageConfig:
    name: str
    steps: int
    learning_rate: float
    warmup_steps: int = 50
    decay_share: float = 0.3  # the last part of the steps, over which the learning rate falls to 2 %
    average_decay: float = 0.998
    weight_decay: float = 0.01
    matrix_rate: float = 0.0  # with it, Muon's learning rate for the matrices that `Trainee` is told of


def images_to_tensor(images: list[Image.Image]) -> Tensor:
    """Equal-sized images -> [B, 3, H, W] in -1..1."""
    stacked = np.stack([np.asarray(image) for image in images])
    return torch.from_numpy(stacked).permute(0, 3, 1, 2).float().div_(127.5).sub_(1.0)


def tensor_to_images(pixels: Tensor) -> list[Image.Image]:
    """[B, 3, H, W] in -1..1 -> images."""
    scaled = ((pixels.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return [Image.fromarray(one) for one in scaled.permute(0, 2, 3, 1).cpu().numpy()]


def learning_rate_factor(step: int, config: StageConfig) -> float:
    """Linear warm-up, a plateau, and a linear fall to 2 % over the last `decay_share` of the steps."""
    fall_from = config.steps * (1 - config.decay_share)
    fall = (config.steps - step) / max(1.0, config.steps - fall_from)
    return min(1.0, step / config.warmup_steps, max(0.02, fall))


def rank_and_size() -> tuple[int, int]:
    """This process's number and how many share the stage; (0, 1) alone."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def half_precision(device: torch.device) -> torch.autocast:
    """Autocast to bfloat16 on a GPU and on processors that have instructions for it; else none."""
    cpu = torch.cpu
    has_units = device.type != "cpu" or cpu._is_avx512_bf16_supported() or cpu._is_amx_tile_supported()
    return torch.autocast(device.type, torch.bfloat16, enabled=has_units)


def configuration(name: str) -> dict[str, Any]:
    """A section of `networks.toml`."""
    text = (Path(__file__).parent / "networks.toml").read_text("utf-8")
    return dict(tomllib.loads(text)[name])


def _worker(rank: int, size: int, meeting: str, stage: Callable[..., None], *arguments: object) -> None:
    torch.set_num_threads(1)
    if hasattr(os, "sched_setaffinity"):  # two busy workers were seen to share one core for minutes
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cores[rank % len(cores)]})
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=size)
    stage(*arguments)
    dist.destroy_process_group()


def run_in_processes(size: int, meeting: Path, stage: Callable[..., None], *arguments: object) -> None:
    """Run a stage as `size` single-threaded processes that average their gradients.

    On a CPU with few cores this is half as fast again as one process with as many threads: small operations
    do not split well. `meeting` is a file name that the processes find each other by.
    """
    if size == 1:
        stage(*arguments)
        return
    meeting.parent.mkdir(parents=True, exist_ok=True)
    meeting.unlink(missing_ok=True)
    spawn(_worker, (size, str(meeting), stage, *arguments), nprocs=size)


class Trainee:
    """A module in training, and its averaged copy; the whole state is kept in one folder.

    AdamW trains all but the parameters called `matrices`: those are Muon's (torch.optim.Muon), whose
    updates have all their singular values near 1.
    """

    def __init__(
        self, module: nn.Module, config: StageConfig, folder: Path, *, matrices: Collection[str] = ()
    ) -> None:
        self.module, self.config, self.folder, self.step = module, config, folder, 0
        self.parameters = dict(module.named_parameters())
        rate, decay = config.learning_rate, config.weight_decay
        others = [p for name, p in self.parameters.items() if name not in matrices]
        adamw = torch.optim.AdamW(others, lr=rate, betas=(0.9, 0.99), weight_decay=decay)
        self.optimizers: list[torch.optim.Optimizer] = [adamw]
        if matrices:
            flat = [self.parameters[name] for name in matrices]
            muon = torch.optim.Muon(
                flat, lr=config.matrix_rate, weight_decay=decay, adjust_lr_fn="match_rms_adamw"
            )
            self.optimizers.append(muon)
        self.average = {name: p.detach().clone() for name, p in self.parameters.items()}
        folder.mkdir(parents=True, exist_ok=True)
        self._resume()

    def save(self) -> None:
        """Weights, moments and average in one atomic file; the step lies in its metadata."""
        if rank_and_size()[0]:
            return
        names = {id(p): name for name, p in self.parameters.items()}
        states = [item for optimizer in self.optimizers for item in optimizer.state.items()]
        tensors: dict[str, Tensor] = {f"weight/{name}": p for name, p in self.parameters.items()}
        tensors |= {f"average/{name}": mean for name, mean in self.average.items()}
        tensors |= {f"{key}/{names[id(p)]}": value for p, state in states for key, value in state.items()}
        temporary = self.folder / "state.tmp"
        contiguous = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
        save_file(contiguous, temporary, metadata={"step": str(self.step)})
        os.replace(temporary, self.folder / "state.safetensors")

    def _resume(self) -> None:
        path = self.folder / "state.safetensors"
        if not path.is_file():
            return
        names = {id(p): name for name, p in self.parameters.items()}
        tensors = load_file(path)
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(tensors[f"weight/{name}"])
                self.average[name].copy_(tensors[f"average/{name}"])
        for optimizer, keys in zip(self.optimizers, (_ADAMW, _MUON), strict=False):
            for parameter in itertools.chain(*(group["params"] for group in optimizer.param_groups)):
                optimizer.state[parameter] = {
                    key: tensors[f"{key}/{names[id(parameter)]}"].to(
                        parameter.device if key != "step" else "cpu"
                    )
                    for key in keys
                }
        with safe_open(path, "pt") as file:
            self.step = int(file.metadata()["step"])

    def update(self, loss: Tensor) -> None:
        """One optimizer step with all processes' gradients, and one of the weights' running average."""
        self.step += 1
        rates = self.config.learning_rate, self.config.matrix_rate
        for optimizer, rate in zip(self.optimizers, rates, strict=False):
            for group in optimizer.param_groups:
                group["lr"] = rate * learning_rate_factor(self.step, self.config)
        loss.backward()
        self._average_gradients()
        torch.nn.utils.clip_grad_norm_(self.parameters.values(), 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad()
        decay = min(self.config.average_decay, self.step / (self.step + 10))
        with torch.no_grad():
            torch._foreach_lerp_(list(self.average.values()), list(self.parameters.values()), 1 - decay)

    def _average_gradients(self) -> None:
        if rank_and_size()[1] == 1:
            return
        gradients = [p.grad for p in self.parameters.values() if p.grad is not None]
        flat = _flatten_dense_tensors(gradients)
        dist.all_reduce(flat, op=dist.ReduceOp.SUM)
        flat /= rank_and_size()[1]
        for gradient, averaged in zip(gradients, _unflatten_dense_tensors(flat, gradients), strict=True):
            gradient.copy_(averaged)

    @torch.no_grad()
    def use_average(self) -> None:
        """Put the averaged weights into the module (at the end of a stage, or for a look in between)."""
        for name, parameter in self.parameters.items():
            parameter.copy_(self.average[name])


def train(
    trainee: Trainee, loss_at: Callable[[int], Tensor], *, look: Callable[[], None], look_every: int
) -> bool:
    """Run the remaining steps and keep the averaged weights; whether this process is the one that saves them.

    `loss_at(step)` is a pure function of the step, so a resumed stage sees the same data.
    """
    config, recent, since = trainee.config, [], time.monotonic()
    saved = since
    with (trainee.folder / "log.jsonl").open("a", encoding="utf-8") as log:
        while trainee.step < config.steps:
            loss = loss_at(trainee.step)
            trainee.update(loss)
            recent.append(loss.detach())
            if rank_and_size()[0]:
                continue
            if trainee.step % 20 == 0:
                seconds = (time.monotonic() - since) / len(recent)
                loss_now = round(torch.stack(recent).mean().item(), 5)
                row = {"step": trainee.step, "loss": loss_now, "s_per_step": round(seconds, 3)}
                log.write(json.dumps(row) + "\n")
                log.flush()
                print(config.name, row, flush=True)
                recent, since = [], time.monotonic()
            if trainee.step % look_every == 0:
                look()
            if time.monotonic() - saved > CHECKPOINT_SECONDS:
                trainee.save()
                saved = time.monotonic()
    trainee.save()
    if rank_and_size()[0]:
        return False
    trainee.use_average()
    look()
    return True
