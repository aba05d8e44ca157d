"""One training step against a plain one written here with diffusers, PEFT and torch.optim."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import DDPMScheduler, UNet2DConditionModel
from peft import LoraConfig
from transformers import CLIPTextModel, CLIPTokenizer

from lora_studio.data.batches import Batch
from lora_studio.recipe import Recipe, load_recipe
from lora_studio.rng import generator
from lora_studio.run import Run
from lora_studio.training.build import Session, prepare
from lora_studio.training.events import nobody
from lora_studio.training.gradients import GradientWatch

TARGETS = ["to_q", "to_k", "to_v", "to_out.0", "proj_in", "proj_out", "ff.net.0.proj", "ff.net.2"]


def plain_step(
    base: Path, session: Session, recipe: Recipe, first: dict[str, torch.Tensor]
) -> tuple[float, dict[str, torch.Tensor]]:
    """Loss and updated adapter weights of step 1, from the same pictures, noise and timesteps."""
    unet = UNet2DConditionModel.from_pretrained(base / "unet", dtype=torch.float32)
    unet.requires_grad_(False)
    unet.add_adapter(
        LoraConfig(r=recipe.adapter.rank, lora_alpha=recipe.adapter.alpha, target_modules=TARGETS)
    )
    trainable = {n: p for n, p in unet.named_parameters() if p.requires_grad}
    for name, parameter in trainable.items():
        end = "down" if ".lora_A." in name else "up"
        parameter.data.copy_(first[f"unet.{name.split('.lora_')[0]}.{end}"])
    tokenizer = CLIPTokenizer.from_pretrained(base / "tokenizer")
    text_encoder = CLIPTextModel.from_pretrained(base / "text_encoder", dtype=torch.float32)
    scheduler = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    optimizer = torch.optim.AdamW(trainable.values(), lr=recipe.training.learning_rate, weight_decay=0.01)
    (batch,) = session.loop.feed.of_step(1)
    noised = session.loop.objective.noise(batch.latents, generator(recipe.training.seed, 1, 0, "noise"))
    alpha = scheduler.alphas_cumprod[noised.timestep]
    snr = alpha / (1 - alpha)
    ids = tokenizer(batch.captions, padding="max_length", truncation=True, return_tensors="pt").input_ids
    noisy = scheduler.add_noise(batch.latents, noised.target, noised.timestep)
    answer = unet(noisy, noised.timestep, text_encoder(ids)[0]).sample
    error = (answer - noised.target).square().mean(dim=(1, 2, 3))
    loss = (error * torch.minimum(snr, torch.tensor(5.0)) / snr).mean()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(trainable.values(), 1.0)
    optimizer.step()
    ends = {name: "down" if ".lora_A." in name else "up" for name in trainable}
    return loss.item(), {f"unet.{n.split('.lora_')[0]}.{ends[n]}": p.detach() for n, p in trainable.items()}


def test_one_step_equals_a_plain_reference_step(tmp_path: Path, recipe_file: Path, tiny_base: Path) -> None:
    recipe = load_recipe(recipe_file, changes=("data.caption_dropout=0",))
    session = prepare(recipe, Run(tmp_path), nobody)
    first = session.adapters.state()
    expected_loss, expected = plain_step(tiny_base, session, recipe, first)
    session.loop.base_rates = [recipe.training.learning_rate]
    loss, _ = session.loop._step(1, GradientWatch(session.adapters))
    assert abs(loss - expected_loss) < 1e-5
    updated = session.adapters.state()
    assert updated.keys() == expected.keys()
    moved = 0
    for key, tensor in updated.items():
        # Adam's first update is lr * sign(gradient): where a gradient is nearly 0 rounding may turn its sign
        close = (tensor - expected[key]).abs() < 1e-6
        assert close.float().mean() > 0.99, key
        moved += int((tensor != first[key]).any())
    assert moved >= len(updated) // 2  # every up; down has no gradient while up is 0


def test_accumulated_micro_batches_equal_one_batch(tmp_path: Path, recipe_file: Path) -> None:
    session = prepare(load_recipe(recipe_file), Run(tmp_path), nobody)
    loop = session.loop
    shape = (2, 4, 16, 16)
    latents, conditioning = (
        torch.randn(shape, generator=generator("x")),
        {"text": torch.randn(2, 32, 96, generator=generator("y"))},
    )
    geometry, weight = torch.zeros(2, 6), torch.ones(2, 1, 1, 1)

    def batch(rows: slice) -> Batch:
        return Batch(
            latents[rows],
            ["", ""][rows],
            {"text": conditioning["text"][rows]},
            geometry[rows],
            weight[rows],
            preserved=torch.tensor([], dtype=torch.int64),
        )

    noise = loop.objective.noise(latents, generator("z"))

    class Fixed:
        """The same noise for the whole batch and for its halves."""

        def __init__(self, rows: slice) -> None:
            self.rows = rows

        def noise(self, latents: torch.Tensor, rng: torch.Generator) -> object:
            values = (noise.latents, noise.timestep, noise.target, noise.weight)
            return type(noise)(*(value[self.rows] for value in values))

    gradients = []
    for parts in ([slice(0, 2)], [slice(0, 1), slice(1, 2)]):
        loop.state.optimizer.zero_grad()
        for rows in parts:
            loop.objective = Fixed(rows)  # type: ignore[assignment]
            (loop.loss(batch(rows), generator("unused")) / len(parts)).backward()
        gradients.append([p.grad.clone() for p in session.adapters.parameters("unet") if p.grad is not None])
    for whole, halves in zip(*gradients, strict=True):
        torch.testing.assert_close(whole, halves, atol=1e-6, rtol=1e-4)
