"""The order in which the pocket base's UNet is shown its world."""

from __future__ import annotations

import torch

from lora_studio.pocket.scenes import BACKGROUNDS, Scene, Thing, training_scene
from lora_studio.pocket.stages.unet import new_scheduler, noised_batch
from lora_studio.pocket.stages.world import GROUP, OBJECT_WEIGHT, World, object_weights

SMALL, LARGE = (
    Thing("star", "red", size, "in the middle", (0.5, 0.5), radius)
    for size, radius in (("small", 0.18), ("large", 0.33))
)


def test_an_objects_square_weighs_more_and_the_mean_stays_one() -> None:
    for shape in ((16, 16), (12, 20)):
        weights = object_weights(Scene((LARGE,), next(iter(BACKGROUNDS))), shape, 4.0)
        assert weights.shape == (1, *shape)
        torch.testing.assert_close(weights.mean(), torch.tensor(1.0))
        middle, corner = weights[0, shape[0] // 2, shape[1] // 2], weights[0, 0, 0]
        torch.testing.assert_close(middle, 4 * corner)
    small = object_weights(Scene((SMALL,), next(iter(BACKGROUNDS))), (16, 16), 4.0)
    large = object_weights(Scene((LARGE,), next(iter(BACKGROUNDS))), (16, 16), 4.0)
    assert (small > 1).sum() < (large > 1).sum()


def test_large_single_objects_come_first_and_later_everything() -> None:
    groups = [torch.zeros(GROUP, 4, 16, 16) for _ in range(10)]
    world = World(groups, seed=3, steps=100, easy_steps=77)
    latents, captions, weights, scenes, numbers = world.batch(0)
    assert latents.shape == (GROUP, 4, 16, 16) and weights.shape == (GROUP, 1, 16, 16)
    assert len(captions) == len(scenes) == GROUP and scenes == [training_scene(n) for n in numbers]
    assert all(
        caption == "" or scene.things[0].name in caption
        for caption, scene in zip(captions, scenes, strict=True)
    )
    assert not any(" and " in caption or "small" in caption for caption in captions)
    assert weights.max() / weights.min() > 1
    last_latents, last, last_weights, *_ = world.batch(99)
    assert len(last_latents) == GROUP
    assert any(" and " in caption for caption in last) and any("small" in caption for caption in last)
    assert torch.equal(last_weights, torch.ones(GROUP, 1, 16, 16))
    assert world.batch(0)[1] == captions
    from_the_first = World(groups, seed=3, steps=100, easy_steps=0).batch(0)[1]
    assert any(" and " in caption for caption in from_the_first)


def test_half_of_the_timesteps_lie_at_high_noise_and_the_weights_follow_the_formula() -> None:
    alphas = new_scheduler().alphas_cumprod
    latents = torch.zeros(1000, 4, 2, 2)
    _, _, timesteps, weights = noised_batch(latents, alphas, torch.Generator().manual_seed(0))
    assert abs((timesteps >= 630).float().mean() - 0.5) < 0.01  # 0.5 ** (2 / 3) is 0.63
    snr = alphas[timesteps] / (1 - alphas[timesteps])
    below = snr < 5
    torch.testing.assert_close(weights[below], snr[below].rsqrt())
    torch.testing.assert_close(weights[~below], 5**0.5 / snr[~below])
    assert OBJECT_WEIGHT > 1
