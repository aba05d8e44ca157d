from __future__ import annotations

import unicodedata

import pytest

from lora_studio.data.captions.files import find_captions, split_encoding
from lora_studio.data.scan import scan


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
    assert file.fault == "neither UTF-8 nor UTF-16" and file.text == ""


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16-le", "utf-16-be"])
def test_mark_encoding_and_text_make_up_the_bytes_again(encoding):
    text = "a rèd ball,\r\ntrigger 🎈"
    data = text.encode(encoding) if encoding.startswith("utf-8") else ("\ufeff" + text).encode(encoding)
    mark, name, found = split_encoding(data)
    assert found == text and mark + found.encode(name) == data
