from __future__ import annotations

import os
import unicodedata

import pytest

from lora_studio.data.captions import find_captions, read_caption_file, read_captions, split_encoding
from lora_studio.data.scan import scan
from lora_studio.errors import DatasetError


def test_the_file_that_training_reads_is_found_else_the_one_to_write(folder, paint):
    paint("a.png", caption="a ball")
    paint("b.png", colour="blue")
    (folder / "b.txt").write_text(" \n")
    (folder / "b.caption").write_text("a cat")
    paint("c.v2.png", colour="green")
    paint("d.png", colour="white")
    (folder / "d.TXT").touch()
    found = find_captions(scan(folder).used)
    assert [(file.path.name, file.text) for file in found] == [
        ("a.txt", "a ball"),
        ("b.caption", "a cat"),
        ("c.v2.txt", ""),
        ("d.TXT", ""),
    ]


def test_an_accent_spelt_in_two_ways_is_one_name(folder, paint):
    paint(unicodedata.normalize("NFD", "é") + ".png")
    name = unicodedata.normalize("NFC", "é") + ".txt"
    (folder / name).write_text("an accent")
    (file,) = find_captions(scan(folder).used)
    assert (file.path.name, file.text) == (name, "an accent")


def test_a_file_that_is_no_text_has_a_fault_and_no_words(folder, paint):
    paint("a.png")
    (folder / "a.txt").write_bytes(b"caf\xe9")
    (file,) = find_captions(scan(folder).used)
    assert file.fault == "neither UTF-8 nor UTF-16 with its mark" and file.text == ""


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16-le", "utf-16-be"])
def test_mark_encoding_and_text_make_up_the_bytes_again(encoding):
    text = "a rèd ball,\r\ntrigger 🎈"
    data = text.encode(encoding) if encoding.startswith("utf-8") else ("\ufeff" + text).encode(encoding)
    mark, name, found = split_encoding(data)
    assert found == text and mark + found.encode(name) == data


@pytest.mark.parametrize("link", [False, True])
def test_what_is_no_regular_or_small_file_has_a_fault_for_every_reader(folder, paint, tmp_path, link):
    paint("a.png")
    paint("b.png", colour="blue")
    os.mkfifo(folder / "a.txt")  # reading it would wait for ever
    if link:
        (folder / "b.txt").symlink_to(tmp_path / "nowhere")
    else:
        (folder / "b.txt").write_bytes(b"x" * 1_000_001)
    faults = ["not a regular file", "No such file or directory" if link else "1 MB; at most 1 MB are read"]
    assert [file.fault for file in find_captions(scan(folder).used)] == faults
    with pytest.raises(DatasetError) as caught:
        read_captions(scan(folder), instance_prompt="x")
    assert f"a.txt ({faults[0]}), b.txt ({faults[1]})" in str(caught.value)


def test_a_file_that_is_not_there_is_no_fault(tmp_path):
    file = read_caption_file(tmp_path / "a.txt")
    assert (file.data, file.fault, file.text) == (None, "", "")


def test_each_line_that_says_something_is_a_caption_of_its_own(folder, paint):
    """Sidecars as OneTrainer and sd-scripts read them; `caption` is all of it, for whoever wants one."""
    paint("a.png")
    (folder / "a.txt").write_bytes("\ufeff a ball \r\n\r\nein grüner Ball\r\n".encode())
    (record,) = read_captions(scan(folder)).used
    assert record.lines == ("a ball", "ein grüner Ball") and record.caption == "a ball ein grüner Ball"
    (folder / "a.txt").write_text("a ball\n")
    (record,) = read_captions(scan(folder)).used
    assert record.lines == () and record.caption == "a ball"
