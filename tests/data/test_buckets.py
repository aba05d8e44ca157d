"""What becomes of an image: its bucket at each area, its crops, mirrored or not, and its own settings."""

from __future__ import annotations

from dataclasses import replace

import pytest
from data_config import data_config
from PIL import Image
from tiny import python_random

from lora_studio.data.batches import views_of
from lora_studio.data.buckets import assign, crop_loss, enlargement
from lora_studio.data.manifest import Bucket, Manifest, Overrides, Record
from lora_studio.data.scan import ScanOptions, scan
from lora_studio.errors import DatasetError


def image(width, height, *, name="a.png", overrides=Overrides(), **fields):  # noqa: B008 (frozen)
    return Record(
        path=f"/{name}", name=name, sha256=name, width=width, height=height, overrides=overrides, **fields
    )


def place(*records, resolution=64, stride=8, **framing):
    placed = assign(Manifest(records), data_config(resolution=resolution, **framing), stride=stride)
    return placed.records


def test_assign_fills_in_used_records_only(folder, paint):
    paint("a.png", 90, 70)
    paint("b.png", 50, 100)
    (folder / "c.jpg").write_text("x")
    manifest = assign(scan(folder), data_config(resolution=64), stride=8)
    a, b, c = manifest.records
    assert a.bucket == Bucket(72, 56) and a.resize == (72, 56) and a.crop == (0, 0, 72, 56)
    assert b.bucket == Bucket(48, 88) and b.resize == (48, 96) and b.crop == (0, 4, 48, 92)
    assert c.bucket is None and crop_loss(c) == 0 and enlargement(c) == 1
    assert crop_loss(a) == 0 and crop_loss(b) == pytest.approx(8 / 96)
    assert '"bucket": "72x56"' in manifest.to_jsonl()


@pytest.mark.parametrize(("resolution", "advice"), [(100, "64 or 128"), (32, "64"), (700, "640 or 704")])
def test_a_resolution_that_does_not_suit_the_base_is_refused_with_the_nearest(
    folder, paint, resolution, advice
):
    paint("a.png")
    with pytest.raises(DatasetError, match=f"data.resolution is {resolution}; .* set it to {advice}\\."):
        assign(scan(folder), data_config(resolution=resolution), stride=64)


def test_a_further_resolution_that_does_not_suit_the_base_is_named():
    with pytest.raises(DatasetError, match=r"data.extra_resolutions has 60; .* set it to 56 or 64\."):
        place(image(100, 100), extra_resolutions=(128, 60))


def test_a_phone_photo_that_EXIF_turns_gets_a_portrait_bucket(folder):
    """Pain point 13: orientation ignored gave the wrong bucket and crops of the wrong parts."""
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        colour = (10 * orientation, 0, 0)
        Image.new("RGB", (120, 80), colour).save(folder / f"{orientation}.jpg", exif=exif)
    buckets = [
        record.bucket.name for record in assign(scan(folder), data_config(resolution=64), stride=8).used
    ]
    assert buckets == ["72x48"] * 4 + ["48x72"] * 4


# Small images


def test_an_image_is_enlarged_up_to_the_limit_and_then_goes_to_a_smaller_bucket():
    (enough, little, tiny) = place(
        image(300, 300, name="a"), image(400, 400, name="b"), image(100, 150, name="c"),
        resolution=512, stride=64, max_upscale=1.5,
    )  # fmt: skip
    assert (enough.bucket, enough.resolution) == (Bucket(448, 448), 448)
    assert (little.bucket, little.resolution, enlargement(little)) == (Bucket(512, 512), 512, 1.28)
    assert tiny.bucket == Bucket(128, 192) and enlargement(tiny) == 1.28
    assert all(enlargement(record) <= 1.5 for record in (enough, little, tiny))


def test_without_enlarging_an_image_keeps_its_pixels():
    (record,) = place(image(100, 100), resolution=512, stride=8, max_upscale=1)
    assert record.bucket == Bucket(96, 96) and record.excluded == ""


def test_an_image_too_small_for_the_smallest_bucket_is_left_out_with_the_reason():
    small, large = place(image(40, 40, name="a"), image(99, 99, name="b"), resolution=512, stride=64)
    assert small.excluded == "too small for any bucket: the smallest is 64x64, data.max_upscale is 1.5"
    assert small.bucket is None and large.bucket == Bucket(128, 128)


def test_if_no_image_is_left_that_is_one_sentence():
    with pytest.raises(DatasetError, match=r"no image is left: a\.png \(too small .*raise data.max_upscale"):
        place(image(40, 40), resolution=512, stride=64)


# Several areas


def test_an_image_is_shown_at_every_area_that_it_is_large_enough_for():
    large, middle, small = place(
        *(image(side, side, name=str(side)) for side in (300, 100, 50)), extra_resolutions=(128, 256, 64)
    )
    assert [view.resolution for view in views_of(large)] == [64, 128, 256]
    assert [view.bucket.width for view in views_of(middle)] == [64, 128, 144]  # as large as it can, not 256
    assert [view.bucket.width for view in views_of(small)] == [64, 72]
    assert all(view.resize == (view.bucket.width,) * 2 for view in views_of(large))


def test_what_is_not_trained_on_is_shown_in_one_way():
    options = {"extra_resolutions": (128,), "flip": 0.5, "crop": "random"}
    for role in ("validation", "prior"):
        trained, other = place(image(300, 100, name="a"), image(300, 100, name="b", role=role), **options)
        assert len(views_of(trained)) > 4 and len(views_of(other)) == 1
        assert other.flip_share == 0 and other.crop == place(image(300, 100))[0].crop


# Mirroring


def test_a_mirrored_view_is_cropped_from_the_same_part_of_the_image():
    (record,) = place(image(200, 100, overrides=Overrides(focus=(0.0, 0.5))), flip=0.5)
    plain, mirrored = views_of(record)
    assert plain.crop[0] == 0 and not plain.flip and mirrored.flip
    assert mirrored.crop[2] == record.resize[0]  # counted in the mirrored image: its right end
    assert mirrored.crop[1::2] == plain.crop[1::2] and mirrored.bucket == plain.bucket


@pytest.mark.parametrize(("share", "flips"), [(0.0, [False]), (0.3, [False, True]), (1.0, [True])])
def test_only_views_that_can_be_shown_are_made(share, flips):
    (record,) = place(image(64, 64), flip=share)
    assert [view.flip for view in views_of(record)] == flips and record.flip_share == share


# Settings of single images


def test_an_images_own_settings_go_before_those_of_all():
    own = Overrides(bucket=(96, 40), flip=0.0, crop="centre", focus=(0.1, 0.1))
    mine, other = place(
        image(200, 100, overrides=own), image(200, 100, name="b.png"), flip=0.5, crop="random"
    )
    assert mine.bucket == Bucket(96, 40) and len(views_of(mine)) == 1
    assert mine.resize == (96, 48) and mine.crop == (0, 4, 96, 44)
    assert other.bucket == Bucket(88, 48) and len(views_of(other)) > 2


def test_a_point_of_its_own_is_enough_to_crop_around_it():
    (record,) = place(image(400, 100, overrides=Overrides(focus=(0.9, 0.5))))
    assert record.crop[2] == record.resize[0]


def test_a_region_is_all_that_is_shown_and_decides_the_bucket(folder):
    """A red square in a blue strip: with its box as `crop` the image is red all over, and square."""
    strip = Image.new("RGB", (600, 200), "blue")
    strip.paste("red", (300, 50, 400, 150))
    strip.save(folder / "a.png")
    line = '{"file_name": "a.png", "text": "", "crop": [300, 50, 400, 150]}'
    (folder / "metadata.jsonl").write_text(line)
    (record,) = assign(scan(folder), data_config(resolution=64), stride=8).used
    assert record.bucket == Bucket(64, 64) and record.resize == (384, 128)
    assert record.crop == (192, 32, 256, 96)
    from lora_studio.data.cache.encode import pixels_of

    inner = pixels_of(record)[:, 3:-3, 3:-3]  # LANCZOS looks three pixels beyond the edge
    assert (inner[0] > 0.95).all() and (inner[1:] < -0.95).all()


def test_settings_that_an_image_cannot_have_are_all_named_in_one_sentence():
    with pytest.raises(DatasetError) as caught:
        place(
            image(100, 100, overrides=Overrides(bucket=(60, 64))),
            image(100, 100, name="b.png", overrides=Overrides(region=(0, 0, 101, 50))),
        )
    message = str(caught.value)
    assert "a.png (bucket 60x64: both must be multiples of 8)" in message
    assert "b.png (crop [0, 0, 101, 50]: the image is 100x100)" in message and "\n" not in message


def test_the_manifest_holds_every_view_and_setting(folder, paint):
    paint("a.png", 200, 100)
    (folder / "metadata.jsonl").write_text('{"file_name": "a.png", "text": "", "focus": [0.5, 0.5]}')
    framing = data_config(resolution=64, flip=0.5, extra_resolutions=(32,))
    text = assign(scan(folder), framing, stride=8).to_jsonl()
    import json

    (line,) = map(json.loads, text.splitlines())
    assert line["overrides"] == {"focus": [0.5, 0.5]} and line["flip_share"] == 0.5
    assert (line["resolution"], line["bucket"], line["flip"]) == (64, "88x48", False)
    assert [(view["resolution"], view["flip"]) for view in line["more_views"]] == [
        (64, True), (32, False), (32, True),
    ]  # fmt: skip
    assert str(folder) not in text


# For all images and settings


@pytest.mark.parametrize("seed", range(40))
def test_every_view_of_every_image_fits_its_bucket(seed):
    """Properties that hold whatever is asked for, over images and settings drawn by chance."""
    random = python_random()
    random.seed(seed)
    resolution, stride = random.choice([(64, 8), (512, 64), (768, 64), (1024, 64), (512, 8)])
    framing = data_config(
        resolution=resolution,
        extra_resolutions=tuple(random.sample([resolution // 2, resolution * 2], random.randint(0, 2))),
        area_tolerance=random.choice([0.0, 0.16, 0.4]),
        max_upscale=random.choice([1.0, 1.5, 3.0]),
        crop=random.choice(["centre", "random", "focus"]),
        crops=random.randint(1, 6),
        flip=random.choice([0.0, 0.3, 1.0]),
    )
    records = [
        image(random.randint(16, 4000), random.randint(16, 4000), name=str(number)) for number in range(20)
    ] + [image(resolution, resolution, name="one that fits")]
    asked = (resolution, *framing.extra_resolutions)
    turned = [replace(one, width=one.height, height=one.width) for one in records]
    for upright, lying in zip(
        assign(Manifest(tuple(records)), framing, stride=stride).records,
        assign(Manifest(tuple(turned)), framing, stride=stride).records,
        strict=True,
    ):
        assert upright.excluded == lying.excluded
        if upright.excluded:
            smallest = stride / min(upright.width, upright.height)
            assert smallest > framing.max_upscale
            continue
        views = views_of(upright)
        assert len({(view.bucket, view.crop, view.flip) for view in views}) == len(views)  # all different
        for view in views:
            check_view(upright, view, stride, framing, asked)
        mirrored_sides = {(view.resolution, view.bucket.height, view.bucket.width) for view in views}
        if upright.width != upright.height:
            assert mirrored_sides == {
                (view.resolution, view.bucket.width, view.bucket.height) for view in views_of(lying)
            }


def check_view(record, view, stride, framing, asked):
    width, height = view.bucket.width, view.bucket.height
    left, top, right, bottom = view.crop
    assert width % stride == height % stride == 0 and view.resolution <= max(asked)
    share = width * height / view.resolution**2
    least = 1 - framing.area_tolerance if view.resolution in asked else 0.9  # a rounded square root
    assert least <= share <= 1.05 and max(width, height) <= 3 * min(width, height)
    assert (right - left, bottom - top) == (width, height)
    assert left >= 0 and top >= 0 and right <= view.resize[0] and bottom <= view.resize[1]
    assert view.resize[0] == width or view.resize[1] == height  # no larger than it must be
    scale = max(width / record.width, height / record.height)
    assert scale <= framing.max_upscale
    assert abs(view.resize[0] - record.width * scale) <= 0.5 + 1e-6
    assert abs(view.resize[1] - record.height * scale) <= 0.5 + 1e-6


# Crops, on real files


def masked(folder, box, size=(400, 100)):
    Image.new("RGB", size, "green").save(folder / "a.png")
    mask = Image.new("L", size, 0)
    mask.paste(255, box)
    mask.save(folder / "a.mask.png")
    return scan(folder)


@pytest.mark.parametrize(("box", "left"), [((300, 0, 400, 100), 16), ((0, 0, 50, 100), 0)])
def test_focus_crops_around_the_middle_of_the_mask(folder, box, left):
    manifest = masked(folder, box)
    centred, focused = (
        assign(manifest, data_config(resolution=64, crop=crop), stride=8).used[0]
        for crop in ("centre", "focus")
    )
    assert focused.bucket == centred.bucket == Bucket(104, 40) and centred.resize == (160, 40)
    assert centred.crop[0] == 28
    # The mask's middle is at 350 of 400, or 25: the crop goes as far towards it as it can.
    assert focused.crop[0] == (56 if left else 0)


def test_focus_uses_transparency_that_is_the_mask(folder):
    clear = Image.new("RGBA", (400, 100), (0, 0, 0, 0))
    clear.paste((200, 0, 0, 255), (180, 0, 220, 100))
    clear.putpixel((0, 0), (200, 0, 0, 255))
    clear.save(folder / "a.png")
    manifest = scan(folder, ScanOptions(transparency_is_mask=True))
    (record,) = assign(manifest, data_config(resolution=64, crop="focus"), stride=8).used
    assert record.crop[0] in (27, 28)  # the middle of 160 less 104, but for the one pixel


def test_random_crops_keep_the_white_part_of_the_mask(folder):
    manifest = masked(folder, (250, 0, 300, 100))
    framing = data_config(resolution=64, crop="random", crops=50)
    (record,) = assign(manifest, framing, stride=8).used
    lefts = [view.crop[0] for view in views_of(record)]
    assert len(set(lefts)) == len(lefts) == 41  # all places with 100..120 of 160 within 104 pixels
    assert min(lefts) == 16 and max(lefts) == 56
