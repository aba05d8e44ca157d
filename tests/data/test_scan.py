from __future__ import annotations

import hashlib
import json
import os
import re
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import pytest
from noise import grey_noise
from PIL import Image

from lora_studio.data.images import MAX_FILE_BYTES
from lora_studio.data.manifest import Manifest
from lora_studio.data.scan import ScanOptions, scan
from lora_studio.errors import DatasetError


def test_every_image_gets_a_record_with_path_hash_size_and_repeats(folder, paint):
    paint("b.jpg", 40, 30)
    paint("a.png", 20, 50)
    paint("c.webp", 33, 34)
    paint("d.bmp", 35, 36)
    manifest = scan(folder, repeats=3)
    assert [record.name for record in manifest.records] == ["a.png", "b.jpg", "c.webp", "d.bmp"]
    assert [(r.width, r.height) for r in manifest.used] == [(20, 50), (40, 30), (33, 34), (35, 36)]
    first = manifest.used[0]
    assert first.path == str(folder / "a.png") and Path(first.path).is_absolute()
    assert first.sha256 == hashlib.sha256((folder / "a.png").read_bytes()).hexdigest()
    assert first.background == first.note == ""
    assert first.repeats == 3 and first.role == "instance" and first.weight == 1.0


def test_a_relative_folder_gives_absolute_paths(folder, paint, monkeypatch):
    paint("a.png")
    monkeypatch.chdir(folder.parent)
    assert scan(Path("images")).used[0].path == str(folder / "a.png")


def test_the_size_is_the_one_after_exif_orientation(folder):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (40, 30)).save(folder / "turned.jpg", exif=exif)
    (record,) = scan(folder).used
    assert (record.width, record.height) == (30, 40)


def test_a_truncated_image_is_excluded_with_its_reason(folder, paint, reason):
    paint("good.png")
    for name, size in (("cut.jpg", 600), ("cut.png", 60)):
        grey_noise((64, 64), 50).save(folder / ("whole_" + name))
        (folder / name).write_bytes((folder / ("whole_" + name)).read_bytes()[:size])
        (folder / ("whole_" + name)).unlink()
    manifest = scan(folder)
    assert [record.name for record in manifest.used] == ["good.png"]
    assert reason(manifest, "cut.jpg").startswith("damaged: ")
    assert reason(manifest, "cut.png").startswith("damaged: ")


def test_files_that_are_no_images_are_excluded_whatever_they_are_called(folder, paint, reason):
    paint("good.png")
    (folder / "page.jpg").write_text("<!DOCTYPE html><html>404</html>")
    (folder / "empty.png").touch()
    (folder / "notes.json").write_text("{}")
    (folder / "drawing.svg").write_text("<svg/>")
    (folder / "subfolder").mkdir()
    manifest = scan(folder)
    assert [record.name for record in manifest.used] == ["good.png"]
    for name in ("page.jpg", "notes.json", "drawing.svg"):
        assert reason(manifest, name) == "not a JPEG, PNG, WebP, BMP, TIFF, GIF, AVIF or HEIC image"
    assert reason(manifest, "empty.png") == "the file is empty"
    assert reason(manifest, "subfolder").startswith("a folder")


def test_a_decompression_bomb_is_excluded_before_it_is_decoded(folder, paint, reason):
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    paint("good.png")
    for name, side in (
        ("warned.png", 10_000),
        ("refused.png", 60_000),
    ):  # Pillow warns at one, refuses the other
        header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
        body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")
        (folder / name).write_bytes(b"\x89PNG\r\n\x1a\n" + body)
    manifest = scan(folder)
    assert reason(manifest, "warned.png") == "more than 89 megapixels"
    assert reason(manifest, "refused.png") == "more than 89 megapixels"


def test_a_file_beyond_the_size_limit_is_not_read(folder, paint, reason):
    paint("good.png")
    with (folder / "huge.png").open("wb") as file:
        file.truncate(MAX_FILE_BYTES + 1)  # sparse: takes no space
    assert reason(scan(folder), "huge.png") == "200 MB; at most 200 MB are read"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="pipes are a Unix thing")
def test_a_pipe_or_a_dangling_link_does_not_stop_the_scan(folder, paint, reason):
    paint("good.png")
    os.mkfifo(folder / "pipe.png")
    (folder / "link.png").symlink_to(folder / "gone.png")
    manifest = scan(folder)
    assert reason(manifest, "pipe.png") == "not a regular file"
    assert reason(manifest, "link.png").startswith("cannot be read")


def test_images_that_are_too_small_or_too_long_are_excluded(folder, paint, reason):
    paint("good.png", 16, 16)
    paint("small.png", 15, 400)
    paint("strip.png", 400, 20)
    manifest = scan(folder)
    assert reason(manifest, "small.png") == "too small: 15x400; both sides must be 16 pixels or more"
    assert reason(manifest, "strip.png") == "too long: 400x20; one side may be at most 10 times the other"


def test_the_smallest_side_allowed_is_a_choice(folder, paint, reason):
    paint("small.png", 16, 16)
    paint("large.png", 40, 40)
    assert reason(scan(folder), "small.png") == ""
    assert reason(scan(folder, ScanOptions(min_side=20)), "small.png").startswith("too small")


def test_of_equal_files_the_first_by_name_is_kept(folder, paint, reason):
    """USERS row 47, the exact ones; the doctor looks for near duplicates."""
    paint("b.png")
    for name in ("a.png", "c.png"):
        (folder / name).write_bytes((folder / "b.png").read_bytes())
    manifest = scan(folder)
    assert [record.name for record in manifest.used] == ["a.png"]
    assert reason(manifest, "b.png") == reason(manifest, "c.png") == "the same bytes as a.png"


def test_transparency_is_recorded_with_its_background_and_a_clear_image_is_left_out(folder, reason):
    half = Image.new("RGBA", (40, 30), (255, 0, 0, 255))
    half.save(folder / "opaque.png")
    half.putpixel((3, 3), (0, 0, 0, 0))
    half.save(folder / "half.png")
    Image.new("RGBA", (40, 30), (9, 9, 9, 0)).save(folder / "clear.png")
    manifest = scan(folder, ScanOptions(background="#102030"))
    assert {record.name: record.background for record in manifest.used} == {
        "half.png": "#102030",
        "opaque.png": "",
    }
    assert reason(manifest, "clear.png") == "clear all over: there is nothing to see"


def test_a_moving_image_is_used_with_a_note(folder):
    frames = [Image.new("RGB", (40, 30), colour) for colour in ("red", "blue")]
    frames[0].save(folder / "moving.gif", save_all=True, append_images=frames[1:])
    frames[0].save(folder / "one.gif")
    frames[0].resize((50, 50)).save(folder / "still.webp")
    assert {record.name: record.note for record in scan(folder).used} == {
        "moving.gif": "moving or of several pages: only the first image in it is used",
        "one.gif": "",
        "still.webp": "",
    }


@pytest.mark.parametrize("name", [".DS_Store", "._a.png", ".hidden.png", "Thumbs.db", "desktop.ini"])
def test_junk_is_recorded_as_junk_without_being_read(folder, paint, reason, name):
    paint("a.png")
    (folder / name).write_bytes(b"x")
    assert reason(scan(folder), name) == "junk"


def test_the_folder_that_macos_archives_leave_is_junk(folder, paint, reason):
    paint("a.png")
    (folder / "__MACOSX").mkdir()
    assert reason(scan(folder), "__MACOSX") == "junk"


def test_a_caption_beside_its_image_is_no_record_but_an_orphan_is(folder, paint, reason):
    paint("a.png", caption="a")
    (folder / "a.caption").write_text("a")
    (folder / "lost.txt").write_text("nobody")
    (folder / "page.jpg").write_text("<html>")
    (folder / "page.txt").write_text("a caption of something that is no image")
    (folder / "cut.png").write_bytes((folder / "a.png").read_bytes()[:50])
    (folder / "cut.txt").write_text("belongs to an image, though a damaged one")
    manifest = scan(folder)
    assert [record.name for record in manifest.records] == [
        "a.png",
        "cut.png",
        "lost.txt",
        "page.jpg",
        "page.txt",
    ]
    assert reason(manifest, "lost.txt") == reason(manifest, "page.txt") == "no image of this name"


def test_images_that_would_share_a_caption_file_are_refused_by_name(folder, paint):
    paint("a.jpg")
    paint("a.png")
    with pytest.raises(DatasetError, match=r"a\.jpg and a\.png; .* rename or remove"):
        scan(folder)


def test_an_unusable_file_does_not_collide_with_an_image(folder, paint):
    paint("a.png")
    (folder / "a.json").write_text("{}")
    (folder / "a.jpg").write_text("<html>")
    assert [record.name for record in scan(folder).used] == ["a.png"]


@pytest.mark.parametrize(
    ("prepare", "what"),
    [
        (lambda folder: folder.rmdir(), "does not exist"),
        (lambda folder: (folder.rmdir(), folder.touch()), "is not a folder"),
        (lambda folder: None, "is empty"),
        (lambda folder: (folder / "a.jpg").write_text("x"), r"holds no usable image, only a\.jpg \(not a"),
    ],
)
def test_nothing_to_train_on_is_one_sentence_with_advice(folder, prepare, what):
    prepare(folder)
    with pytest.raises(
        DatasetError, match=f"{re.escape(str(folder))} {what}.*; set data.images to"
    ) as caught:
        scan(folder)
    assert "\n" not in str(caught.value)


def test_the_manifest_text_is_repeatable_and_holds_no_absolute_path(folder, paint):
    paint("猫 é.png", caption="eine Katze")
    paint("b.png", colour="blue")
    (folder / "c.jpg").write_text("x")
    text = scan(folder).to_jsonl()
    assert text == scan(folder).to_jsonl()
    assert str(folder.parent) not in text and "猫 é.png" in text
    lines = [json.loads(line) for line in text.splitlines()]
    assert [line["name"] for line in lines] == ["b.png", "c.jpg", "猫 é.png"]
    assert lines[1]["excluded"] and lines[0]["excluded"] == "" and lines[0]["bucket"] is None


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such names")
def test_a_file_name_that_is_no_utf8_still_makes_valid_json(folder, paint):
    os.rename(paint("a.png"), os.fsencode(folder) + b"/caf\xe9.png")
    manifest = scan(folder)
    line = manifest.to_jsonl().encode("utf-8")
    assert json.loads(line)["name"] == manifest.used[0].name == "caf\udce9.png"


def test_scanning_and_captioning_need_no_torch():
    modules = "manifest, scan, sources, masks, buckets, batches, captions, doctor, doctor.page"
    imports = "; ".join(f"import lora_studio.data.{name.strip()}" for name in modules.split(","))
    subprocess.run(
        [sys.executable, "-c", f"{imports}; import sys; assert 'torch' not in sys.modules"], check=True
    )


def test_used_and_excluded_are_all_records(folder, paint):
    paint("a.png")
    (folder / "b.jpg").write_text("x")
    manifest: Manifest = scan(folder)
    assert manifest.used + manifest.excluded == manifest.records
