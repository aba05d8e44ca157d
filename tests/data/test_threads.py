"""Several threads decode; answers and Python's warning filters are as with one."""

from __future__ import annotations

import threading
import time
import warnings
from dataclasses import replace

import numpy as np
import pytest
from data_config import data_config
from PIL import Image

from lora_studio.data.buckets import assign
from lora_studio.data.cache.encode import LatentCache, ReadyPixels, pixels_of
from lora_studio.data.images.threads import in_threads
from lora_studio.data.scan import scan


def test_answers_come_in_order_from_several_threads():
    threads = set()

    def slow(number):
        threads.add(threading.current_thread().name)
        time.sleep(0.02 if number % 2 else 0.001)
        return number * number

    assert list(in_threads(slow, range(40), threads=4)) == [number**2 for number in range(40)]
    assert 1 < len(threads) <= 4


def test_no_more_answers_wait_than_asked_for():
    made = []
    answers = in_threads(lambda number: made.append(number) or number, range(1000), ahead=5, threads=2)
    assert next(answers) == 0
    time.sleep(0.1)
    assert len(made) <= 7
    answers.close()
    assert len(made) <= 7


def test_an_exception_is_raised_in_its_place_and_ends_the_rest():
    made = []

    def work(number):
        made.append(number)
        if number == 3:
            raise ValueError(number)
        return number

    answers = in_threads(work, range(1000), ahead=4, threads=2)
    assert [next(answers) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ValueError, match="3"):
        next(answers)
    assert len(made) < 20


def test_the_filters_of_warnings_are_put_back(folder, paint):
    for number in range(12):
        paint(f"{number}.png", colour=(number, 0, 0))
    before = list(warnings.filters)
    scan(folder)
    assert warnings.filters == before


def noisy(folder, count=6):
    for number in range(count):
        size = (300 + 20 * number, 200)
        pixels = np.random.default_rng(number).integers(0, 255, (*size[::-1], 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.{('jpg', 'png')[number % 2]}")


def test_images_resized_during_the_scan_have_the_pixels_of_those_resized_later(folder, tmp_path):
    noisy(folder)
    records = {
        record.name: record for record in assign(scan(folder), data_config(resolution=64), stride=8).used
    }
    ready = ReadyPixels(lambda record: record.name)
    scan(folder, on_image=lambda record, decoded: ready.offer(records[record.name], decoded.image))
    for name, record in records.items():
        pixels = ready.take(name)
        assert pixels is not None and pixels.equal(pixels_of(record)), name
        assert ready.take(name) is None  # forgotten, so that the memory is free


def test_ready_pixels_hold_no_more_than_they_may(folder):
    noisy(folder)
    first = assign(scan(folder), data_config(resolution=64), stride=8).used[0]
    records = [replace(first, name=str(number)) for number in range(4)]  # all of one bucket
    image = Image.new("RGB", (300, 200))
    bucket = first.bucket
    ready = ReadyPixels(lambda record: record.name, max_bytes=2 * 3 * bucket.width * bucket.height)
    for record in records:
        ready.offer(record, image)
    assert sum(ready.take(record.name) is not None for record in records) == 2


def test_an_image_whose_latent_is_cached_is_not_resized(folder, tmp_path):
    noisy(folder, 2)
    first, second = assign(scan(folder), data_config(resolution=64), stride=8).used
    cache = LatentCache(tmp_path, "vae")
    cache.load_or_encode([first], lambda pixels: (pixels, pixels))
    for record in (first, second):
        cache.ready.offer(record, Image.new("RGB", (300, 200)))
    assert cache.ready.take(cache.key(first)) is None
    assert cache.ready.take(cache.key(second)) is not None
