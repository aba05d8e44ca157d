"""Where in a resized image the crop lies."""

from __future__ import annotations

import pytest
from tiny import python_random

from lora_studio.data.buckets import Cover, crop_boxes
from lora_studio.data.manifest import Bucket, Overrides, Record
from lora_studio.data.masks import Subject

WIDE = Cover(Bucket(64, 64), (200, 64), (0, 0, 200, 64))


def lefts(cover=WIDE, *, mode, count=4, subject=None, focus=None, sha256="a"):
    record = Record(path="/a", name="a", sha256=sha256, overrides=Overrides(focus=focus))
    boxes = crop_boxes(record, cover, mode=mode, count=count, subject=subject)
    for left, top, right, bottom in boxes:
        assert (right - left, bottom - top) == (cover.bucket.width, cover.bucket.height)
        assert cover.frame[0] <= left and right <= cover.frame[2]
        assert cover.frame[1] <= top and bottom <= cover.frame[3]
    return [box[0] for box in boxes]


def at(start, end):
    """A subject from `start` to `end` of the width, as heavy on both sides."""
    return Subject(((start + end) / 2, 0.5), (start, 0.0, end, 1.0))


def test_centre_is_the_middle_whatever_the_mask_says():
    assert lefts(mode="centre", subject=at(0.8, 1.0)) == [68]
    assert lefts(Cover(Bucket(64, 64), (200, 64), (100, 0, 190, 64)), mode="centre") == [113]


@pytest.mark.parametrize(("focus", "left"), [((0.5, 0.5), 68), ((0.25, 0.5), 18), ((0, 0), 0), ((1, 1), 136)])
def test_focus_is_around_the_point_as_far_as_the_image_goes(focus, left):
    assert lefts(mode="focus", focus=focus) == [left]


def test_the_images_own_point_goes_before_its_mask_and_without_either_it_is_the_middle():
    assert lefts(mode="focus", subject=at(0.4, 0.6)) == [68]
    assert lefts(mode="focus", subject=at(0.0, 0.2)) == [0]
    assert lefts(mode="focus", subject=at(0.0, 0.2), focus=(0.9, 0.5)) == [136]
    assert lefts(mode="focus") == [68]


def test_random_gives_different_places_from_the_whole_image_and_no_more_than_there_are():
    assert len(lefts(mode="random", count=4)) == 4
    assert sorted(lefts(mode="random", count=1000)) == list(range(137))
    assert lefts(Cover(Bucket(64, 64), (64, 64), (0, 0, 64, 64)), mode="random") == [0]
    assert lefts(mode="random") == lefts(mode="random") != lefts(mode="random", sha256="b")


def test_random_crops_hold_the_subject_or_lie_within_it():
    assert sorted(lefts(mode="random", count=99, subject=at(0.5, 0.6))) == list(range(56, 101))
    assert sorted(lefts(mode="random", count=99, subject=at(0.25, 0.75))) == list(range(50, 87))
    assert lefts(mode="random", count=99, subject=at(0.99, 1.0)) == [136]  # the edge is in one crop only


@pytest.mark.parametrize("seed", range(50))
def test_every_mode_stays_within_the_frame(seed):
    random = python_random()
    random.seed(seed)
    bucket = Bucket(8 * random.randint(1, 9), 8 * random.randint(1, 9))
    left, top = random.randint(0, 50), random.randint(0, 50)
    right, bottom = left + bucket.width + random.randint(0, 40), top + bucket.height + random.randint(0, 40)
    resize = (right + random.randint(0, 30), bottom + random.randint(0, 30))
    cover = Cover(bucket, resize, (left, top, right, bottom))
    start = random.random()
    subject = random.choice([None, at(start, start + random.random() * (1 - start))])
    focus = random.choice([None, (random.random(), random.random())])
    for mode in ("centre", "focus", "random"):
        assert lefts(cover, mode=mode, subject=subject, focus=focus)  # checks every box
