"""Which regularization images stand beside the images of a batch."""

from __future__ import annotations

from collections import Counter

import pytest

from lora_studio.data.buckets import crop_loss
from lora_studio.data.manifest import Bucket, Record
from lora_studio.data.regularization_images import RegularizationRows, place_beside, regularization_rows

SQUARE, WIDE, TALL = Bucket(64, 64), Bucket(80, 48), Bucket(48, 80)


def image(name: str, width: int, height: int, bucket: Bucket | None = None, *, repeats: int = 1) -> Record:
    return Record(path=f"/{name}", name=name, width=width, height=height, bucket=bucket, repeats=repeats)


@pytest.mark.parametrize(
    ("per_image", "count", "rows"),
    [(1, 1, 1), (1, 4, 4), (0.5, 4, 2), (0.5, 3, 2), (0.25, 1, 1), (2, 3, 6)],
)
def test_rows_are_in_the_asked_ratio_and_at_least_one(per_image: float, count: int, rows: int) -> None:
    chosen = RegularizationRows({SQUARE: range(50)}, per_image=per_image, seed=1)
    for step in range(1, 30):
        drawn = chosen.beside(step, 0, bucket=SQUARE, count=count)
        assert len(drawn) == len(set(drawn)) == rows


def test_a_small_pool_is_gone_round_before_one_comes_twice() -> None:
    chosen = RegularizationRows({SQUARE: [7, 8, 9]}, per_image=1, seed=1)
    assert sorted(Counter(chosen.beside(1, 0, bucket=SQUARE, count=7)).values()) == [2, 2, 3]


def test_rows_are_a_function_of_seed_step_and_number_and_all_are_used_alike() -> None:
    chosen, same = (RegularizationRows({SQUARE: range(10)}, per_image=1, seed=1) for _ in range(2))
    steps = [chosen.beside(step, 0, bucket=SQUARE, count=2) for step in range(1, 1001)]
    assert [same.beside(step, 0, bucket=SQUARE, count=2) for step in range(1000, 0, -1)] == steps[::-1]
    assert chosen.beside(1, 1, bucket=SQUARE, count=2) != steps[0]
    counts = Counter(index for rows in steps for index in rows)
    # 2000 draws of 10: 200 each, and five binomial deviations of 12.6 is 63.
    assert set(counts) == set(range(10)) and all(abs(count - 200) < 63 for count in counts.values())


def test_the_draws_are_those_of_the_first_version() -> None:
    """Written down from it: the name of the random numbers is a part of every seeded run."""
    chosen = RegularizationRows({SQUARE: range(50)}, per_image=2, seed=7)
    drawn = [chosen.beside(step, number, bucket=SQUARE, count=2) for step, number in ((1, 0), (1, 1), (2, 0))]
    assert drawn == [[29, 4, 1, 9], [18, 29, 49, 47], [21, 18, 17, 13]]


def test_without_regularization_images_there_are_no_rows() -> None:
    assert RegularizationRows({}, per_image=1, seed=1).beside(1, 0, bucket=SQUARE, count=4) == []


def test_repeats_make_a_regularization_image_more_frequent() -> None:
    records = [
        image("own", 64, 64, SQUARE),
        image("a", 64, 64, SQUARE),
        image("b", 64, 64, SQUARE, repeats=3),
    ]
    chosen = regularization_rows(records, first=1, per_image=1, seed=1)
    drawn = Counter(chosen.beside(step, 0, bucket=SQUARE, count=1)[0] for step in range(1, 801))
    assert set(drawn) == {1, 2}
    assert abs(drawn[2] / 800 - 0.75) < 0.08  # five binomial deviations


def test_regularization_images_go_into_the_buckets_of_the_images_and_none_stays_without() -> None:
    images = [image("a", 64, 64, SQUARE), image("b", 80, 48, WIDE), image("c", 48, 80, TALL)] * 2
    beside = place_beside([image("x", 90, 90), image("y", 640, 400), image("z", 700, 700)], images)
    found = {(record.name, record.bucket) for record in beside}
    assert found == {("x", SQUARE), ("z", SQUARE), ("y", WIDE), ("x", WIDE), ("x", TALL), ("z", TALL)}
    for record in beside:
        assert record.resize and record.crop and record.bucket
        left, top, right, bottom = record.crop
        assert (right - left, bottom - top) == (record.bucket.width, record.bucket.height)
        assert right <= record.resize[0] and bottom <= record.resize[1] and crop_loss(record) < 0.45


def test_every_bucket_has_its_share_of_many_regularization_images() -> None:
    images = [image(f"s{n}", 64, 64, SQUARE) for n in range(6)]
    images += [image(f"t{n}", 48, 80, TALL) for n in range(3)] + [image("w", 80, 48, WIDE)]
    beside = place_beside([image(f"c{n}", 512, 512) for n in range(200)], images)
    pools = Counter(record.bucket for record in beside)
    assert pools == {SQUARE: 200, TALL: 60, WIDE: 20}
    assert all(len({one.name for one in beside if one.bucket == bucket}) == pools[bucket] for bucket in pools)


def test_of_two_areas_a_regularization_image_goes_where_it_is_not_enlarged() -> None:
    large = Bucket(128, 128)
    images = [image("a", 128, 128, large), image("b", 64, 64, SQUARE)]
    beside = place_beside([image("x", 64, 64), image("y", 128, 128), image("z", 70, 70)], images)
    assert [(one.name, one.bucket) for one in beside[:3]] == [("x", SQUARE), ("y", large), ("z", SQUARE)]
    assert [(one.name, one.bucket) for one in beside[3:]] == [("z", large)]


def test_no_regularization_images_are_placed_if_there_are_none() -> None:
    assert place_beside([], [image("a", 64, 64, SQUARE)]) == []
