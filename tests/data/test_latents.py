"""Latents in memory or on the disk are the same latents."""

from __future__ import annotations

import pickle

import pytest
import torch
from data_config import data_config
from noise import grey_noise

from lora_studio.data.buckets import assign
from lora_studio.data.cache import entries, remove
from lora_studio.data.cache.encode import LatentCache
from lora_studio.data.scan import scan
from lora_studio.errors import DatasetError

LATENT_BYTES = 2 * 4 * 3 * 8 * 8  # mean and deviation, float32, of an image of 64x64


def halves(pixels):
    mean = torch.nn.functional.avg_pool2d(pixels, 8)
    return mean, mean.abs() + 0.1


@pytest.fixture
def records(folder):
    for number in range(5):
        grey_noise((64, 64), 90 + number).convert("RGB").save(folder / f"{number}.png")
    return assign(scan(folder), data_config(resolution=64), stride=8).used


def load(folder, records, memory_bytes):
    return LatentCache(folder / "latents", "vae").load_or_encode(records, halves, memory_bytes=memory_bytes)


def test_above_the_set_size_latents_stay_on_the_disk_and_are_the_same(tmp_path, records):
    held = load(tmp_path, records, 5 * LATENT_BYTES)
    for memory_bytes in (5 * LATENT_BYTES - 1, 0):
        on_disk = load(tmp_path, records, memory_bytes)
        assert on_disk.on_disk and not held.on_disk
        assert len(on_disk) == len(held) == 5
        for index, latent in enumerate(held):
            assert torch.equal(on_disk[index].mean, latent.mean) and torch.equal(
                on_disk[index].std, latent.std
            )
            assert on_disk.size(index) == held.size(index) == latent.mean.numel()


def test_without_a_set_size_all_are_held(tmp_path, records):
    assert not load(tmp_path, records, None).on_disk


def test_fresh_latents_are_on_the_disk_like_cached_ones(tmp_path, records):
    first, second = load(tmp_path, records, 0), load(tmp_path, records, 0)
    assert all(torch.equal(a.mean, b.mean) for a, b in zip(first, second, strict=True))


def test_latents_on_the_disk_hold_no_numbers_and_can_be_pickled(tmp_path, records):
    """USERS row 45: what could be sent to a worker process is made of paths and numbers."""
    on_disk = load(tmp_path, records, 0)
    data = pickle.dumps(on_disk)
    assert len(data) < 5 * LATENT_BYTES
    assert torch.equal(pickle.loads(data)[3].mean, on_disk[3].mean)


def test_a_latent_that_is_gone_is_said_in_one_sentence(tmp_path, records):
    on_disk = load(tmp_path, records, 0)
    remove(entries(tmp_path))
    with pytest.raises(DatasetError, match=r"gone from the cache folder .* go on with --resume"):
        on_disk[0]
