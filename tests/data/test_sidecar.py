from __future__ import annotations

import unicodedata

import pytest
from PIL import Image

from lora_studio.data.captioners import CAPTIONERS, WriterOptions, caption_writer
from lora_studio.data.captioners.write import write_captions
from lora_studio.data.captions import read_captions
from lora_studio.data.scan import scan
from lora_studio.errors import DatasetError, RecipeError


@pytest.mark.parametrize(
    "data",
    [
        "a rèd ball, trigger".encode(),
        "a rèd ball, trigger".encode("utf-8-sig"),
        "a rèd ball, trigger".encode("utf-16"),
        b"\xfe\xff" + "a rèd ball, trigger".encode("utf-16-be"),
        "  a rèd ball,\r\n\r\n trigger \r\n".encode(),
    ],
    ids=["utf-8", "utf-8 with BOM", "utf-16", "utf-16 big-endian", "CRLF and spaces"],
)
def test_captions_are_read_however_an_editor_saved_them(folder, paint, data):
    paint("a.png")
    (folder / "a.txt").write_bytes(data)
    (record,) = read_captions(scan(folder)).used
    assert (record.caption, record.captioned_by) == ("a rèd ball, trigger", "sidecar")


@pytest.mark.parametrize(
    ("data", "fault"),
    [
        ("a red ball".encode("utf-16-le"), "neither UTF-8 nor UTF-16 with its mark"),  # passes for UTF-8
        (b"x" * 1_000_001, "1 MB; at most 1 MB are read"),
    ],
)
def test_what_is_no_caption_is_refused_and_not_learned(folder, paint, data, fault):
    paint("a.png")
    (folder / "a.txt").write_bytes(data)
    with pytest.raises(DatasetError, match=rf"a\.txt \({fault}\)"):
        read_captions(scan(folder), instance_prompt="x")


@pytest.mark.parametrize(
    "name", ["with space", "grün Größe", "猫の写真", "🦊🎨", "Maroš", "a.b", "x" * 250], ids=ascii
)
def test_any_name_a_file_system_allows_works_for_folder_image_and_caption(tmp_path, name):
    """Users' pain 30: trainers crash on what is not ASCII (kohya_ss#1983, sd-scripts#567)."""
    folder = tmp_path / name / "10_猫 ü 🎨"
    folder.mkdir(parents=True)
    name = name[:240]  # leaves room for the ending
    Image.new("RGB", (40, 30), "red").save(folder / f"{name}.jpg")
    (folder / f"{name}.caption").write_text(f"ein Bild: {name}", "utf-8")
    manifest = read_captions(scan(folder.parent))
    (record,) = manifest.used
    assert record.name == f"10_猫 ü 🎨/{name}.jpg" and record.repeats == 10
    assert record.caption == f"ein Bild: {name}"
    assert record.name in manifest.to_jsonl()


def test_endings_within_the_name_do_not_make_images_share_a_caption(folder, paint):
    """Users' pain 12: `aaa.bbb.jpg` and `aaa.ccc.jpg` shared one caption file (sd-scripts#12)."""
    paint("a.b.jpg", colour="blue", caption="first")
    paint("a.c.jpg", colour="green", caption="second")
    (folder / "a.txt").write_text("of neither")
    manifest = read_captions(scan(folder))
    assert [record.caption for record in manifest.used] == ["first", "second"]
    assert [(record.name, record.excluded) for record in manifest.excluded] == [
        ("a.txt", "no image of this name")
    ]


def test_txt_wins_over_caption_unless_it_is_empty(folder, paint):
    for name in ("a", "b", "c"):
        paint(f"{name}.png", colour=(len(name), ord(name), 0))
        (folder / f"{name}.caption").write_text("from caption")
    (folder / "b.txt").write_text("from txt")
    (folder / "c.txt").write_text(" \n")
    captions = [record.caption for record in read_captions(scan(folder)).used]
    assert captions == ["from caption", "from txt", "from caption"]


def test_names_that_are_not_ascii_or_hold_dots_find_their_captions(folder, paint):
    paint("猫.v2.png", caption="a cat")
    (folder / "a.TXT").write_text("a ball")
    paint("a.PNG", colour="blue")
    paint(unicodedata.normalize("NFD", "é") + ".png", colour="green")
    (folder / (unicodedata.normalize("NFC", "é") + ".txt")).write_text("an accent")
    captions = {record.caption for record in read_captions(scan(folder)).used}
    assert captions == {"a cat", "a ball", "an accent"}


def test_images_without_caption_get_the_instance_prompt(folder, paint):
    paint("a.png", caption="a ball")
    paint("b.png", colour="blue")
    (folder / "b.txt").touch()
    paint("c.png", colour="green")
    used = read_captions(scan(folder), instance_prompt=" a photo of sks ").used
    assert [record.caption for record in used] == ["a ball", "a photo of sks", "a photo of sks"]
    assert [record.captioned_by for record in used] == ["sidecar", "instance prompt", "instance prompt"]


def test_a_captioners_words_name_it_until_somebody_edits_them(folder, paint):
    for name in ("red ball", "blue cat"):
        paint(f"{name}.png", colour=name.split()[0])
    write_captions(scan(folder), caption_writer("filename")(WriterOptions()), folder=folder)
    (folder / "red ball.txt").write_text("a red ball")
    authors = {record.caption: record.captioned_by for record in read_captions(scan(folder)).used}
    assert authors == {"a red ball": "sidecar", "blue cat": "filename"}


def test_missing_captions_are_counted_named_and_explained_in_one_sentence(folder, paint):
    """Users' pain 9: training went on without captions, and the warning scrolled away (kohya_ss#988)."""
    paint("a.png", caption="a ball")
    for number in range(5):
        paint(f"b{number}.png", colour=(number, 0, 0))
    with pytest.raises(DatasetError) as caught:
        read_captions(scan(folder))
    message = str(caught.value)
    assert message.startswith("5 of 6 images have no caption: b0.png, b1.png, b2.png and 2 more; write")
    assert "data.instance_prompt" in message and "\n" not in message


def test_captions_that_are_no_text_are_all_named(folder, paint):
    for number in range(2):
        paint(f"a{number}.png", colour=(number, 0, 0))
        (folder / f"a{number}.txt").write_bytes(b"caf\xe9")
    with pytest.raises(DatasetError, match=r"a0\.txt \(neither.*a1\.txt.*UTF-8"):
        read_captions(scan(folder), instance_prompt="x")


def test_excluded_files_keep_their_record_and_need_no_caption(folder, paint):
    paint("a.png", caption="a ball")
    (folder / "b.jpg").write_text("x")
    before = scan(folder)
    after = read_captions(before)
    assert [record.name for record in after.records] == [record.name for record in before.records]
    assert after.excluded == before.excluded


def test_captions_keep_the_order_of_the_images(folder, paint):
    for name in "cab":
        paint(f"{name}.png", colour=(ord(name), 0, 0), caption=name)
    assert [record.caption for record in read_captions(scan(folder)).used] == ["a", "b", "c"]


def test_the_table_gives_the_captioner_and_suggests_near_names():
    assert CAPTIONERS["sidecar"] is read_captions
    with pytest.raises(RecipeError, match="did you mean 'sidecar'"):
        CAPTIONERS["sidcar"]
