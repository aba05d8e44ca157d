"""Bucket sizes and the choice among them, for every image: covering, area, stride, symmetry, least crop."""

from __future__ import annotations

import itertools
from fractions import Fraction

import pytest
from tiny import python_random

from lora_studio.data.buckets.sizes import bucket_sizes, bucket_table, fit, largest_bucket
from lora_studio.data.manifest import Bucket
from lora_studio.errors import DatasetError

BASES = [(64, 8), (128, 8), (512, 64), (768, 64), (1024, 64), (1024, 16), (64, 64)]
SIDES = (16, 17, 31, 64, 65, 100, 333, 512, 1023, 1080, 1920, 4000)
SIZES = [(w, h) for w, h in itertools.product(SIDES, SIDES) if max(w, h) <= 10 * min(w, h)]
RANDOM = python_random()
SOME_SIZES = [(RANDOM.randint(16, 6000), RANDOM.randint(16, 6000)) for _ in range(60)]


@pytest.mark.parametrize(("resolution", "stride"), BASES)
def test_buckets_are_multiples_of_the_stride_of_about_the_area(resolution, stride):
    buckets = bucket_sizes(resolution**2, stride)
    assert len(set(buckets)) == len(buckets)
    for bucket in buckets:
        assert bucket.width % stride == bucket.height % stride == 0
        assert 0.84 <= bucket.width * bucket.height / resolution**2 <= 1.05
        assert max(bucket.width, bucket.height) <= 3 * min(bucket.width, bucket.height)


@pytest.mark.parametrize(("resolution", "stride"), BASES)
def test_buckets_hold_the_square_and_every_transpose(resolution, stride):
    buckets = bucket_sizes(resolution**2, stride)
    assert Bucket(resolution, resolution) == buckets[0]
    assert {Bucket(bucket.height, bucket.width) for bucket in buckets} == set(buckets)


def test_the_buckets_of_the_pocket_base_are_these():
    names = {bucket.name for bucket in bucket_sizes(64**2, 8) if bucket.width >= bucket.height}
    assert names == {"64x64", "64x56", "72x56", "72x48", "80x48", "88x48", "88x40", "96x40", "104x40"}


def test_an_area_that_no_square_fits_keeps_the_largest_square_within():
    assert bucket_sizes(100**2, 64) == [Bucket(64, 64)]


def test_an_area_below_the_stride_is_refused():
    with pytest.raises(DatasetError, match=r"data.resolution is 32; this base needs 64 or more"):
        bucket_sizes(32**2, 64)


@pytest.mark.parametrize(("resolution", "stride"), BASES)
def test_the_resized_image_covers_its_bucket_and_the_crop_lies_within(resolution, stride):
    table = bucket_table(resolution**2, stride)
    for width, height in SIZES:
        check_fit(width, height, table.choose(width, height))


def check_fit(width, height, bucket):
    resize, (left, top, right, bottom) = fit(width, height, bucket)
    assert resize[0] == bucket.width or resize[1] == bucket.height  # no larger than it must be
    assert 0 <= left < right <= resize[0] and 0 <= top < bottom <= resize[1]
    assert (right - left, bottom - top) == (bucket.width, bucket.height)
    assert abs(left - (resize[0] - right)) <= 1 and abs(top - (resize[1] - bottom)) <= 1  # centred
    # Neither side is off the image's aspect by more than the rounding to whole pixels.
    scale = max(bucket.width / width, bucket.height / height)
    assert abs(resize[0] - width * scale) <= 0.5 + 1e-6 and abs(resize[1] - height * scale) <= 0.5 + 1e-6


@pytest.mark.parametrize(("resolution", "stride"), BASES)
def test_portrait_and_landscape_are_treated_alike(resolution, stride):
    table = bucket_table(resolution**2, stride)
    for width, height in SIZES:
        upright, turned = table.choose(width, height), table.choose(height, width)
        if width != height:
            assert (upright.width, upright.height) == (turned.height, turned.width)


@pytest.mark.parametrize(("resolution", "stride"), BASES)
def test_no_other_bucket_would_crop_less(resolution, stride):
    table = bucket_table(resolution**2, stride)

    def kept(width, height, bucket):
        scale = max(bucket.width / width, bucket.height / height)
        return bucket.width * bucket.height / (scale**2 * width * height)

    for width, height in SIZES:
        shares = {bucket: kept(width, height, bucket) for bucket in table.sizes}
        assert shares[table.choose(width, height)] >= max(shares.values()) - 1e-12


def test_among_equal_shapes_the_one_nearest_the_area_is_chosen():
    table = bucket_table(1024**2, 16)
    assert Bucket(1008, 1008) in table.sizes  # the same shape as the square, so it crops as little
    assert table.choose(500, 500) == Bucket(1024, 1024)


@pytest.mark.parametrize(
    ("size", "bucket", "resize", "crop"),
    [
        ((64, 64), (64, 64), (64, 64), (0, 0, 64, 64)),
        ((200, 100), (64, 64), (128, 64), (32, 0, 96, 64)),
        ((100, 200), (64, 64), (64, 128), (0, 32, 64, 96)),
        ((301, 200), (72, 56), (84, 56), (6, 0, 78, 56)),
    ],
)
def test_fit_gives_these_numbers(size, bucket, resize, crop):
    assert fit(*size, Bucket(*bucket)) == (resize, crop)


@pytest.mark.parametrize(("resolution", "stride"), BASES)
def test_bisection_finds_what_trying_all_buckets_finds(resolution, stride):
    """With exact fractions, also for the ties: of equal crops the bucket nearest to the area."""
    table = bucket_table(resolution**2, stride)

    def crop_and_rank(width, height, rank):
        bucket = table.sizes[rank]
        across, down = width * bucket.height, height * bucket.width
        return -Fraction(min(across, down), max(across, down)), rank

    for width, height in SIZES + SOME_SIZES:
        best = min(crop_and_rank(width, height, rank) for rank in range(len(table.sizes)))
        assert table.choose(width, height) == table.sizes[best[1]]


def test_a_photograph_of_3_to_2_loses_nothing_at_512_and_a_stride_of_64():
    """Other trainers' sizes are as high as the area allows at each width: 576x448, not 576x384."""
    table = bucket_table(512**2, 64)
    assert table.choose(6000, 4000) == Bucket(576, 384)
    assert table.choose(4000, 6000) == Bucket(384, 576)


@pytest.mark.parametrize("max_upscale", [1.0, 1.5, 4.0])
@pytest.mark.parametrize(("resolution", "stride"), BASES)
def test_no_image_is_enlarged_beyond_the_limit_and_else_gets_what_crops_least(
    resolution, stride, max_upscale
):
    """Of all sizes that it can fill within the limit, of about the largest area among those."""
    smaller = 0
    side = resolution - 1
    for width, height in [*SOME_SIZES[:12], (90, 120), (resolution, resolution), (side, side), (side, 5000)]:
        found = largest_bucket((width, height), resolution, stride, 0.16, max_upscale)
        turned = largest_bucket((height, width), resolution, stride, 0.16, max_upscale)
        best = bucket_table(resolution**2, stride).choose(width, height)
        if max(best.width / width, best.height / height) <= max_upscale:
            assert found == (resolution, best)
            continue
        every = possible(width * max_upscale, height * max_upscale, resolution, stride, width / height)
        if not every:
            assert found is None and turned is None
            continue
        smaller += 1
        area = found[1].width * found[1].height
        assert found[1].width <= width * max_upscale and found[1].height <= height * max_upscale
        assert area >= 0.84 * max(every)[0] and found[0] == min(resolution, round(area**0.5))
        least = min(crop for a, crop in every if a >= 0.84 * max(every)[0])
        assert crop_of(found[1].width, found[1].height, width / height) == pytest.approx(least)
        if width != height:
            assert turned == (found[0], Bucket(found[1].height, found[1].width))
    assert smaller or max_upscale > 1 or resolution == stride


def possible(most_width, most_height, resolution, stride, aspect):
    """Area and crop of every size that an image can fill."""
    return [
        (w * h, crop_of(w, h, aspect))
        for w in range(stride, min(int(most_width), 3 * resolution) + 1, stride)
        for h in range(stride, min(int(most_height), 3 * resolution) + 1, stride)
        if w * h <= 1.05 * resolution**2 and max(w, h) <= 3 * min(w, h)
    ]


def crop_of(width, height, aspect):
    return 1 - min(width / height, aspect) / max(width / height, aspect)


def test_twenty_thousand_different_sizes_are_cheap():
    """Each is looked up by bisection: some 15 comparisons, where trying all 900 buckets would be minutes."""
    random, compared = python_random(), 0
    table = bucket_table(1024**2, 8)

    class Counted(float):
        def __lt__(self, other):
            nonlocal compared
            compared += 1
            return float.__lt__(self, other)

    assert len(table.sizes) > 900
    table._aspects = [Counted(aspect) for aspect in table._aspects]
    for _ in range(1000):
        table.choose(random.randint(500, 6000), random.randint(500, 6000))
    assert compared <= 1000 * 13
