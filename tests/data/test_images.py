from __future__ import annotations

import io
import sys

import numpy as np
import pillow_heif
import pytest
from noise import grey_noise
from PIL import Image, ImageFilter

from lora_studio.data.images.decode import FIRST_ONLY, _can_read_heic, decode, framed, load_image
from lora_studio.errors import DatasetError


def quadrants() -> Image.Image:
    """Red, green / blue, white: tells every turn and mirroring apart."""
    image = Image.new("RGB", (40, 20), "white")
    for box, colour in (((0, 0, 20, 10), "red"), ((20, 0, 40, 10), "lime"), ((0, 10, 20, 20), "blue")):
        image.paste(colour, box)
    return image


# How a viewer turns what is stored (EXIF 2.3, tag 274), spelt as Pillow's transposition that undoes it.
UNDO = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


@pytest.mark.parametrize("ending", ["png", "tiff"])  # Pillow turns TIFF itself; twice would be wrong
@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_exif_orientation_is_turned_upright(tmp_path, orientation, ending):
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = quadrants() if orientation == 1 else quadrants().transpose(UNDO[orientation])
    stored.save(tmp_path / f"a.{ending}", exif=exif)
    assert np.array_equal(np.asarray(load_image(tmp_path / f"a.{ending}")), np.asarray(quadrants()))


@pytest.mark.parametrize("exif", [b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0", b"Exif\0\0garbage"])
def test_damaged_exif_data_do_not_cost_the_image(exif):
    stored = io.BytesIO()
    quadrants().save(stored, "JPEG", exif=exif)
    assert decode(stored.getvalue()).image.size == (40, 20)


def test_transparency_becomes_white(tmp_path):
    image = Image.new("RGBA", (2, 1), (200, 0, 0, 255))
    image.putpixel((1, 0), (0, 0, 0, 0))
    image.save(tmp_path / "a.png")
    loaded = load_image(tmp_path / "a.png")
    assert [loaded.getpixel((x, 0)) for x in (0, 1)] == [(200, 0, 0), (255, 255, 255)]


def test_half_transparency_is_mixed_with_white(tmp_path):
    Image.new("RGBA", (4, 4), (0, 0, 0, 128)).save(tmp_path / "a.png")
    assert load_image(tmp_path / "a.png").getpixel((0, 0)) == (127, 127, 127)


def test_a_transparent_palette_colour_becomes_white(tmp_path):
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putpixel((1, 0), 1)
    image.save(tmp_path / "a.png", transparency=1)
    loaded = load_image(tmp_path / "a.png")
    assert [loaded.getpixel((x, 0)) for x in (0, 1)] == [(10, 20, 30), (255, 255, 255)]


def test_grey_with_alpha_becomes_white_where_it_is_clear(tmp_path):
    Image.new("LA", (2, 2), (7, 0)).save(tmp_path / "a.png")
    assert load_image(tmp_path / "a.png").getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.parametrize(("ink", "expected"), [((0, 255, 255, 0), (255, 0, 0)), ((0, 0, 0, 255), (0, 0, 0))])
def test_cmyk_becomes_rgb(tmp_path, ink, expected):
    Image.new("CMYK", (32, 32), ink).save(tmp_path / "a.jpg", quality=100)
    loaded = load_image(tmp_path / "a.jpg")
    assert np.abs(np.subtract(loaded.getpixel((9, 9)), expected)).max() <= 3  # JPEG rounds


def test_sixteen_bit_grey_is_scaled_and_not_clipped(tmp_path):
    values = np.array([[0, 257, 32896, 65535]], dtype=np.uint16)
    Image.fromarray(values).save(tmp_path / "a.png")
    loaded = np.asarray(load_image(tmp_path / "a.png"))
    assert loaded[0].tolist() == [[0] * 3, [1] * 3, [128] * 3, [255] * 3]


@pytest.mark.parametrize(("mode", "colour", "expected"), [("L", 90, 90), ("1", 1, 255), ("P", 0, 0)])
def test_grey_bitmap_and_palette_become_rgb(tmp_path, mode, colour, expected):
    image = Image.new(mode, (4, 4), colour)
    if mode == "P":
        image.putpalette([0, 0, 0])
    image.save(tmp_path / "a.png")
    loaded = load_image(tmp_path / "a.png")
    assert loaded.mode == "RGB" and loaded.getpixel((1, 1)) == (expected,) * 3


def test_of_a_moving_image_the_first_frame_is_taken(tmp_path):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "a.webp", save_all=True, append_images=frames[1:], lossless=True)
    assert load_image(tmp_path / "a.webp").getpixel((0, 0)) == (255, 0, 0)


@pytest.mark.parametrize("ending", ["gif", "webp", "png", "tiff", "avif"])
def test_of_several_images_in_a_file_the_first_is_taken_with_a_note(ending):
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "blue")]
    several, one = io.BytesIO(), io.BytesIO()
    frames[0].save(several, ending, save_all=True, append_images=frames[1:])
    frames[0].save(one, ending)
    first, single = decode(several.getvalue()), decode(one.getvalue())
    assert np.abs(np.subtract(first.image.getpixel((8, 8)), (255, 0, 0))).max() <= 6  # AVIF and WebP round
    assert (first.note, single.note) == (FIRST_ONLY, "")


@pytest.mark.parametrize("ending", ["jpeg", "png", "webp", "bmp", "tiff", "gif", "avif"])
def test_every_format_that_is_promised_is_read(ending):
    stored = io.BytesIO()
    quadrants().save(stored, ending)
    image = decode(stored.getvalue())
    corners = [image.image.getpixel(place) for place in ((4, 4), (36, 4), (4, 16), (36, 16))]
    expected = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)]
    assert np.abs(np.subtract(corners, expected)).max() <= 12  # lossy ones blur a little even here
    assert image.opacity is None and image.note == ""


def test_a_format_that_is_not_promised_is_refused():
    for ending in ("ppm", "ico", "tga", "jpeg2000"):
        stored = io.BytesIO()
        quadrants().save(stored, ending)
        with pytest.raises(DatasetError, match="not a JPEG, PNG"):
            decode(stored.getvalue())


def heic(image: Image.Image, **options) -> bytes:
    stored = io.BytesIO()
    pillow_heif.from_pillow(image).save(stored, **{"quality": -1, "chroma": 444, **options})
    return stored.getvalue()


def test_heic_whose_reader_does_not_work_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)  # as if it were not installed
    _can_read_heic.cache_clear()
    (tmp_path / "a.heic").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")
    with pytest.raises(
        DatasetError, match=r"\(a HEIC image, whose .*; install that again \(pip install pillow"
    ):
        load_image(tmp_path / "a.heic")
    _can_read_heic.cache_clear()


def test_heic_is_read_in_its_colours():
    image, tolerance = decode(heic(quadrants())).image, 3
    assert image.size == (40, 20)
    assert np.abs(np.subtract(np.asarray(image, int), np.asarray(quadrants(), int))).max() <= tolerance


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_a_telephones_heic_is_turned_once(orientation):
    """It says the turn twice, in its own way and in EXIF data."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = quadrants() if orientation == 1 else quadrants().transpose(UNDO[orientation])
    data = heic(stored, exif=exif.tobytes())
    assert (b"irot" in data) == (orientation != 1)
    image = decode(data).image
    assert image.size == (40, 20)
    assert np.abs(np.subtract(np.asarray(image, int), np.asarray(quadrants(), int))).max() <= 3


def test_clear_parts_of_a_heic_get_the_background():
    image = quadrants()
    image.putalpha(Image.new("L", image.size, 0))
    decoded = decode(heic(image), background="black")
    assert decoded.opacity is not None and decoded.image.getpixel((4, 4)) == (0, 0, 0)


def test_the_ending_of_the_name_does_not_matter(tmp_path):
    quadrants().save(tmp_path / "a.png")
    (tmp_path / "a.png").rename(tmp_path / "a.jpg")
    assert load_image(tmp_path / "a.jpg").size == (40, 20)


def test_an_unusable_file_is_named_in_one_sentence_with_advice(tmp_path):
    (tmp_path / "a.jpg").write_text("<html>")
    with pytest.raises(DatasetError, match=r"a\.jpg cannot be used \(not a JPEG.*\); save it again"):
        load_image(tmp_path / "a.jpg")


def test_damaged_bytes_never_escape_as_another_error(tmp_path):
    buffer = io.BytesIO()
    grey_noise((24, 24), 60).convert("RGB").save(buffer, "PNG")
    whole = buffer.getvalue()
    for position in range(0, len(whole), 7):
        (tmp_path / "a.png").write_bytes(
            whole[:position] + bytes([whole[position] ^ 0xFF]) + whole[position + 1 :]
        )
        try:
            assert load_image(tmp_path / "a.png").mode == "RGB"
        except DatasetError as error:
            assert "a.png" in str(error)


def like_a_photograph(width: int, height: int) -> Image.Image:
    """Soft colours with a little grain."""
    grain = grey_noise((width, height), 30).convert("RGB")
    soft = grey_noise((width // 20, height // 20), 90).resize((width, height), Image.Resampling.BICUBIC)
    blurred = soft.filter(ImageFilter.GaussianBlur(3)).convert("RGB")
    return Image.blend(blurred, grain, 0.2)


def decibels(one: Image.Image, other: Image.Image) -> float:
    """Peak signal to noise: 48 is a level of 255 off on average."""
    error = np.asarray(one, dtype=np.float64) - np.asarray(other, dtype=np.float64)
    return float(10 * np.log10(255**2 / max((error**2).mean(), 1e-9)))


@pytest.mark.parametrize(("width", "height"), [(1500, 1000), (700, 933), (401, 300), (260, 200), (100, 75)])
def test_the_part_is_what_resizing_the_whole_and_cropping_gives(width, height):
    image = like_a_photograph(width, height)
    resize = (128, round(128 * height / width))
    crop = (16, 8, 112, 72)
    whole = image.resize(resize, Image.Resampling.LANCZOS).crop(crop)
    part = framed(image, resize, crop)
    assert part.size == whole.size
    # Far larger images are shrunken by a whole number first; that costs less than BICUBIC would.
    bicubic = image.resize(resize, Image.Resampling.BICUBIC).crop(crop)
    assert decibels(part, whole) > max(48, decibels(bicubic, whole))
    mirrored_whole = whole.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    mirrored = framed(image, resize, (128 - 112, 8, 128 - 16, 72), flip=True)
    assert decibels(mirrored, mirrored_whole) > 48


@pytest.mark.parametrize("factor", [1, 2, 3, 4])
def test_up_to_four_times_smaller_it_is_lanczos_to_the_bit(factor):
    image = like_a_photograph(80 * factor, 48 * factor)
    expected = image.resize((80, 48), Image.Resampling.LANCZOS)
    assert framed(image, (80, 48), (0, 0, 80, 48)).tobytes() == expected.tobytes()
