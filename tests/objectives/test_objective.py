"""The objective against diffusers' schedulers and against closed forms."""

from __future__ import annotations

import pytest
import torch
from diffusers import DDPMScheduler

from lora_studio.objectives.diffusion import Diffusion
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
    in_images = torch.minimum(snr, torch.tensor(cap)).sqrt()  # what an error in the clean latents counts
    made = {
        prediction: Diffusion(ALPHAS, prediction, snr_gamma=gamma, weighting="debiased").weight(timestep)
        for prediction in ("epsilon", "v_prediction")
    }
    torch.testing.assert_close(made["epsilon"].double(), in_images / snr, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(made["v_prediction"].double(), in_images / (snr + 1), rtol=1e-4, atol=1e-6)
    at_zero = Diffusion(torch.tensor([0.5, 0.0]), "epsilon", weighting="debiased").weight(torch.tensor([1]))
    torch.testing.assert_close(at_zero, torch.tensor([1000**0.5]))
    v_at_zero = Diffusion(torch.tensor([0.5, 0.0]), "v_prediction", weighting="debiased")
    assert v_at_zero.weight(torch.tensor([1])).item() == 0  # sqrt(0) / (0 + 1)


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


def test_latents_see_more_noise_than_the_target_has_under_input_perturbation() -> None:
    """arXiv 2301.11706, algorithm 1: the question is made with eps + 0.1 xi, the answer is eps."""
    for prediction in ("epsilon", "v_prediction"):
        plain, perturbed = (
            Diffusion(ALPHAS, prediction, input_perturbation=amount).noise(LATENTS, generator("e"))  # type: ignore[arg-type]
            for amount in (0.0, 0.1)
        )
        assert torch.equal(plain.target, perturbed.target) and torch.equal(plain.timestep, perturbed.timestep)
        sigma = (1 - ALPHAS[plain.timestep]).sqrt().view(-1, 1, 1, 1)
        extra = (perturbed.latents - plain.latents) / sigma
        assert extra.std().item() == pytest.approx(0.1, rel=0.1)
        noise = (plain.latents - ALPHAS[plain.timestep].sqrt().view(-1, 1, 1, 1) * LATENTS) / sigma
        assert abs(torch.corrcoef(torch.stack([extra.flatten(), noise.flatten()]))[0, 1]) < 0.1


@pytest.mark.parametrize("size", [(2, 2), (8, 8), (5, 12)])
def test_multi_resolution_noise_has_a_variance_of_one_at_every_position(size: tuple[int, int]) -> None:
    objective = Diffusion(ALPHAS, "epsilon", multires_noise=0.5)
    noise = objective.noise(torch.zeros(20_000, 1, *size), generator("f")).target
    variance = noise.var(dim=0)
    assert (variance - 1).abs().max() < 0.05  # five standard deviations of a variance of 20,000 numbers
    assert noise.mean(dim=0).abs().max() < 0.04


def test_multi_resolution_noise_is_as_alike_as_its_discount_says() -> None:
    """On 2x2 latents there is one coarser level, of a single number: correlations are d² / (1 + d²)."""
    objective = Diffusion(ALPHAS, "epsilon", multires_noise=0.5)
    noise = objective.noise(torch.zeros(20_000, 1, 2, 2), generator("g")).target
    correlations = torch.corrcoef(noise.flatten(1).T)[~torch.eye(4, dtype=torch.bool)]
    assert (correlations - 0.25 / 1.25).abs().max() < 0.04


def test_new_noise_leaves_what_was_drawn_before_as_it_was() -> None:
    plain, both = (
        Diffusion(ALPHAS, "epsilon", multires_noise=m, input_perturbation=p).noise(LATENTS, generator("h"))
        for m, p in ((0.0, 0.0), (0.4, 0.1))
    )
    assert torch.equal(plain.timestep, both.timestep) and not torch.equal(plain.target, both.target)


def test_a_range_of_timesteps_is_kept() -> None:
    objective = Diffusion(ALPHAS, "epsilon", timestep_range=(0.3, 0.5))
    timestep = torch.cat([objective.noise(LATENTS, generator("i", n)).timestep for n in range(50)])
    assert timestep.min() >= 300 and timestep.max() <= 500 and timestep.max() - timestep.min() > 190


@pytest.mark.parametrize("delta", [0.1, 1.0])
def test_losses_equal_their_published_formulas(delta: float) -> None:
    e = torch.linspace(-3, 3, 601, dtype=torch.float64)
    size, near = e.abs(), e.abs() <= delta
    expected = {
        "l2": e**2,
        "huber": torch.where(near, e**2, 2 * delta * size - delta**2),
        "smooth_l1": torch.where(near, e**2 / (2 * delta), size - delta / 2),
    }
    for loss, wanted in expected.items():
        objective = Diffusion(ALPHAS, "epsilon", loss=loss, loss_delta=delta)  # type: ignore[arg-type]
        torch.testing.assert_close(objective.error(e + 2, torch.full_like(e, 2)), wanted)


def test_a_batch_that_is_noised_can_be_cut_into_rows() -> None:
    everything = Diffusion(
        ALPHAS, "epsilon", noise_offset=0.1, multires_noise=0.3, input_perturbation=0.1, timestep_bias=1.0
    )
    noised = everything.noise(LATENTS, generator("j"))
    part = noised.rows(slice(2, 5))
    assert torch.equal(part.latents, noised.latents[2:5]) and torch.equal(part.target, noised.target[2:5])
    assert torch.equal(part.weight, noised.weight[2:5]) and len(part.timestep) == 3
