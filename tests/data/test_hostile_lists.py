"""Lists of captions and folders that somebody made to do harm, or a program by mistake."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from lora_studio.console import Screen
from lora_studio.console.dataset import print_findings
from lora_studio.data.doctor import DoctorOptions, examine_folder
from lora_studio.data.scan import ScanOptions, scan
from lora_studio.errors import DatasetError


def listed(folder: Path, *names: str) -> None:
    lines = (json.dumps({"file_name": name, "text": "a"}) for name in names)
    (folder / "metadata.jsonl").write_text("\n".join(lines), "utf-8")


@pytest.mark.parametrize("through", ["lnk/outside.png", "sub/lnk/../../../outside.png", "../outside.png"])
def test_no_image_is_read_from_outside_of_the_folder(folder, paint, reason, through):
    paint("a.png")
    (folder.parent / "outside.png").write_bytes(paint("b.png", colour="blue").read_bytes())
    (folder / "b.png").unlink()
    (folder / "sub").mkdir()
    (folder / "lnk").symlink_to(folder.parent)
    (folder / "sub" / "lnk").symlink_to(folder)
    listed(folder, "a.png", through)
    manifest = scan(folder)
    assert [record.name for record in manifest.used] == ["a.png"]
    assert reason(manifest, through) == "listed in metadata.jsonl, but outside of the folder"


def test_a_link_to_a_folder_inside_is_followed_where_a_list_names_it(folder, paint):
    (folder / "sub").mkdir()
    paint("sub/a.png")
    (folder / "lnk").symlink_to(folder / "sub")
    listed(folder, "lnk/a.png")
    assert [record.name for record in scan(folder).used] == ["lnk/a.png"]


def test_links_in_a_circle_are_no_file(folder, paint, reason):
    paint("a.png")
    (folder / "round").symlink_to(folder / "round")
    listed(folder, "a.png", "round/b.png")
    assert reason(scan(folder), "round/b.png") == "listed in metadata.jsonl, but there is no such file"


@pytest.mark.parametrize("name", ["x" * 300 + ".png", "a\0b.png", "y/" * 1000 + "z.png", "." * 4000])
def test_names_that_no_file_can_have_are_not_found(folder, paint, reason, name):
    paint("a.png", 80, 70)
    listed(folder, "a.png", name)
    report, manifest = examine_folder(folder, DoctorOptions(resolution=64))
    assert reason(manifest, name) == "listed in metadata.jsonl, but there is no such file"
    (finding,) = [one for one in report.findings if one.path == name]
    assert finding.advice == "Correct its line in that list, or remove it."
    json.dumps(report.to_json()).encode("utf-8")


def test_a_name_of_thousands_of_letters_is_one_short_sentence(folder, paint):
    paint("a.png", 80, 70)
    listed(folder, "a.png", "x" * 5000)
    with pytest.raises(DatasetError, match="has a file_name of 5,000 letters in line 2") as caught:
        scan(folder)
    assert len(str(caught.value)) < 500


def test_thousands_of_missing_files_are_counted_and_not_told_one_by_one(folder, paint):
    paint("a.png", 80, 70)
    listed(folder, "a.png", *(f"gone/{number}.png" for number in range(20_000)))
    began = time.process_time()
    report, manifest = examine_folder(folder, DoctorOptions(resolution=64))
    print_findings(report, Screen(), title="images")
    assert (
        time.process_time() - began < 6
    )  # it was a second for every 7,000, and four times that in the doctor
    assert len(manifest.records) < 200
    (rest,) = [one for one in manifest.records if one.name == "metadata.jsonl"]
    assert rest.excluded == "lists 19,900 more files that are not there"
    (finding,) = [one for one in report.findings if one.path == "metadata.jsonl"]
    assert (finding.severity, finding.advice) == ("warning", "Correct the list, or remove those lines.")


@contextmanager
def nested(folder: Path, name: str, depth: int) -> Iterator[int]:
    """The innermost of folders in folders, as a descriptor; they are removed at the end, with its files.

    Step by step, as neither pytest nor shutil can remove so many.
    """
    here = os.open(folder, os.O_RDONLY)
    for _ in range(depth):
        os.mkdir(name, dir_fd=here)
        here = _entered(here, name)
    try:
        yield here
    finally:
        for file in os.listdir(here):
            os.unlink(file, dir_fd=here)
        for _ in range(depth):
            here = _entered(here, "..")
            os.rmdir(name, dir_fd=here)
        os.close(here)


def _entered(here: int, name: str) -> int:
    inside = os.open(name, os.O_RDONLY, dir_fd=here)
    os.close(here)
    return inside


def test_folders_a_thousand_deep_are_searched(folder, paint):
    data = paint("a.png").read_bytes()
    with nested(folder, "d", 1_100) as innermost:
        file = os.open("b.png", os.O_WRONLY | os.O_CREAT, dir_fd=innermost)
        os.write(file, data + b"\0")
        os.close(file)
        manifest = scan(folder, ScanOptions(recursive=True))
    assert [one.name for one in manifest.used] == ["a.png", "d/" * 1_100 + "b.png"]


def test_folders_deeper_than_a_path_can_be_end_in_a_reason(folder, paint):
    paint("a.png")
    with nested(folder, "d" * 250, 20):
        manifest = scan(folder, ScanOptions(recursive=True))
    (deep,) = manifest.excluded
    assert deep.excluded.startswith("cannot be read")
