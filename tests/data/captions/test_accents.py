"""Accents are spelt as one code point or as two: the base reads both alike, and so do we in captions."""

from __future__ import annotations

import json
from unicodedata import normalize

import pytest

from lora_studio.data.captioners import FileName, WriterOptions
from lora_studio.data.captioners.write import write_captions
from lora_studio.data.captions import read_captions
from lora_studio.data.captions.find_replace import find_changes
from lora_studio.data.captions.statistics import caption_statistics
from lora_studio.data.captions.wording import Wording
from lora_studio.data.doctor import DoctorOptions, examine_folder
from lora_studio.data.scan import scan
from lora_studio.lora_file.lora_file import LoraFile
from lora_studio.recipe.data import DataConfig
from lora_studio.tools.compare import clashing_words

ONE, TWO = normalize("NFC", "café style"), normalize("NFD", "café style")
SPELT = [(ONE, TWO), (TWO, ONE)]


@pytest.fixture
def five(folder, paint):
    def write(words):
        for number in range(5):
            paint(f"{number}.png", 80 + number, 70, caption=f"a robot {number}, {words}")
        return folder

    return write


@pytest.mark.parametrize(("written", "typed"), SPELT)
def test_the_doctor_and_the_statistics_find_the_trigger(five, written, typed):
    report, _ = examine_folder(five(written), DoctorOptions(trigger=typed, resolution=64))
    assert not [one for one in report.findings if one.kind.startswith("trigger")]
    assert caption_statistics(scan(five(written)).used, trigger=typed).without_trigger == ()


@pytest.mark.parametrize(("written", "typed"), SPELT)
def test_a_recipes_words_and_captions_compare(five, written, typed, tmp_path):
    config = DataConfig(images=tmp_path, trigger=typed, instance_prompt=typed, caption_suffix=typed)
    record, *_ = read_captions(scan(five(written))).used
    assert config.trigger in record.caption and config.caption_suffix in record.caption
    assert Wording(trigger=config.trigger).apply(f"a sign, {written}") == f"a sign, {ONE}"
    assert Wording(blacklist=typed).apply(f"a sign, {written}") == "a sign"


@pytest.mark.parametrize(("written", "typed"), SPELT)
@pytest.mark.parametrize("regex", [False, True])
def test_find_and_replace_keep_the_spelling_of_the_file(five, written, typed, regex):
    """And of all else in it."""
    records = scan(five(f"{written}, na\u0131\u0308ve, \u212b")).used  # an Angstrom sign stays one
    find, instead = typed.split()[0], normalize("NFC", "bistró")
    changes = find_changes(records, find, instead, regex=regex)
    assert len(changes) == 5
    form = "NFC" if written == ONE else "NFD"
    expected = f"a robot 0, {normalize(form, instead)} style, na\u0131\u0308ve, \u212b"
    assert changes[0].data.decode("utf-8") == expected


def test_a_letter_is_not_found_below_its_accent(five):
    assert find_changes(scan(five(TWO)).used, "cafe", "tea") == []


def test_both_spellings_in_one_file_are_found(five):
    (first, *_) = find_changes(scan(five(f"{ONE}, {TWO}")).used, "café", "tea")
    assert first.data.decode("utf-8").endswith("tea style, tea style")


def test_tags_of_both_spellings_are_one_tag(folder, paint):
    paint("a.png", colour="red", caption=f"{ONE}, a")
    paint("b.png", colour="blue", caption=f"{TWO}, b")
    assert [(tag.what, tag.captions) for tag in caption_statistics(scan(folder).used).tags] == [(ONE, 2)]


def test_names_are_written_as_captions_in_one_spelling(folder, paint):
    paint(normalize("NFD", "café.png"))
    write_captions(scan(folder), FileName(WriterOptions()), folder=folder)
    (text,) = folder.glob("*.txt")
    assert text.read_text("utf-8") == normalize("NFC", "café\n")


def test_a_list_finds_its_file_in_a_subfolder(folder, paint):
    name = normalize("NFD", "café.png")
    (folder / "sub").mkdir()
    paint(f"sub/{name}")
    line = {"file_name": normalize("NFC", f"sub/{name}"), "text": "a cup"}
    (folder / "metadata.jsonl").write_text(json.dumps(line), "utf-8")
    (record,) = scan(folder).used
    assert record.caption == "a cup" and record.path.endswith(name)


@pytest.mark.parametrize(("first", "second"), SPELT)
def test_trigger_words_of_two_files_compare(first, second, tmp_path):
    said = [{"modelspec.trigger_phrase": words} for words in (first, second)]
    files = [LoraFile(tmp_path / "a.safetensors", {}, metadata) for metadata in said]
    assert clashing_words(files)[:1] == [ONE.split()[0]]
