"""Measurements against what was done to the image."""

from __future__ import annotations

import math
from io import BytesIO

import numpy as np
import pytest
from photographs import photograph
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from lora_studio.data.doctor.likeness import likeness, similar_pairs
from lora_studio.data.doctor.measure import (
    Border,
    blockiness,
    edge_width,
    find_border,
    jpeg_quality,
    pixel_block,
    resampling_trace,
)
from lora_studio.data.images.decode import decode


def luma(image: Image.Image) -> np.ndarray:
    return np.asarray(image.convert("L"), np.float32)


def jpeg(image: Image.Image, quality: int) -> bytes:
    written = BytesIO()
    image.save(written, "JPEG", quality=quality)
    return written.getvalue()


@pytest.mark.parametrize("contrast", [60, 120, 250])
@pytest.mark.parametrize("sigma", [1.5, 2.0, 3.0])
def test_edge_width_is_that_of_a_blurred_edge_whatever_its_contrast(sigma: float, contrast: int) -> None:
    # An edge is the integral of a Gaussian g: sum g^2 / sum g'^2 = 2 sigma^2, so the root is sigma * sqrt(2).
    x = np.arange(-40, 40)
    profile = [contrast * (1 + math.erf((place + 0.5) / (sigma * math.sqrt(2)))) / 2 for place in x]
    image = np.tile(np.array(profile, np.float32), (80, 1))
    measured = [edge_width(np.roll(image, shift, axis=1)[:, 16:64]) for shift in (0, 8)]
    assert min(measured) == pytest.approx(sigma * math.sqrt(2), rel=0.35)


def test_edge_width_grows_with_blur_and_is_infinite_without_edges() -> None:
    image = photograph(1)
    widths = [edge_width(luma(image.filter(ImageFilter.GaussianBlur(s)))) for s in (0, 0.7, 1.5, 3)]
    assert widths == sorted(widths) and widths[0] < 0.6 and widths[-1] > 1
    assert edge_width(np.full((50, 50), 7, np.float32)) == math.inf
    assert edge_width(np.zeros((2, 50), np.float32)) == math.inf


@pytest.mark.parametrize("factor", [1.5, 2, 2.5, 3, 4])
@pytest.mark.parametrize("filter_", [Image.Resampling.BILINEAR, Image.Resampling.BICUBIC])
def test_enlarging_leaves_a_trace(factor: float, filter_: Image.Resampling) -> None:
    side = round(360 / factor)
    enlarged = photograph(2, side, side).resize((360, 360), filter_)
    assert resampling_trace(luma(enlarged)) > 5.5


@pytest.mark.parametrize(
    "change",
    [
        lambda image: image,
        lambda image: image.filter(ImageFilter.GaussianBlur(2)),
        lambda image: image.filter(ImageFilter.BoxBlur(2)),
        lambda image: Image.open(BytesIO(jpeg(image, 75))),
        lambda image: Image.open(BytesIO(jpeg(image, 20))),
        lambda image: image.resize((200, 200), Image.Resampling.LANCZOS),
    ],
    ids=["nothing", "blur", "box blur", "jpeg 75", "jpeg 20", "made smaller"],
)
def test_nothing_else_leaves_such_a_trace(change) -> None:
    assert max(resampling_trace(luma(change(photograph(seed, 360, 360)))) for seed in (3, 4, 5)) < 5.5


def test_pixel_blocks_are_found_only_where_all_of_the_image_consists_of_them() -> None:
    small = photograph(6, 60, 60)
    for factor in (2, 3, 4, 8):
        enlarged = small.resize((60 * factor, 60 * factor), Image.Resampling.NEAREST)
        assert pixel_block(luma(enlarged)) == factor
    assert pixel_block(luma(small)) == 1
    assert pixel_block(np.zeros((64, 64), np.float32)) == 1
    assert pixel_block(luma(small.resize((240, 60), Image.Resampling.NEAREST))) == 1


@pytest.mark.parametrize("quality", [20, 35, 50, 75, 92])
def test_jpeg_quality_is_the_one_it_was_saved_with(quality: int) -> None:
    table = decode(jpeg(photograph(7, 64, 64), quality)).luma_table
    assert jpeg_quality(table) == pytest.approx(quality, abs=3)


def test_what_is_no_jpeg_has_no_jpeg_quality() -> None:
    written = BytesIO()
    photograph(7, 64, 64).save(written, "PNG")
    assert jpeg_quality(decode(written.getvalue()).luma_table) is None


def test_blocks_are_seen_wherever_their_grid_lies_and_not_without() -> None:
    image = photograph(8)
    poor = Image.open(BytesIO(jpeg(image, 8)))
    assert blockiness(luma(poor)) > 1.45
    assert blockiness(luma(poor.crop((3, 5, 320, 320)))) > 1.45
    assert blockiness(luma(image)) < 1.1
    assert blockiness(np.zeros((8, 5), np.float32)) == 1.0


@pytest.mark.parametrize("box", [(0, 30), (40, 0), (20, 20)], ids=["bars", "pillars", "frame"])
@pytest.mark.parametrize("colour", ["black", "white", (30, 90, 40)])
def test_borders_are_measured(box: tuple[int, int], colour) -> None:
    framed = ImageOps.expand(photograph(9), (box[0], box[1]), colour)
    assert find_border(luma(framed).astype(np.uint8)) == Border(box[0], box[1], box[0], box[1])
    compressed = Image.open(BytesIO(jpeg(framed, 60)))
    found = find_border(luma(compressed).astype(np.uint8))
    within_a_block = [pytest.approx(side, abs=7) for side in box]
    assert [found.left, found.top] == within_a_block and [found.right, found.bottom] == within_a_block


def test_a_plain_background_is_no_border() -> None:
    from PIL import ImageDraw

    product = Image.new("L", (300, 300), 250)
    ImageDraw.Draw(product).ellipse((60, 60, 240, 240), fill=80)
    assert not find_border(np.asarray(product))
    assert not find_border(np.full((100, 100), 9, np.uint8))
    assert not find_border(luma(photograph(10)).astype(np.uint8))
    sky = np.zeros((200, 200), np.uint8)  # one side only: a sky above a ground
    sky[120:] = np.random.default_rng(1).integers(100, 255, (80, 200))
    assert not find_border(sky)


def test_bars_whose_edges_bend_are_no_border() -> None:
    y, x = np.mgrid[0:192, 0:320]
    waves = 10 + 5 * np.sin(x / 20)  # as between paper and the first line of a print: within a few rows
    print_ = np.where((y > waves) & (y < 191 - waves), 40, 220).astype(np.uint8)
    assert not find_border(print_)
    assert find_border(np.where((y > 10) & (y < 181), 40, 220).astype(np.uint8)) == Border(0, 11, 0, 11)


@pytest.mark.parametrize(
    "change",
    [
        lambda image: image.resize((150, 150)),
        lambda image: Image.open(BytesIO(jpeg(image, 30))).convert("RGB"),
        lambda image: ImageEnhance.Brightness(image).enhance(1.1),
        lambda image: image.crop((3, 3, 317, 317)),
        ImageOps.mirror,
    ],
    ids=["scaled", "compressed", "brighter", "cropped", "mirrored"],
)
def test_what_looks_the_same_is_found_among_others(change) -> None:
    images = [photograph(seed) for seed in range(20, 30)]
    looks = [likeness(image) for image in [*images, change(images[4])]]
    (pair,) = similar_pairs(looks)
    assert (pair.first, pair.second) == (4, 10) and pair.mirrored == (change is ImageOps.mirror)


def test_the_same_scene_in_other_colours_is_another_image() -> None:
    image = photograph(31)
    red, green, blue = image.split()
    other = Image.merge("RGB", (blue, red, ImageOps.invert(green)))
    assert not list(similar_pairs([likeness(image), likeness(other)]))


@pytest.mark.parametrize("side", [3, 4, 5, 6, 8, 10, 12, 16, 24, 32])
@pytest.mark.parametrize("filled", [1.0, 0.3, 0.05])
def test_pixel_art_is_not_taken_for_jpeg(side: int, filled: float) -> None:
    """Squares of one colour, a few or many, on any grid."""
    draw = np.random.default_rng(side)
    cells = draw.integers(0, 256, (36, 36)).astype(np.float32)
    cells[draw.random((36, 36)) > filled] = 200
    art = np.kron(cells, np.ones((side, side), np.float32))
    for shifted in (art, np.roll(art, 3, axis=1)[2:, :-5]):
        assert blockiness(shifted) == 1.0


def test_pixel_art_beside_other_things_and_grids_of_lines_are_no_jpeg_either() -> None:
    draw = np.random.default_rng(0)
    art = np.kron(draw.integers(0, 256, (36, 36)), np.ones((8, 8))).astype(np.float32)
    art[:144, :144] = draw.integers(0, 256, (144, 144))
    paper = draw.normal(200, 3, (288, 288)).astype(np.float32)
    paper[::8] = paper[:, ::8] = 100
    assert blockiness(art) == blockiness(paper) == 1.0
