from __future__ import annotations

import unicodedata
from dataclasses import replace

import pytest

from lora_studio.data.captions import LEDGER, Ledger, LedgerEntry, sha256
from lora_studio.errors import CaptionError

ENTRY = LedgerEntry(
    "a.txt", "a.png", "blip", {"model": "m"}, {"trigger": "zwx"}, "p", sha256(b"a ball\n"), "now"
)


def test_the_author_is_known_while_the_bytes_are_the_same(tmp_path):
    Ledger(tmp_path).add(ENTRY)
    ledger = Ledger(tmp_path)
    assert ledger.author(tmp_path / "a.txt", b"a ball\n") == ENTRY
    assert ledger.author(tmp_path / "a.txt", b"a red ball\n") is None
    assert ledger.author(tmp_path / "b.txt", b"a ball\n") is None


def test_a_line_that_a_crash_cut_short_is_passed_over_and_hides_nothing(tmp_path):
    Ledger(tmp_path).add(ENTRY)
    with (tmp_path / LEDGER).open("a") as file:
        file.write('{"caption": "b.txt", "pic')
    later = replace(ENTRY, caption="c.txt")
    Ledger(tmp_path).add(later)
    ledger = Ledger(tmp_path)
    assert ledger.author(tmp_path / "a.txt", b"a ball\n") == ENTRY
    assert ledger.author(tmp_path / "c.txt", b"a ball\n") == later


@pytest.mark.parametrize("line", ["[]", "3", "{}", '{"caption": 1}', "\udcff", "null"])
def test_lines_that_are_no_entries_are_passed_over(tmp_path, line):
    (tmp_path / LEDGER).write_bytes(line.encode("utf-8", "surrogateescape") + b"\n")
    assert Ledger(tmp_path).author(tmp_path / "a.txt", b"a ball\n") is None


def test_an_entry_of_an_older_caption_stays_true(tmp_path):
    """A stop between record and caption leaves the old caption, which is still its captioner's."""
    ledger = Ledger(tmp_path)
    ledger.add(ENTRY)
    ledger.add(replace(ENTRY, author="florence", caption_sha256=sha256(b"a cat\n")))
    assert Ledger(tmp_path).author(tmp_path / "a.txt", b"a ball\n").author == "blip"


def test_names_in_any_script_and_spelling_are_found(tmp_path):
    name = unicodedata.normalize("NFD", "é猫 🎈.txt")
    Ledger(tmp_path).add(replace(ENTRY, caption=name, image="\udcff.png"))
    composed = unicodedata.normalize("NFC", name)
    assert Ledger(tmp_path).author(tmp_path / composed, b"a ball\n").image == "\udcff.png"


def test_a_ledger_that_cannot_be_read_or_written_is_one_sentence(tmp_path):
    (tmp_path / LEDGER).mkdir()
    with pytest.raises(CaptionError, match="cannot be read"):
        Ledger(tmp_path)
    with pytest.raises(CaptionError, match="cannot be written to"):
        Ledger(tmp_path / "missing").add(ENTRY)


def test_an_entry_that_the_first_version_wrote_is_known(tmp_path):
    line = '{"caption": "a.txt", "picture": "a.png", "author": "blip", "settings": {"model": "m"}, '
    line += '"wording": {"trigger": "zwx"}, "picture_sha256": "p", '
    line += f'"caption_sha256": "{ENTRY.caption_sha256}", "written_at": "now"}}\n'
    (tmp_path / LEDGER).write_text(line)
    assert Ledger(tmp_path).author(tmp_path / "a.txt", b"a ball\n") == ENTRY
