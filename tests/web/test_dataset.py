"""Images on the page: listed at once, seen by the doctor, and changed only with a copy of what was."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image
from tiny import image_folder, recipe_text

from lora_studio.data.captions.find_replace import BACKUPS
from lora_studio.data.images import UnreadableFile
from lora_studio.data.scan import scan
from lora_studio.errors import CaptionError, DatasetError, StudioError
from lora_studio.files import cache_folder
from lora_studio.recipe.load import load_recipe
from lora_studio.web.dataset import open_dataset
from lora_studio.web.dataset.backups import SafeWriter
from lora_studio.web.dataset.captions import (
    apply,
    changes_in,
    clip_tokenizers,
    count_tokens,
    save_caption,
    statistics,
)
from lora_studio.web.dataset.dropping import DropFolder, harmless_name, new_folder
from lora_studio.web.dataset.exclude import set_left_out
from lora_studio.web.dataset.focus import set_focus
from lora_studio.web.dataset.looking import look, main, seen_json
from lora_studio.web.dataset.masks import painted, remove_mask, save_mask
from lora_studio.web.dataset.thumbnails import SIDES, thumbnail
from lora_studio.web.settings import MOST_UPLOADS

SCRIPT = "<img src=x onerror=alert(1)>.png"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return image_folder(tmp_path / "style")


def kept(folder: Path) -> list[bytes]:
    """What all backups hold."""
    return sorted(one.read_bytes() for one in (folder / BACKUPS).rglob("*") if one.is_file())


def png(size: tuple[int, int], white: tuple[int, int, int, int] | None) -> bytes:
    image = Image.new("L", size)
    if white:
        image.paste(255, white)
    written = BytesIO()
    image.save(written, "PNG")
    return written.getvalue()


def pixels_of(data: bytes) -> tuple[int, int]:
    with Image.open(BytesIO(data)) as image:
        return image.size


def test_a_folder_is_listed_without_opening_an_image(folder):
    (folder / "damaged.png").write_bytes(b"no image")
    seen = open_dataset(folder)
    assert [*seen.images] == [*sorted(one.name for one in folder.iterdir() if one.suffix != ".txt")]
    assert seen.images["00.png"].caption == (folder / "00.txt").read_text("utf-8").strip()
    assert [one.name for one in seen.shown(words="DAMAGED")] == ["damaged.png"]
    assert [one.name for one in seen.shown(which="uncaptioned")] == ["damaged.png"]


def test_what_the_doctor_sees_is_at_its_image(folder):
    (folder / "damaged.png").write_bytes(b"no image")
    (folder / "01.txt").write_text("", "utf-8")
    seen = open_dataset(folder)
    seen.take_look(json.loads(json.dumps(seen_json(*look(folder)))))
    assert seen.kinds().keys() >= {"caption_empty", "unusable"}
    assert [one.name for one in seen.shown(kind="caption_empty")] == ["01.jpg"]
    first = seen.images["03.png"]
    assert first.size == (112, 64) and first.bucket and first.crop is not None
    left, top, width, height = first.crop
    assert 0 <= left < 1 and 0 <= top < 1 and width <= 1 and height <= 1 and (width == 1 or height == 1)
    assert seen.images["damaged.png"].excluded and "not used" in seen.images["damaged.png"].label


def test_the_look_is_a_process_that_tells_its_progress(folder, capsys):
    command = [sys.executable, "-m", "lora_studio.web.dataset.looking", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert lines[-2] == {"done": 5, "total": 5} and len(lines[-1]["images"]) == 5
    assert main(str(folder / "gone")) == 2 and "gone" in json.loads(capsys.readouterr().out)["error"]


def test_a_recipes_images_are_those_that_it_trains_on(folder, tmp_path):
    (tmp_path / "list.txt").write_text("00.png\n", "utf-8")
    recipe = tmp_path / "tiny.toml"
    recipe.write_text(recipe_text(folder, "pocket").replace("[adapter]", 'exclude = "list.txt"\n[adapter]'))
    seen = open_dataset(recipe)
    assert seen.trigger == "zwx style" and seen.images["00.png"].is_left_out
    assert len(seen.shown(which="used")) == 4


def test_thousands_of_images_are_listed_at_once(tmp_path):
    (tmp_path / "many").mkdir()
    for number in range(2000):
        (tmp_path / "many" / f"{number:04}.png").write_bytes(b"x")
        (tmp_path / "many" / f"{number:04}.txt").write_text(f"a thing, number {number}", "utf-8")
    begun = time.process_time()
    seen = open_dataset(tmp_path / "many")
    assert len(seen.images) == 2000 and time.process_time() - begun < 1.5


def test_a_caption_is_written_with_a_copy_of_the_old_one_and_can_be_taken_back(folder):
    seen, writer = open_dataset(folder), SafeWriter(folder)
    before = (folder / "00.txt").read_bytes()
    save_caption(seen.images["00.png"], "a fox\nanother line  ", writer)
    assert (folder / "00.txt").read_text("utf-8") == "a fox\nanother line\n"
    assert kept(folder) == [before]
    save_caption(seen.read_again("00.png"), "a dog", writer)
    assert kept(folder) == [before], "only what the user wrote is kept"
    assert seen.read_again("00.png").caption == "a dog"
    assert writer.undo() == [folder / "00.txt"]
    writer.undo()
    assert (folder / "00.txt").read_bytes() == before and writer.undo() == []


def test_a_new_caption_is_gone_when_it_is_taken_back(folder):
    (folder / "00.txt").unlink()
    seen, writer = open_dataset(folder), SafeWriter(folder)
    save_caption(seen.images["00.png"], "ein Fuchs, größer 🦊", writer)
    assert (folder / "00.txt").read_text("utf-8") == "ein Fuchs, größer 🦊\n"
    writer.undo()
    assert not (folder / "00.txt").exists()


def test_a_caption_keeps_its_encoding_and_line_ends(folder):
    (folder / "00.txt").write_bytes("a\r\nb\r\n".encode("utf-16"))
    seen, writer = open_dataset(folder), SafeWriter(folder)
    save_caption(seen.images["00.png"], "ä\nb", writer)
    assert (folder / "00.txt").read_bytes() == "ä\r\nb\r\n".encode("utf-16")


@pytest.mark.parametrize("text", ["", " \n ", "\ud800", "x" * 20_001], ids=["empty", "blank", "half", "long"])
def test_what_is_no_caption_is_refused(folder, text):
    seen, before = open_dataset(folder), (folder / "00.txt").read_bytes()
    with pytest.raises(DatasetError):
        save_caption(seen.images["00.png"], text, SafeWriter(folder))
    assert (folder / "00.txt").read_bytes() == before and not (folder / BACKUPS).exists()


def test_control_characters_do_not_reach_a_caption(folder):
    save_caption(open_dataset(folder).images["00.png"], "a \x1b[31mfox\x00", SafeWriter(folder))
    assert (folder / "00.txt").read_text("utf-8") == "a [31mfox\n"


def test_a_caption_that_is_no_text_or_was_changed_meanwhile_stays(folder):
    (folder / "00.txt").write_bytes(b"\xfa\xfb not text")
    seen = open_dataset(folder)
    assert seen.images["00.png"].caption_fault
    with pytest.raises(DatasetError, match="UTF-8"):
        save_caption(seen.images["00.png"], "new", SafeWriter(folder))
    (folder / "01.txt").write_text("by somebody else", "utf-8")
    with pytest.raises(DatasetError, match="meanwhile"):
        save_caption(seen.images["01.jpg"], "new", SafeWriter(folder))
    assert (folder / "01.txt").read_text("utf-8") == "by somebody else"


def test_undo_leaves_what_was_changed_since(folder):
    seen, writer = open_dataset(folder), SafeWriter(folder)
    save_caption(seen.images["00.png"], "mine", writer)
    (folder / "00.txt").write_text("theirs", "utf-8")
    with pytest.raises(DatasetError, match="meanwhile"):
        writer.undo()
    assert (folder / "00.txt").read_text("utf-8") == "theirs"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_may_not_be_written_to_is_said_in_a_sentence(folder):
    folder.chmod(0o555)
    try:
        with pytest.raises(DatasetError, match="writable"):
            save_caption(open_dataset(folder).images["00.png"], "new", SafeWriter(folder))
    finally:
        folder.chmod(0o755)


def test_a_caption_that_is_a_link_does_not_lead_out_of_the_folder(folder, tmp_path):
    outside = tmp_path / "outside.txt"
    outside.write_text("secret", "utf-8")
    (folder / "00.txt").unlink()
    (folder / "00.txt").symlink_to(outside)
    save_caption(open_dataset(folder).images["00.png"], "mine", SafeWriter(folder))
    assert outside.read_text("utf-8") == "secret" and not (folder / "00.txt").is_symlink()


def test_words_are_found_and_replaced_in_one_step(folder):
    for number in (0, 1):
        (folder / f"0{number}.txt").write_text(f"a fox {number}, zwx style", "utf-8")
    seen, writer = open_dataset(folder), SafeWriter(folder)
    found = changes_in(seen, "fox", "dog")
    assert [one.after for one in found] == ["a dog 0, zwx style", "a dog 1, zwx style"]
    assert apply(found, writer) == 2 and (folder / "01.txt").read_text("utf-8") == "a dog 1, zwx style"
    with pytest.raises(CaptionError):
        changes_in(seen, "(", "", regex=True)
    writer.undo()
    assert (folder / "00.txt").read_text("utf-8") == "a fox 0, zwx style"


def test_tokens_are_counted_and_what_is_cut_is_shown(folder):
    short, long = "a fox", ", ".join(["a red fox in the snow"] * 20)
    assert count_tokens(short, clip_tokenizers()).tokens == 4
    found = count_tokens(f"{short}\n{long}", clip_tokenizers())
    assert found.window == 77 and found.tokens > 77 and long.endswith(found.lost[-10:])
    assert count_tokens(long, clip_tokenizers(), max_chunks=2).lost == ""
    assert statistics(open_dataset(folder)).captioned == 5


def test_images_are_left_out_by_the_recipe_and_nothing_is_deleted(folder, tmp_path):
    recipe, writer = tmp_path / "tiny.toml", SafeWriter(tmp_path)
    text = recipe_text(folder, "pocket") + "# the end\n"
    recipe.write_text(text)
    set_left_out(recipe, "00.png", writer, left_out=True)
    set_left_out(recipe, "02.webp", writer, left_out=True)
    assert (folder / "00.png").exists() and recipe.read_text().endswith("# the end\n")
    assert [one.name for one in open_dataset(recipe).shown(which="left_out")] == ["00.png", "02.webp"]
    assert load_recipe(recipe).data.exclude == tmp_path / "tiny_left_out.txt"
    set_left_out(recipe, "00.png", writer, left_out=False)
    assert [one.name for one in open_dataset(recipe).shown(which="left_out")] == ["02.webp"]
    while writer.steps:
        writer.undo()
    assert recipe.read_text() == text and not (tmp_path / "tiny_left_out.txt").exists()


@pytest.mark.parametrize("name", ["#a.png", " a.png", "a\nb.png", "a\udcff.png"])
def test_a_name_that_no_list_can_hold_is_refused(folder, tmp_path, name):
    (tmp_path / "tiny.toml").write_text(recipe_text(folder, "pocket"))
    with pytest.raises(DatasetError, match="rename"):
        set_left_out(tmp_path / "tiny.toml", name, SafeWriter(tmp_path), left_out=True)


LISTS = {
    "none": ("", ""),
    "jsonl": (
        "metadata.jsonl",
        '{"file_name": "00.png", "text": "a \\u00e9"}\n{"file_name": "01.jpg", "repeats": 2}\n',
    ),
    "csv": ("metadata.csv", "file_name;text\n00.png;a, b\n"),
}


@pytest.mark.parametrize("listed", LISTS)
def test_the_focus_is_what_a_scan_reads(folder, listed):
    name, text = LISTS[listed]
    if name:
        (folder / name).write_text(text, "utf-8")
    seen, writer = open_dataset(folder), SafeWriter(folder)
    for image in ("00.png", "03.png"):
        set_focus(seen.images[image], (0.25, 0.7), writer)
    found = {one.name: one.overrides for one in scan(folder).used}
    assert found["00.png"].focus == found["03.png"].focus == (0.25, 0.7)
    assert found["01.jpg"].repeats == (2 if listed == "jsonl" else None)
    assert open_dataset(folder).images["00.png"].focus == (0.25, 0.7)
    set_focus(seen.images["00.png"], None, writer)
    assert {one.name: one.overrides.focus for one in scan(folder).used}["00.png"] is None
    while writer.steps:
        writer.undo()
    assert not name or (folder / name).read_text("utf-8") == text


def test_a_list_that_cannot_be_read_stays_as_it_is(folder):
    seen = open_dataset(folder)
    (folder / "metadata.jsonl").write_text("not json", "utf-8")
    with pytest.raises(DatasetError, match="line 1"):
        set_focus(seen.images["00.png"], (0.5, 0.5), SafeWriter(folder))
    with pytest.raises(DatasetError, match="outside"):
        set_focus(seen.images["00.png"], (1.5, 0.5), SafeWriter(folder))
    assert (folder / "metadata.jsonl").read_text("utf-8") == "not json"


def test_a_painted_mask_is_one_that_training_reads(folder):
    seen, writer = open_dataset(folder), SafeWriter(folder)
    image = seen.images["03.png"]
    assert painted(image, 512) is None
    path = save_mask(seen, image, png((56, 32), (0, 0, 28, 32)), writer)
    assert path == folder / "03.mask.png" and pixels_of(path.read_bytes()) == (112, 64)
    record = next(one for one in scan(folder).used if one.name == "03.png")
    assert record.mask == "03.mask.png"
    image = open_dataset(folder).images["03.png"]
    assert pixels_of(painted(image, 56)) == (56, 32)
    first = path.read_bytes()
    save_mask(seen, image, png((56, 32), (0, 0, 56, 32)), SafeWriter(folder))
    assert kept(folder) == [first]
    remove_mask(image, writer2 := SafeWriter(folder))
    assert not path.exists() and len(kept(folder)) == 2
    writer2.undo()
    assert path.exists()


def test_masks_that_would_harm_are_refused(folder):
    seen, writer = open_dataset(folder), SafeWriter(folder)
    image = seen.images["03.png"]
    for data in (
        b"<script>",
        png((56, 32), None),
        png((32, 32), (0, 0, 9, 9)),
        b"\x89PNG\r\n\x1a\n" + b"x" * 99,
    ):
        with pytest.raises(DatasetError):
            save_mask(seen, image, data, writer)
    Image.new("RGB", (112, 64)).save(folder / "03.jpg")
    seen = open_dataset(folder)
    with pytest.raises(DatasetError, match="same name"):
        save_mask(seen, seen.images["03.png"], png((56, 32), (0, 0, 9, 9)), writer)
    assert not list(folder.glob("*.mask.png"))


def test_thumbnails_are_small_and_kept_outside_of_the_users_folder(folder, tmp_path):
    Image.new("RGB", (900, 300), "red").save(folder / "large.png")
    before = sorted(folder.rglob("*"))
    made = thumbnail(folder / "large.png", SIDES[0])
    assert pixels_of(made) == (256, 85) and sorted(folder.rglob("*")) == before
    place = next(one for one in (cache_folder() / "thumbnails").iterdir() if one.read_bytes() == made)
    assert place.suffix == ".jpg" and thumbnail(folder / "large.png", SIDES[0]) == made
    Image.new("RGB", (300, 900), "blue").save(folder / "large.png")
    assert pixels_of(thumbnail(folder / "large.png", SIDES[0])) == (85, 256)


def test_images_that_are_none_give_a_reason_in_place_of_a_thumbnail(folder, tmp_path):
    for name, data in {
        "empty.png": b"",
        "text.png": b"<svg onload=alert(1)>",
        "cut.png": b"\x89PNG\r\n\x1a\n",
    }.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(UnreadableFile):
            thumbnail(tmp_path / name)
    with pytest.raises(UnreadableFile):
        thumbnail(tmp_path / "gone.png")
    with pytest.raises(UnreadableFile):
        thumbnail(tmp_path)


@pytest.mark.parametrize(
    "given, name",
    [
        ("../../etc/passwd.png", "passwd.png"),
        ("C:\\Users\\me\\Bild.PNG", "Bild.png"),
        (SCRIPT, "_img src=x onerror=alert(1)_.png"),
        ("größer 🦊 日本.jpg", "größer 🦊 日本.jpg"),
        ("a\x00\n\u202eb.png", "a__b.png"),
        ("cat.mask.png", "cat.mask.png"),
        ("x" * 500 + ".webp", "x" * 120 + ".webp"),
    ],
)
def test_dropped_names_are_harmless(given, name):
    assert harmless_name(given) == name


@pytest.mark.parametrize(
    "given", ["..", ".hidden.png", "con.png", "", "/", "...png", "Thumbs.db", "\u202e.png"]
)
def test_names_of_which_nothing_is_left_are_refused(given):
    with pytest.raises(DatasetError):
        harmless_name(given)


def test_dropped_files_are_copied_and_nothing_is_replaced(folder, tmp_path):
    taken = DropFolder(new_folder(tmp_path, "my images"))
    data = (folder / "00.png").read_bytes()
    assert taken.take("a.png", data) == "a.png" and taken.take("A.PNG", data) == "A_2.png"
    assert taken.take("a.txt", b"a fox") == "a.txt"
    assert new_folder(tmp_path, "my images").name == "my images_1"
    for name, content in {
        "b.png": b"<html>",
        "c.exe": b"MZ",
        "d.txt": b"\xff\xff",
        "e.svg": b"<svg/>",
    }.items():
        with pytest.raises(DatasetError, match="not taken"):
            taken.take(name, content)
    with pytest.raises(DatasetError, match="too large"):
        taken.take("f.png", bytes(100_000_001))
    assert sorted(one.name for one in taken.folder.iterdir()) == ["A_2.png", "a.png", "a.txt"]


def test_more_files_than_a_folder_takes_are_refused(folder, tmp_path):
    taken = DropFolder(tmp_path / "drop")
    taken.folder.mkdir()
    for number in range(MOST_UPLOADS):
        (taken.folder / f"{number}.txt").touch()
    with pytest.raises(DatasetError, match="at most"):
        taken.take("one.txt", b"more")


def test_scripts_in_names_and_odd_names_are_plain_names(folder):
    for name in (SCRIPT, "größer 🦊.png", "zero\u200bwidth.png"):
        Image.new("RGB", (64, 64), "red").save(folder / name)
    os.rename(folder / "02.webp", os.fsencode(folder) + b"/\xff.webp")
    seen = open_dataset(folder)
    seen.take_look(json.loads(json.dumps(seen_json(*look(folder)))))
    odd = next(one for one in seen.images.values() if "\udcff" in one.name)
    assert odd.size == (64, 96) and seen.at(odd.key) is odd and odd.label.encode("utf-8")
    assert len({one.key for one in seen.images.values()}) == len(seen.images) == 8
    assert seen.at("../../etc/passwd") is None and "\u200b" not in seen.images["zero\u200bwidth.png"].label


def test_images_that_vanish_are_said_to_be_gone(folder):
    seen = open_dataset(folder)
    (folder / "00.png").unlink()
    with pytest.raises(UnreadableFile):
        thumbnail(seen.images["00.png"].path)
    with pytest.raises(DatasetError):
        save_mask(seen, seen.images["00.png"], png((64, 64), (0, 0, 9, 9)), SafeWriter(folder))
    for place in ("nowhere", "00.txt"):
        with pytest.raises(StudioError):
            open_dataset(folder / place)
