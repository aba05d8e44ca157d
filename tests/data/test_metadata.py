"""Lists of captions: what is wrong with one is said in a sentence."""

from __future__ import annotations

import pytest

from lora_studio.data.scan.metadata import read_metadata
from lora_studio.errors import DatasetError

GOOD = b'{"file_name": "a.png", "text": "a"}\n'


def captions_in(path):
    return {name: line.caption for name, line in read_metadata(path).items()}


@pytest.mark.parametrize(
    ("name", "data", "fault"),
    [
        ("metadata.jsonl", b"", "has no file_name; name the columns"),
        ("metadata.jsonl", GOOD + b"[1]\n", "is no JSON object in line 2"),
        ("metadata.jsonl", GOOD + b'{"file_name": "b\n', "is no JSON object in line 2"),
        ("metadata.jsonl", b"[" * 100_000, "is no JSON object in line 1"),
        ("metadata.jsonl", GOOD + b'\n{"text": "b"}\n', "has no file_name in line 3"),
        ("metadata.jsonl", GOOD + GOOD, r"lists a\.png more than once"),
        ("metadata.jsonl", b'{"file_name": "a.png", "text": ["a"]}', r"has \['a'\] as text in line 1"),
        (
            "metadata.jsonl",
            b'{"file_name": "a.png", "text": "\\ud800"}',
            "has a text in line 1 that is no Unicode text",
        ),
        ("metadata.jsonl", b'{"file_name": "a.png", "txt": "a"}', "has no text .*; did you mean 'txt'; name"),
        ("metadata.jsonl", b"\xff\x00", "is neither UTF-8 nor UTF-16; save"),
        ("metadata.csv", b"file_name,caption\na.png,a\n", r"has no text \(it has file_name, caption\)"),
        ("metadata.csv", b"Datei;text\na.png;a\n", r"has no file_name \(it has Datei, text\)"),
        ("metadata.csv", b"file_name,text\n,a\n", "has no file_name in line 2"),
        (
            "metadata.csv",
            b'file_name,text\na.png,"' + b"x" * 200_000,
            "is no table of comma-separated values",
        ),
    ],
)
def test_what_is_no_list_of_captions_is_one_sentence(tmp_path, name, data, fault):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(DatasetError, match=rf"{name} {fault}") as caught:
        read_metadata(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_a_file_without_text_has_an_empty_caption(tmp_path):
    (tmp_path / "metadata.jsonl").write_bytes(GOOD + b'{"file_name": "b.png", "text": null}\n')
    assert captions_in(tmp_path / "metadata.jsonl") == {"a.png": "a", "b.png": ""}


def test_a_row_of_csv_may_have_too_few_or_too_many_cells(tmp_path):
    (tmp_path / "metadata.csv").write_text("file_name, text\na.png\nb.png,b,more\n")
    assert captions_in(tmp_path / "metadata.csv") == {"a.png": "", "b.png": "b"}


@pytest.mark.parametrize("mark", [",", ";", "\t"])
def test_columns_may_be_separated_as_excel_does_where_numbers_have_a_comma(tmp_path, mark):
    caption = "a dog, sitting; asleep"
    table = f'file_name{mark}text\r\na.png{mark}"{caption}"\r\n'
    (tmp_path / "metadata.csv").write_bytes(b"\xef\xbb\xbf" + table.encode())
    assert captions_in(tmp_path / "metadata.csv") == {"a.png": caption}
