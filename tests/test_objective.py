"""The objective against diffusers' schedulers and against closed forms."""

from __future__ import annotations

import pytest
import torch
from diffusers import DDPMScheduler

from lora_studio.objective import Diffusion
from lora_studio.rng import generator

SCHEDULER = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
ALPHAS = SCHEDULER.alphas_cumprod
LATENTS = torch.randn(8, 4, 6, 6, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_noised_latents_and_target_equal_diffusers(prediction: str) -> None:
    noised = Diffusion(ALPHAS, prediction).noise(LATENTS, generator("a"))  # type: ignore[arg-type]
    alpha = ALPHAS[noised.timestep].view(-1, 1, 1, 1)
    noise = (noised.latents - alpha.sqrt() * LATENTS) / (1 - alpha).sqrt()
    torch.testing.assert_close(noised.latents, SCHEDULER.add_noise(LATENTS, noise, noised.timestep))
    velocity = SCHEDULER.get_velocity(LATENTS, noise, noised.timestep)
    # the noise is recovered by a division by up to 1/sqrt(1 - alpha) = 34 at timestep 0
    torch.testing.assert_close(
        noised.target, noise if prediction == "epsilon" else velocity, atol=1e-4, rtol=1e-4
    )


def test_min_snr_weights_equal_the_papers_formula() -> None:
    timestep = torch.tensor([0, 100, 500, 999])
    snr = ALPHAS[timestep] / (1 - ALPHAS[timestep])
    expected = torch.minimum(snr, torch.tensor(5.0))
    torch.testing.assert_close(Diffusion(ALPHAS, "epsilon").weight(timestep), expected / snr)
    torch.testing.assert_close(Diffusion(ALPHAS, "v_prediction").weight(timestep), expected / (snr + 1))


@pytest.mark.parametrize(("gamma", "cap"), [(5.0, 5.0), (0.0, 1e9)])
def test_debiased_weights_equal_the_papers_formula(gamma: float, cap: float) -> None:
    timestep = torch.tensor([0, 100, 500, 900])
    alpha = ALPHAS[timestep].double()
    snr = alpha / (1 - alpha)
    in_pictures = torch.minimum(snr, torch.tensor(cap)).sqrt()  # what an error in the clean latents counts
    made = {
        prediction: Diffusion(ALPHAS, prediction, snr_gamma=gamma, weighting="debiased").weight(timestep)
        for prediction in ("epsilon", "v_prediction")
    }
    torch.testing.assert_close(made["epsilon"].double(), in_pictures / snr, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(made["v_prediction"].double(), in_pictures / (snr + 1), rtol=1e-4, atol=1e-6)
    at_zero = Diffusion(torch.tensor([0.5, 0.0]), "epsilon", weighting="debiased").weight(torch.tensor([1]))
    torch.testing.assert_close(at_zero, torch.tensor([1000**0.5]))


def test_weights_are_finite_at_snr_zero_and_one_when_switched_off() -> None:
    alphas = torch.tensor([0.9, 0.0])
    assert Diffusion(alphas, "epsilon").weight(torch.tensor([1])).item() == 1
    assert Diffusion(alphas, "v_prediction").weight(torch.tensor([1])).item() == 0
    assert Diffusion(ALPHAS, "epsilon", snr_gamma=0).weight(torch.tensor([0, 999])).tolist() == [1, 1]


def test_stratified_timesteps_take_one_from_each_part() -> None:
    timestep = Diffusion(ALPHAS, "epsilon").noise(LATENTS, generator("b")).timestep
    assert sorted((timestep * len(LATENTS) // len(ALPHAS)).tolist()) == list(range(len(LATENTS)))


@pytest.mark.parametrize("timesteps", ["stratified", "uniform"])
def test_timesteps_are_spread_evenly_over_many_draws(timesteps: str) -> None:
    objective = Diffusion(ALPHAS, "epsilon", timesteps=timesteps)  # type: ignore[arg-type]
    latents = torch.zeros(4, 1, 1, 1)
    drawn = torch.cat([objective.noise(latents, generator("c", i)).timestep for i in range(5000)])
    counts = torch.bincount(drawn // 100, minlength=10)
    chi_square = ((counts - 2000.0) ** 2 / 2000).sum().item()
    assert chi_square < 27.9  # 9 degrees of freedom, p = 0.001


def test_noise_offset_adds_a_constant_a_channel() -> None:
    plain = Diffusion(ALPHAS, "epsilon").noise(LATENTS, generator("d"))
    shifted = Diffusion(ALPHAS, "epsilon", noise_offset=0.1).noise(LATENTS, generator("d"))
    shift = shifted.target - plain.target
    torch.testing.assert_close(shift, shift[:, :, :1, :1].expand_as(shift), atol=1e-6, rtol=0)
    assert 0.05 < shift[:, :, 0, 0].std() < 0.2


def test_the_same_key_gives_the_same_batch_and_another_key_another() -> None:
    objective = Diffusion(ALPHAS, "epsilon")
    first, again, other = (objective.noise(LATENTS, generator(1, step)) for step in (1, 1, 2))
    assert torch.equal(first.latents, again.latents) and not torch.equal(first.latents, other.latents)
