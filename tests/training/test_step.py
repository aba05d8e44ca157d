"""One training step against a plain one written here with diffusers, PEFT and torch.optim."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from diffusers import DDPMScheduler, DiffusionPipeline
from diffusers.schedulers.scheduling_ddpm import rescale_zero_terminal_snr
from peft import LoraConfig
from tiny import SD15_TEXT, recipe_text
from torch import Tensor, nn

from lora_studio.data.batches import Batch
from lora_studio.recipe import Recipe
from lora_studio.recipe.load import load_recipe
from lora_studio.rng import generator
from lora_studio.runs import Run
from lora_studio.training.events import ignore_events
from lora_studio.training.loop.step_result import GradientWatch
from lora_studio.training.prepare import Session, prepare

TARGETS = ["to_q", "to_k", "to_v", "to_out.0", "proj_in", "proj_out", "ff.net.0.proj", "ff.net.2"]


@dataclass
class PlainTrainer:
    """The usual loop's one step, with nothing of ours but the batch, and the timesteps that were drawn."""

    pipeline: DiffusionPipeline
    recipe: Recipe
    precision: torch.dtype

    def __post_init__(self) -> None:
        adapter = self.recipe.adapter
        self.pipeline.to(self.precision)
        unet = self.pipeline.unet.requires_grad_(False)
        unet.add_adapter(LoraConfig(r=adapter.rank, lora_alpha=adapter.alpha, target_modules=TARGETS))
        self.trainable = {name: p for name, p in unet.named_parameters() if p.requires_grad}
        for parameter in self.trainable.values():
            parameter.data = parameter.data.float()

    def start_from(self, state: dict[str, Tensor]) -> None:
        for name, parameter in self.trainable.items():
            parameter.data.copy_(state[our_name(name)])

    def step(self, batch: Batch, noise: Tensor, timestep: Tensor) -> float:
        scheduler = exact_scheduler(self.pipeline.scheduler.config)
        optimizer = torch.optim.AdamW(
            self.trainable.values(), lr=self.recipe.training.learning_rate, weight_decay=0.01
        )
        is_v = scheduler.config.prediction_type == "v_prediction"
        noisy = scheduler.add_noise(batch.latents, noise, timestep)
        target = scheduler.get_velocity(batch.latents, noise, timestep) if is_v else noise
        alpha = scheduler.alphas_cumprod[timestep]
        snr = alpha / (1 - alpha)
        weight = torch.minimum(snr, torch.tensor(5.0)) / (snr + 1 if is_v else snr)
        text, added = self.encode(batch)
        with torch.autocast("cpu", torch.bfloat16, enabled=self.precision == torch.bfloat16):
            unet = self.pipeline.unet
            answer = unet(noisy.to(self.precision), timestep, text, added_cond_kwargs=added).sample
        error = (answer.float() - target).square().mean(dim=(1, 2, 3))
        loss = (error * weight).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.trainable.values(), 1.0)
        optimizer.step()
        return loss.item()

    @torch.no_grad()
    def encode(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor] | None]:
        """Text and added conditioning; each caption alone, since in bfloat16 a batch rounds otherwise."""
        options = {"device": "cpu", "num_images_per_prompt": 1, "do_classifier_free_guidance": False}
        encoded = [self.pipeline.encode_prompt(caption, **options) for caption in batch.captions]
        text = torch.cat([one[0] for one in encoded])
        if len(encoded[0]) < 4:
            return text, None
        width = self.pipeline.text_encoder_2.config.projection_dim
        sizes = [(row[:2], row[2:4], row[4:]) for row in batch.geometry.tolist()]
        time_ids = [self.pipeline._get_add_time_ids(*size, torch.float32, width) for size in sizes]
        return text, {"text_embeds": torch.cat([one[2] for one in encoded]), "time_ids": torch.cat(time_ids)}


def exact_scheduler(config: dict[str, object]) -> DDPMScheduler:
    """diffusers' scheduler with its schedule made in float64; float32's last bits turn some of bfloat16's."""
    scheduler = DDPMScheduler.from_config(config)
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    if scheduler.config.rescale_betas_zero_snr:
        betas = rescale_zero_terminal_snr(betas)
    exact = torch.cumprod(1 - betas, 0).float()
    torch.testing.assert_close(scheduler.alphas_cumprod, exact, atol=1e-6, rtol=1e-4)
    scheduler.alphas_cumprod = exact
    return scheduler


def our_name(name: str) -> str:
    """PEFT's name of a parameter -> the canonical key."""
    path, _, rest = name.partition(".lora_")
    return f"unet.{path}.{'down' if rest.startswith('A.') else 'up'}"


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["sd15", "sd2 v", "sdxl", "sdxl v zero-snr"])
def test_one_step_equals_a_plain_reference_step(
    name: str, precision: str, tmp_path: Path, base_of: Callable[[str], Path], images: Path
) -> None:
    file = tmp_path / "tiny.toml"
    file.write_text(recipe_text(images, str(base_of(name))), "utf-8")
    recipe = load_recipe(file, changes=("data.caption_dropout=0", f"base.dtype={precision}"))
    session = prepare(recipe, Run(tmp_path), ignore_events)
    first = session.adapters.state()
    (batch,) = session.loop.feed.of_step(1)
    rng = generator(recipe.training.seed, 1, 0, "noise")
    noise = torch.randn(batch.latents.shape, generator=rng)
    timestep = session.loop.objective.noise(
        batch.latents, generator(recipe.training.seed, 1, 0, "noise")
    ).timestep
    pipeline = DiffusionPipeline.from_pretrained(base_of(name), dtype=torch.float32, local_files_only=True)
    plain = PlainTrainer(pipeline, recipe, getattr(torch, precision))
    plain.start_from(first)
    expected_loss = plain.step(batch, noise, timestep)
    session.loop.base_rates = [recipe.training.learning_rate]
    session.loop.train_step(1, GradientWatch(session.adapters))
    (row,) = session.run.metrics()
    loss = row["loss"]
    session.run.close()
    assert abs(loss - expected_loss) < 1e-6
    check_weights(session, first, {our_name(key): p for key, p in plain.trainable.items()}, precision)


def check_weights(
    session: Session, first: dict[str, Tensor], expected: dict[str, nn.Parameter], precision: str
) -> None:
    updated = session.adapters.state()
    assert updated.keys() == expected.keys()
    moved = 0
    for key, tensor in updated.items():
        gradient = expected[key].grad
        assert gradient is not None, key
        # Adam's first update is lr * sign(gradient): where a gradient is nearly 0 rounding may turn its sign
        clear = gradient.abs() > 1e-6
        same = ((tensor - expected[key].detach()).abs() < 1e-6)[clear]
        if precision == "float32":
            assert same.all(), key
        else:  # layers with one input are one product, so bfloat16 rounds otherwise all through the network
            assert same[gradient[clear].abs() > gradient.square().mean().sqrt()].all(), key
            assert not len(same) or same.float().mean() > 0.8, key
        moved += int((tensor != first[key]).any())
    assert moved >= len(updated) // 2  # every up; down has no gradient while up is 0


def test_accumulated_micro_batches_equal_one_batch(tmp_path: Path, recipe_file: Path) -> None:
    session = prepare(load_recipe(recipe_file), Run(tmp_path), ignore_events)
    loop = session.loop
    shape = (2, 4, 16, 16)
    latents, conditioning = (
        torch.randn(shape, generator=generator("x")),
        {"text": torch.randn(2, 32, SD15_TEXT, generator=generator("y"))},
    )
    geometry, weight = torch.zeros(2, 6), torch.ones(2, 1, 1, 1)

    def batch(rows: slice) -> Batch:
        return Batch(
            latents[rows],
            ["", ""][rows],
            {"text": conditioning["text"][rows]},
            geometry[rows],
            weight[rows],
        )

    noise = loop.objective.noise(latents, generator("z"))

    class Fixed:
        """The same noise for the whole batch and for its halves."""

        def __init__(self, rows: slice) -> None:
            self.rows = rows

        def noise(self, latents: torch.Tensor, rng: torch.Generator) -> object:
            values = (noise.latents, noise.timestep, noise.target, noise.weight)
            return type(noise)(*(value[self.rows] for value in values))

        def error(self, answer: Tensor, target: Tensor) -> Tensor:
            return (answer - target).square()

    gradients = []
    for parts in ([slice(0, 2)], [slice(0, 1), slice(1, 2)]):
        loop.state.optimizer.zero_grad()
        for rows in parts:
            loop.objective = Fixed(rows)  # type: ignore[assignment]
            (loop.loss(batch(rows), generator("unused")) / len(parts)).backward()
        gradients.append([p.grad.clone() for p in session.adapters.parameters("unet") if p.grad is not None])
    for whole, halves in zip(*gradients, strict=True):
        torch.testing.assert_close(whole, halves, atol=1e-6, rtol=1e-4)
