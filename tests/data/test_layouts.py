"""Every layout that users have, made of real files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from lora_studio.data.captions import read_captions
from lora_studio.data.scan import ScanOptions, scan
from lora_studio.errors import DatasetError

RECURSIVE = ScanOptions(recursive=True)
_shade = iter(range(10**6))


def put(path: Path, caption: str = "") -> None:
    """An image unlike all others, in a folder that is made if need be."""
    path.parent.mkdir(parents=True, exist_ok=True)
    number = next(_shade)
    Image.new("RGB", (40, 30), (number // 65536, number // 256 % 256, number % 256)).save(path)
    if caption:
        path.with_suffix(".txt").write_text(caption, "utf-8")


def reasons(manifest) -> dict[str, str]:
    return {record.name: record.excluded for record in manifest.excluded}


def test_a_plain_folder_leaves_its_subfolders_with_a_reason(folder):
    put(folder / "a.png")
    put(folder / "2024_trip" / "b.png")
    put(folder / "more" / "c.png")
    manifest = scan(folder)
    assert [record.name for record in manifest.used] == ["a.png"]
    reason = "a folder; subfolders are searched only with recursive = true"
    assert reasons(manifest) == {"2024_trip": reason, "more": reason}


def test_a_recursive_folder_is_searched_through_and_names_of_folders_mean_nothing(folder):
    put(folder / "a.png", "top")
    put(folder / "10_sks dog" / "a.png", "below")
    put(folder / "x" / "y" / "a.png", "deep")
    put(folder / "__MACOSX" / "a.png")
    put(folder / ".hidden" / "a.png")
    manifest = read_captions(scan(folder, RECURSIVE, repeats=2))
    assert {record.name: (record.caption, record.repeats) for record in manifest.used} == {
        "10_sks dog/a.png": ("below", 2),
        "a.png": ("top", 2),
        "x/y/a.png": ("deep", 2),
    }
    assert reasons(manifest) == {".hidden": "junk", "__MACOSX": "junk"}


def test_equal_names_in_different_folders_do_not_collide_but_in_one_they_do(folder):
    put(folder / "x" / "a.png", "x")
    put(folder / "y" / "a.jpg", "y")
    assert [record.caption for record in read_captions(scan(folder, RECURSIVE)).used] == ["x", "y"]
    put(folder / "y" / "a.png")
    with pytest.raises(DatasetError, match=r"y/a\.jpg and y/a\.png; .* rename or remove"):
        scan(folder, RECURSIVE)


def test_a_link_in_a_circle_does_not_hold_up_the_search(folder):
    put(folder / "x" / "a.png")
    (folder / "x" / "again").symlink_to(folder, target_is_directory=True)
    manifest = scan(folder, RECURSIVE)
    assert [record.name for record in manifest.used] == ["x/a.png"]
    assert reasons(manifest) == {"x/again": "a link to a folder; links are not followed"}


def test_folders_of_repeats_and_name_give_repeats_and_the_caption_of_last_resort(folder):
    put(folder / "10_sks dog" / "a.png", "a sks dog on a sofa")
    put(folder / "10_sks dog" / "b.png")
    put(folder / "3_meadow" / "c.png")
    put(folder / "other" / "d.png")
    (folder / "7_nothing").mkdir()
    (folder / "notes.md").write_text("mine")
    found = scan(folder, repeats=2)
    assert {record.name: record.repeats for record in found.used} == {
        "10_sks dog/a.png": 20,
        "10_sks dog/b.png": 20,
        "3_meadow/c.png": 6,
    }
    assert set(reasons(found)) == {"other", "notes.md", "7_nothing"}
    captions = [(record.caption, record.captioned_by) for record in read_captions(found).used]
    assert captions == [
        ("a sks dog on a sofa", "sidecar"),
        ("sks dog", "folder name"),
        ("meadow", "folder name"),
    ]
    with_prompt = read_captions(found, instance_prompt="a photo").used
    assert [record.caption for record in with_prompt] == ["a sks dog on a sofa", "a photo", "a photo"]


@pytest.mark.parametrize("name", ["2023_trip", "0_off"])
def test_a_number_that_is_no_repeat_count_is_refused_with_advice(folder, name):
    put(folder / name / "a.png")
    with pytest.raises(DatasetError, match=rf"{name} asks for \d+ repeats; 1 to 1000 .*recursive = true"):
        scan(folder)
    assert scan(folder, RECURSIVE).used


def test_a_folder_of_folders_says_what_to_do(folder):
    put(folder / "CROP" / "a.png")
    with pytest.raises(
        DatasetError, match=r"holds no usable image, only CROP \(a folder; .*recursive = true"
    ):
        scan(folder)


def write_jsonl(folder: Path, *rows: object) -> None:
    text = "\r\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    (folder / "metadata.jsonl").write_bytes(text.encode("utf-8-sig"))


def test_metadata_jsonl_gives_captions_and_a_caption_beside_the_image_wins(folder):
    put(folder / "a.png")
    put(folder / "b.png", "by hand")
    put(folder / "ü 猫.png")
    write_jsonl(
        folder,
        {"file_name": "a.png", "text": "a\nred  ball", "extra": [1]},
        {"file_name": "b.png", "text": "from the list"},
        {"file_name": "ü 猫.png", "text": "eine Katze 🐈"},
    )
    used = read_captions(scan(folder), instance_prompt="unused").used
    assert [(record.caption, record.captioned_by) for record in used] == [
        ("a red ball", "metadata.jsonl"),
        ("by hand", "sidecar"),
        ("eine Katze 🐈", "metadata.jsonl"),
    ]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_metadata_csv_gives_captions_however_it_was_saved(folder, encoding):
    put(folder / "a.png")
    put(folder / "b.png")
    text = 'file_name,text,author\r\na.png,"a red ball, rolling",me\r\nb.png,"two\r\nlines",me\r\n'
    (folder / "metadata.csv").write_bytes(text.encode(encoding))
    used = read_captions(scan(folder)).used
    assert [record.caption for record in used] == ["a red ball, rolling", "two lines"]
    assert {record.captioned_by for record in used} == {"metadata.csv"}


def test_listed_files_in_subfolders_are_found_and_what_is_not_there_is_said(folder):
    put(folder / "train" / "a.png")
    put(folder / "train" / "unlisted.png")
    put(folder / "b.png")
    put(folder.parent / "secret.png")
    write_jsonl(
        folder,
        {"file_name": "train/a.png", "text": "listed"},
        {"file_name": "./b.png", "text": "top"},
        {"file_name": "gone.png", "text": "x"},
        {"file_name": "../secret.png", "text": "x"},
        {"file_name": str(folder.parent / "secret.png"), "text": "x"},
        {"file_name": "x" * 300, "text": "x"},
    )
    manifest = read_captions(scan(folder))
    assert {record.name: record.caption for record in manifest.used} == {
        "train/a.png": "listed",
        "b.png": "top",
    }
    found = reasons(manifest)
    assert found["train"] == "a folder; only what metadata.jsonl lists in it is read"
    assert found["gone.png"] == found["x" * 300] == "listed in metadata.jsonl, but there is no such file"
    assert found["../secret.png"] == "listed in metadata.jsonl, but outside of the folder"
    assert len(found) == 5


def test_a_list_inside_a_searched_folder_counts_from_there(folder):
    put(folder / "5_cats" / "a.png")
    write_jsonl(folder / "5_cats", {"file_name": "a.png", "text": "a cat"})
    (record,) = read_captions(scan(folder)).used
    assert (record.name, record.caption, record.repeats) == ("5_cats/a.png", "a cat", 5)


def test_listed_images_may_differ_in_their_ending_only(folder):
    put(folder / "a.png")
    put(folder / "a.jpg")
    write_jsonl(folder, {"file_name": "a.png", "text": "png"}, {"file_name": "a.jpg", "text": "jpg"})
    assert [record.caption for record in read_captions(scan(folder)).used] == ["jpg", "png"]


def test_two_lists_in_one_folder_are_refused(folder):
    put(folder / "a.png")
    write_jsonl(folder, {"file_name": "a.png", "text": "x"})
    (folder / "metadata.csv").write_text("file_name,text\na.png,y\n")
    with pytest.raises(DatasetError, match=r"holds both metadata\.jsonl and metadata\.csv; remove or rename"):
        scan(folder)


def test_no_file_of_the_user_is_changed(folder):
    put(folder / "10_a" / "a.png", "x")
    write_jsonl(folder / "10_a", {"file_name": "a.png", "text": "y"})
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    read_captions(scan(folder))
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
