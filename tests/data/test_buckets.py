from __future__ import annotations

import itertools

import pytest

from lora_studio.data.buckets import assign, crop_loss
from lora_studio.data.manifest import Bucket
from lora_studio.data.scan import scan
from lora_studio.data.sizes import bucket_sizes, bucket_table, fit
from lora_studio.errors import DatasetError

BASES = [(64, 8), (128, 8), (512, 64), (768, 64), (1024, 64), (1024, 16), (64, 64)]
SIDES = (16, 17, 31, 64, 65, 100, 333, 512, 1023, 1080, 1920, 4000)
SIZES = [(w, h) for w, h in itertools.product(SIDES, SIDES) if max(w, h) <= 10 * min(w, h)]


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
    assert names == {"64x64", "72x56", "80x48", "88x48", "96x40", "104x40"}


def test_an_area_that_no_square_fits_keeps_the_largest_square_within():
    assert bucket_sizes(100**2, 64) == [Bucket(64, 64)]


def test_an_area_below_the_stride_is_refused():
    with pytest.raises(DatasetError, match=r"data.resolution is 32; this base needs 64 or more"):
        bucket_sizes(32**2, 64)


@pytest.mark.parametrize(("resolution", "stride"), BASES)
def test_the_resized_picture_covers_its_bucket_and_the_crop_lies_within(resolution, stride):
    table = bucket_table(resolution**2, stride)
    for width, height in SIZES:
        check_fit(width, height, table.choose(width, height))


def check_fit(width, height, bucket):
    resize, (left, top, right, bottom) = fit(width, height, bucket)
    assert resize[0] == bucket.width or resize[1] == bucket.height  # no larger than it must be
    assert 0 <= left < right <= resize[0] and 0 <= top < bottom <= resize[1]
    assert (right - left, bottom - top) == (bucket.width, bucket.height)
    assert abs(left - (resize[0] - right)) <= 1 and abs(top - (resize[1] - bottom)) <= 1  # centred
    # Neither side is off the picture's aspect by more than the rounding to whole pixels.
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


def test_assign_fills_in_used_records_only(folder, paint):
    paint("a.png", 90, 70)
    paint("b.png", 50, 100)
    (folder / "c.jpg").write_text("x")
    manifest = assign(scan(folder), resolution=64, stride=8)
    a, b, c = manifest.records
    assert a.bucket == Bucket(72, 56) and a.resize == (72, 56) and a.crop == (0, 0, 72, 56)
    assert b.bucket == Bucket(48, 88) and b.resize == (48, 96) and b.crop == (0, 4, 48, 92)
    assert c.bucket is None and crop_loss(c) == 0
    assert crop_loss(a) == 0 and crop_loss(b) == pytest.approx(8 / 96)
    assert '"bucket": "72x56"' in manifest.to_jsonl()


@pytest.mark.parametrize(("resolution", "advice"), [(100, "64 or 128"), (32, "64"), (700, "640 or 704")])
def test_a_resolution_that_does_not_suit_the_base_is_refused_with_the_nearest(
    folder, paint, resolution, advice
):
    paint("a.png")
    with pytest.raises(DatasetError, match=f"data.resolution is {resolution}; .* set it to {advice}\\."):
        assign(scan(folder), resolution=resolution, stride=64)
