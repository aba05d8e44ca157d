"""What a line of metadata says about its own image, from the file to the record."""

from __future__ import annotations

import json

import pytest

from lora_studio.data.captions import read_captions
from lora_studio.data.manifest import Overrides
from lora_studio.data.scan import scan
from lora_studio.data.scan.metadata import read_metadata, read_overrides
from lora_studio.data.sources import Source, read_sources
from lora_studio.errors import DatasetError


@pytest.mark.parametrize(
    ("column", "value", "read"),
    [
        ("repeats", 5, {"repeats": 5}),
        ("repeats", "5", {"repeats": 5}),
        ("weight", 0.5, {"weight": 0.5}),
        ("weight", " 2.5 ", {"weight": 2.5}),
        ("focus", [0.5, 1], {"focus": (0.5, 1.0)}),
        ("focus", "0.5, 0.25", {"focus": (0.5, 0.25)}),
        ("crop", "random", {"crop": "random"}),
        ("crop", [0, 40, 800, 640], {"region": (0, 40, 800, 640)}),
        ("crop", "0 40 800 640", {"region": (0, 40, 800, 640)}),
        ("bucket", "768x512", {"bucket": (768, 512)}),
        ("flip", False, {"flip": 0.0}),
        ("flip", "true", {"flip": 0.5}),
        ("flip", 0.25, {"flip": 0.25}),
        ("weight", None, {}),
        ("bucket", " ", {}),
        ("colour", "red", {}),
    ],
)
def test_a_column_is_read_from_json_and_from_text(column, value, read):
    assert read_overrides({column: value}) == Overrides(**read)


@pytest.mark.parametrize(
    ("column", "value", "allowed"),
    [
        ("repeats", 0, "a whole number from 1 to 1000"),
        ("repeats", 1.5, "a whole number"),
        ("repeats", True, "a whole number"),
        ("repeats", 10**400, "a whole number"),
        ("weight", -1, "a number above 0, at most 100"),
        ("weight", "nan", "a number above 0"),
        ("weight", {"a": 1}, "a number above 0"),
        ("focus", [0.5], "two shares from 0 to 1"),
        ("focus", [300, 200], "two shares from 0 to 1"),
        ("crop", "center", "centre, random, focus or left, top, right, bottom"),
        ("crop", [10, 0, 10, 5], "left, top, right, bottom in whole pixels"),
        ("crop", [0, 0, 10.5, 5], "left, top, right, bottom in whole pixels"),
        ("bucket", 512, 'such as "768x512"'),
        ("bucket", "512", 'such as "768x512"'),
        ("flip", 2, "true, false or a share from 0 to 1"),
    ],
)
def test_what_cannot_be_is_refused_with_what_can(column, value, allowed):
    with pytest.raises(ValueError, match=f"as {column}; it must be .*{allowed}"):
        read_overrides({column: value})


def test_a_fault_names_file_and_line(tmp_path):
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "a.png"}\n{"file_name": "b.png", "weight": 0}\n')
    with pytest.raises(DatasetError, match=r"metadata\.jsonl has 0 as weight; it must be .*100 \(line 2\)\."):
        read_metadata(tmp_path / "metadata.jsonl")


def test_a_list_of_settings_needs_no_captions_but_one_of_captions_still_does(tmp_path):
    path = tmp_path / "metadata.csv"
    path.write_text("file_name,weight,repeats\na.png,0.5,\nb.png,,3\n")
    lines = read_metadata(path)
    assert lines["a.png"].overrides == Overrides(weight=0.5) and lines["a.png"].caption == ""
    assert lines["b.png"].overrides == Overrides(repeats=3)
    path.write_text("file_name,size\na.png,5\n")
    with pytest.raises(DatasetError, match="has no text"):
        read_metadata(path)


@pytest.fixture
def two(folder, paint):
    """Two images, of which the first has settings of its own, and captions beside them."""
    for number, name in enumerate(("a.png", "b.png")):
        paint(name, colour=(number, 0, 0), caption=name)
    line = {"file_name": "a.png", "text": "listed", "repeats": 7, "weight": 0.25}
    (folder / "metadata.jsonl").write_text(json.dumps(line))
    return folder


def test_settings_reach_the_record_and_a_caption_beside_the_image_still_wins(two):
    a, b = read_captions(scan(two, repeats=2)).used
    assert (a.repeats, a.overrides, a.caption) == (7, Overrides(repeats=7, weight=0.25), "a.png")
    assert (b.repeats, b.overrides) == (2, Overrides())


def test_its_own_weight_goes_before_that_of_its_source(two):
    a, b = read_sources([Source(two, weight=3.0, repeats=2)], read_captions).used
    assert (a.weight, b.weight) == (0.25, 3.0) and (a.repeats, b.repeats) == (7, 2)


def test_its_own_repeats_go_before_those_in_the_name_of_its_folder(folder, paint):
    (folder / "10_cat").mkdir()
    paint("10_cat/a.png", colour="red")
    paint("10_cat/b.png", colour="blue")
    (folder / "metadata.jsonl").write_text('{"file_name": "10_cat/a.png", "repeats": 1}')
    assert [(record.repeats, record.caption) for record in scan(folder).used] == [(1, "cat"), (10, "cat")]
