"""The three sides of the training-step benchmark: ours, the loop of public example scripts, and the floor."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from diffusers import DDPMScheduler, StableDiffusionPipeline
from diffusers.optimization import get_scheduler
from diffusers.training_utils import compute_snr
from peft import LoraConfig
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from lora_studio.families.base import ModelFamily
from lora_studio.families.loading import POCKET_FOLDER, load_base
from lora_studio.families.unet import ATTENTION, FEED_FORWARD
from lora_studio.recipe.load import load_recipe
from lora_studio.rng import generator
from lora_studio.runs import Run
from lora_studio.training.events import ignore_events
from lora_studio.training.loop.step_result import GradientWatch
from lora_studio.training.prepare import Session, prepare

Step = Callable[[], None]
TARGETS = [*ATTENTION, *FEED_FORWARD]
RANK = 8
LEARNING_RATE = 1e-4


def recipe(images: Path, base: str, *, resolution: int, batch_size: int) -> str:
    """What ours trains; the plain loop is written to do the same."""
    return f"""
name = "step"
[machine]
device = "cpu"
[base]
model = "{base}"
[data]
images = "{images}"
resolution = {resolution}
caption_dropout = 0
[adapter]
rank = {RANK}
alpha = {RANK}
[training]
steps = 1000
batch_size = {batch_size}
learning_rate = {LEARNING_RATE}
[validation]
count = 0
"""


def our_session(text: str, folder: Path) -> Session:
    """A run that is ready to train."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "step.toml"
    file.write_text(text, "utf-8")
    return prepare(load_recipe(file), Run(folder / "run"), ignore_events)


def ours(session: Session) -> Step:
    """The loop's own step: batch, loss, gradients, checks, clipping, optimizer, and its line of metrics."""
    loop, watch = session.loop, GradientWatch(session.adapters)
    loop.base_rates = [group["lr"] for group in loop.state.optimizer.param_groups]
    numbers = iter(range(1, 10**9))

    def step() -> None:
        loop.train_step(next(numbers), watch)

    return step


def floor(session: Session, base: str, *, load: Callable[[str], ModelFamily] = load_base) -> Step:
    """The frozen model forward, and backward through its activations down to the first adapter's place.

    No adapters, no optimizer, one batch that is there already.
    """
    family = load(base)
    denoiser = family.parts[family.denoiser]
    paths = {layer.path for layer in session.adapters.layers if layer.part == family.denoiser}
    first = next(module for path, module in denoiser.named_modules() if path in paths)
    first.register_forward_hook(lambda module, args, answer: answer.requires_grad_())
    batch = next(session.loop.feed.of_step(1))
    assert batch.conditioning is not None
    noised = session.loop.objective.noise(batch.latents, generator("floor"))

    def step() -> None:
        answer = family.denoise(noised.latents, noised.timestep, batch.conditioning or {}, batch.geometry)
        F.mse_loss(answer, noised.target).backward()

    return step


class PlainImages(Dataset[dict[str, Tensor]]):
    """Opens, resizes and crops an image, and cuts its caption into tokens, whenever it is asked for one."""

    def __init__(self, folder: Path, tokenizer: Callable[..., object], resolution: int) -> None:
        self.paths = sorted(folder.glob("*.png"))
        self.tokenizer, self.resolution = tokenizer, resolution

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        path, side = self.paths[index], self.resolution
        image = Image.open(path).convert("RGB").resize((side, side), Image.Resampling.BILINEAR)
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 127.5 - 1
        ids = self.tokenizer(
            path.with_suffix(".txt").read_text("utf-8"),
            max_length=self.tokenizer.model_max_length,  # type: ignore[attr-defined]
            padding="max_length",
            truncation=True,
            return_tensors="pt",
        ).input_ids[0]
        return {"pixels": pixels, "ids": ids}


class Plain(NamedTuple):
    """The plain loop."""

    step: Step
    trained_numbers: int


def plain(images: Path, base: str, *, resolution: int, batch_size: int) -> Plain:
    """As diffusers' examples/text_to_image/train_text_to_image_lora.py does it, with our layers and rank."""
    folder = str(POCKET_FOLDER) if base == "pocket" else base
    accelerator = Accelerator(mixed_precision="no", cpu=True)
    pipeline = StableDiffusionPipeline.from_pretrained(folder, local_files_only=True, dtype=torch.float32)
    unet, vae, text_encoder = pipeline.unet, pipeline.vae, pipeline.text_encoder
    for part in (unet, vae, text_encoder):
        part.requires_grad_(False)
    unet.add_adapter(
        LoraConfig(r=RANK, lora_alpha=RANK, init_lora_weights="gaussian", target_modules=TARGETS)
    )
    trained = [parameter for parameter in unet.parameters() if parameter.requires_grad]
    loader = DataLoader(
        PlainImages(images, pipeline.tokenizer, resolution), shuffle=True, batch_size=batch_size
    )
    optimizer = torch.optim.AdamW(trained, lr=LEARNING_RATE, weight_decay=0.01)
    scheduler = get_scheduler("cosine", optimizer, num_warmup_steps=0, num_training_steps=1000)
    unet, optimizer, loader, scheduler = accelerator.prepare(unet, optimizer, loader, scheduler)
    noise_scheduler = DDPMScheduler.from_config(pipeline.scheduler.config)
    unet.train()
    batches = _endless(loader)

    def step() -> None:
        batch = next(batches)
        latents = vae.encode(batch["pixels"]).latent_dist.sample() * vae.config.scaling_factor
        noise = torch.randn_like(latents)
        timesteps = torch.randint(0, noise_scheduler.config.num_train_timesteps, (len(latents),)).long()
        noisy = noise_scheduler.add_noise(latents, noise, timesteps)
        hidden = text_encoder(batch["ids"], return_dict=False)[0]
        answer = unet(noisy, timesteps, hidden, return_dict=False)[0]
        snr = compute_snr(noise_scheduler, timesteps)
        weights = torch.stack([snr, 5 * torch.ones_like(timesteps)], dim=1).min(dim=1)[0] / snr
        loss = F.mse_loss(answer.float(), noise.float(), reduction="none")
        loss = (loss.mean(dim=list(range(1, loss.dim()))) * weights).mean()
        accelerator.gather(loss.repeat(len(latents))).mean().item()
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        loss.detach().item()

    return Plain(step, sum(parameter.numel() for parameter in trained))


def _endless(loader: DataLoader[dict[str, Tensor]]) -> Iterator[dict[str, Tensor]]:
    while True:
        yield from loader
