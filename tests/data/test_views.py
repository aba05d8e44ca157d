"""From placed images to entries of the plan and to latents."""

from __future__ import annotations

from collections import Counter
from random import Random

import pytest
from data_config import data_config

from lora_studio.data.batches import BatchPlan, draw_view, each_view, entries, views_of
from lora_studio.data.buckets import assign
from lora_studio.data.cache.encode import LatentCache
from lora_studio.data.manifest import Manifest, Record


def placed(*sizes, **framing):
    records = tuple(
        Record(path=f"/{number}", name=str(number), sha256=str(number), width=width, height=height)
        for number, (width, height) in enumerate(sizes)
    )
    return assign(Manifest(records), data_config(resolution=64, **framing), stride=8).used


def test_without_further_views_there_is_one_entry_and_one_latent_for_each_image_as_it_is():
    used = placed((64, 64), (100, 80))
    assert entries(used) == list(used) == each_view(entries(used))


def test_an_entry_for_each_area_and_a_latent_for_each_view(tmp_path):
    used = placed((600, 200), (64, 64), extra_resolutions=(128,), crop="random", crops=3, flip=0.5)
    shown = entries(used)
    assert [(entry.name, entry.resolution) for entry in shown] == [
        ("0", 64),
        ("0", 128),
        ("1", 64),
        ("1", 96),
    ]
    assert all(len({view.bucket for view in views_of(entry)}) == 1 for entry in shown)
    assert [len(views_of(entry)) for entry in shown[2:]] == [2, 2]  # nothing to crop: as it is, mirrored
    latents = each_view(shown)
    assert len(latents) == sum(len(views_of(record)) for record in used)
    assert not any(record.more_views for record in latents)
    keys = {LatentCache(tmp_path, "vae").key(record) for record in latents}
    assert len(keys) == len(latents)  # none is taken for another


def test_crops_depend_on_the_images_content_alone():
    options = {"crop": "random", "crops": 3}
    (one,), (again,), (two, _) = (
        placed((900, 200), **options),
        placed((900, 200), **options),
        placed((900, 200), (300, 300), **options),
    )
    assert views_of(one) == views_of(again) == views_of(two)
    (a, b) = placed((900, 200), (900, 200), **options)
    assert {view.crop for view in views_of(a)} != {view.crop for view in views_of(b)}


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 1.0])
def test_the_share_of_mirrored_showings_and_every_crop_alike(share):
    (entry,) = placed((900, 200), crop="random", crops=4, flip=share)
    views, number = views_of(entry), 4000
    counts = Counter(draw_view(entry, Random(draw)) for draw in range(number))
    mirrored = sum(count for view, count in counts.items() if views[view].flip) / number
    assert abs(mirrored - share) <= 4 * (share * (1 - share) / number) ** 0.5
    crops = Counter()
    for view, count in counts.items():
        crop = views[view].crop
        crops[entry.resize[0] - crop[2] if views[view].flip else crop[0]] += count
    assert len(crops) == 4 and all(abs(count / number - 0.25) < 0.03 for count in crops.values())


def test_an_epoch_shows_an_image_exactly_its_repeats_at_each_of_its_areas():
    used = placed((300, 300), (64, 64), (500, 400), extra_resolutions=(128,), flip=0.5)
    shown = entries(used)
    made = BatchPlan(shown, batch_size=2, gradient_accumulation=1, seed=3)
    for epoch in range(3):
        seen = Counter(index for batch in made.epoch(epoch) for index in batch)
        assert seen == dict.fromkeys(range(len(shown)), 1)
    assert made.average_views(made.micro_batches_per_epoch) == len(shown) / 3  # of the three images
