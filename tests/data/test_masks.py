"""Masks beside images, in a folder, and from transparency."""

from __future__ import annotations

import numpy as np
import pytest
from data_config import data_config
from PIL import Image

from lora_studio.data.batches import each_view
from lora_studio.data.buckets import assign
from lora_studio.data.masks import OWN, loss_mask, subject
from lora_studio.data.scan import NO_IMAGE, ScanOptions, scan
from lora_studio.errors import DatasetError


def put_mask(path, box=(0, 0, 20, 30), size=(40, 30), level=255):
    """White (or grey) in the box, black elsewhere."""
    path.parent.mkdir(parents=True, exist_ok=True)
    mask = Image.new("L", size, 0)
    mask.paste(level, box)
    mask.save(path)


def masks_of(manifest):
    return {record.name: record.mask for record in manifest.used}


def test_a_mask_beside_its_image_is_found_and_is_no_image_itself(folder, paint):
    paint("ü cat.jpg", colour="red")
    paint("dog.png", colour="blue")
    put_mask(folder / "ü cat.mask.png")
    manifest = scan(folder)
    assert masks_of(manifest) == {"dog.png": "", "ü cat.jpg": "ü cat.mask.png"}
    assert len(manifest.records) == 2
    record = manifest.used[1]
    assert record.mask_path == str(folder / "ü cat.mask.png") and len(record.mask_sha256) == 64
    assert str(folder) not in manifest.to_jsonl() and '"mask": "ü cat.mask.png"' in manifest.to_jsonl()


def test_masks_in_a_folder_of_their_own_follow_the_subfolders(folder, paint):
    (folder / "x").mkdir()
    paint("x/a.jpg", colour="red")
    paint("a.jpg", colour="blue")
    paint("b.jpg", colour="green")
    put_mask(folder / "masks" / "x" / "a.png")
    put_mask(folder / "masks" / "b.mask.png")
    put_mask(folder / "masks" / "lost.png")
    manifest = scan(folder, ScanOptions(recursive=True, masks=folder / "masks"))
    assert masks_of(manifest) == {"a.jpg": "", "b.jpg": "masks/b.mask.png", "x/a.jpg": "masks/x/a.png"}
    assert {record.name: record.excluded for record in manifest.excluded} == {
        "masks": "the folder of masks",
        "masks/lost.png": NO_IMAGE,
    }


def test_a_mask_without_an_image_is_said(folder, paint, reason):
    paint("a.png")
    put_mask(folder / "b.mask.png")
    assert reason(scan(folder), "b.mask.png") == NO_IMAGE


def clear_left(path):
    """Clear in the left half."""
    image = Image.new("RGBA", (64, 64), (200, 0, 0, 255))
    image.paste((0, 0, 0, 0), (0, 0, 32, 64))
    image.save(path)


def test_transparency_becomes_a_mask_only_if_asked_and_not_against_a_mask_file(folder, paint):
    clear_left(folder / "clear.png")
    paint("solid.png", 64, 64, "blue")
    clear = folder / "both.png"
    clear_left(clear)
    Image.open(clear).rotate(180).save(clear)
    put_mask(folder / "both.mask.png", size=(64, 64))
    assert masks_of(scan(folder)) == {"both.png": "both.mask.png", "clear.png": "", "solid.png": ""}
    asked = scan(folder, ScanOptions(transparency_is_mask=True))
    assert masks_of(asked) == {"both.png": "both.mask.png", "clear.png": OWN, "solid.png": ""}


def mask_weights(record, width, height):
    found = loss_mask(record, width, height)
    return None if found is None else found.inside.numpy()


def weights(folder, name, side=8, *, reading=ScanOptions()):  # noqa: B008 (frozen)
    used = {
        record.name: record
        for record in assign(scan(folder, reading), data_config(resolution=64), stride=8).used
    }
    return mask_weights(used[name], side, side)


def test_weights_are_one_on_average_and_nothing_where_the_mask_is_black(folder, paint):
    paint("a.png", 64, 64)
    put_mask(folder / "a.mask.png", (0, 0, 16, 64), (64, 64))
    expected = np.zeros((8, 8))
    expected[:, :2] = 4  # a quarter of the image counts four times
    assert np.allclose(weights(folder, "a.png"), expected)


def test_grey_counts_half_and_a_smaller_mask_of_the_same_shape_is_enlarged(folder, paint):
    paint("a.png", 64, 64)
    small = Image.new("L", (16, 16), 0)
    small.paste(255, (0, 0, 8, 16))
    small.paste(128, (8, 0, 16, 16))
    small.save(folder / "a.mask.png")
    found = weights(folder, "a.png")
    assert found[0, 7] / found[0, 0] == pytest.approx(128 / 255)
    assert found.mean() == pytest.approx(1)


def test_transparency_gives_the_weights_of_the_image_itself(folder):
    clear_left(folder / "a.png")
    found = weights(folder, "a.png", reading=ScanOptions(transparency_is_mask=True))
    assert (found[:, :4] == 0).all() and np.allclose(found[:, 4:], 2)


def test_the_mask_is_cropped_and_turned_as_its_image_is(folder):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise: what is stored on the left is shown on top
    image, mask = Image.new("RGB", (128, 64), "red"), Image.new("L", (128, 64), 0)
    mask.paste(255, (32, 0, 64, 64))  # shown: the second quarter from the top
    image.save(folder / "a.jpg", exif=exif)
    mask.save(folder / "a.mask.png", exif=exif)
    (record,) = assign(scan(folder), data_config(resolution=64), stride=8).used
    assert (record.bucket.width, record.bucket.height, record.resize) == (48, 88, (48, 96))
    found = mask_weights(record, 6, 11)  # rows of 8 pixels of 96, of which 4 are cropped above
    rows = [0] * 2 + [0.5] + [1] * 2 + [0.5] + [0] * 5  # shown rows 24 to 48, less the 4
    expected = np.array(rows)[:, None] / np.mean(rows) * np.ones(6)
    assert np.abs(found - expected).max() < 0.01  # a half is stored as 128 of 255


def test_the_mask_is_mirrored_with_its_image(folder, paint):
    paint("a.png", 100, 64)
    put_mask(folder / "a.mask.png", (0, 0, 25, 64), (100, 64))
    framing = data_config(resolution=64, flip=0.5, crop="focus")
    (record,) = assign(scan(folder), framing, stride=8).used
    plain, mirrored = (mask_weights(view, 10, 6) for view in each_view([record]))
    assert plain[:, 0].min() > 1 and (plain[:, -1] == 0).all()
    assert np.abs(plain[:, ::-1] - mirrored).max() < 0.02


def test_where_the_subject_is(folder, paint):
    paint("a.png", 100, 50)
    put_mask(folder / "a.mask.png", (60, 10, 80, 20), (100, 50))
    (record,) = scan(folder).used
    found = subject(record)
    assert found.centre == pytest.approx((0.7, 0.3)) and found.box == (0.6, 0.2, 0.8, 0.4)


def test_without_a_mask_there_are_no_weights(folder, paint):
    paint("a.png", 64, 64)
    assert weights(folder, "a.png") is None and subject(scan(folder).used[0]) is None


def test_masks_that_do_not_fit_are_all_named_in_one_sentence(folder, paint):
    for number, name in enumerate("abc"):
        paint(f"{name}.png", colour=(number, 0, 0))
    put_mask(folder / "a.mask.png", size=(50, 50))
    put_mask(folder / "b.mask.png", level=0)
    (folder / "c.mask.png").write_text("<html>")
    with pytest.raises(DatasetError) as caught:
        scan(folder)
    message = str(caught.value)
    assert "a.mask.png (50x50 has not the shape of a.png, 40x30)" in message
    assert "b.mask.png (all black: nothing would be learned)" in message
    assert "c.mask.png (not a JPEG" in message and "\n" not in message


def test_two_masks_of_one_image_are_refused_by_name(folder, paint):
    paint("a.png")
    put_mask(folder / "a.mask.png")
    put_mask(folder.parent / "masks" / "a.png")
    with pytest.raises(DatasetError, match=r"a\.mask\.png and masks/a\.png \(for a\.png: one mask an image"):
        scan(folder, ScanOptions(masks=folder.parent / "masks"))


def test_a_folder_of_masks_that_is_missing_or_of_other_images_is_refused(folder, paint):
    paint("a.png")
    masks = folder.parent / "masks"
    with pytest.raises(DatasetError, match=r"masks does not exist or is empty; set data\.masks"):
        scan(folder, ScanOptions(masks=masks))
    put_mask(masks / "other.png")
    with pytest.raises(DatasetError, match=r"no file in .*masks is called like an image"):
        scan(folder, ScanOptions(masks=masks))


def test_a_mask_of_what_is_cropped_away_is_refused(folder, paint):
    paint("a.png", 640, 64)
    put_mask(folder / "a.mask.png", (0, 0, 8, 64), (640, 64))
    with pytest.raises(DatasetError, match=r"the crop of a\.png leaves nothing of its mask; set data.crop"):
        weights(folder, "a.png")


def test_a_mask_that_changed_after_the_scan_is_refused(folder, paint):
    paint("a.png")
    put_mask(folder / "a.mask.png")
    (record,) = assign(scan(folder), data_config(resolution=64), stride=8).used
    put_mask(folder / "a.mask.png", (0, 0, 5, 5))
    with pytest.raises(DatasetError, match=r"a\.mask\.png has changed since the folder was scanned"):
        mask_weights(record, 8, 8)
