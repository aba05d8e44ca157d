from __future__ import annotations

import pytest

from lora_studio.data.captions.find_replace import BACKUPS, Backup, replace_caption
from lora_studio.errors import CaptionError


def test_every_run_has_a_folder_of_its_own_even_within_a_second(tmp_path):
    for number in range(3):
        backup = Backup(tmp_path)
        replace_caption(tmp_path / "a.txt", b"%d" % number, before=b"before %d" % number, backup=backup)
    kept = sorted(path.read_bytes() for path in (tmp_path / BACKUPS).glob("*/a.txt"))
    assert kept == [b"before 0", b"before 1", b"before 2"]
    assert (tmp_path / "a.txt").read_bytes() == b"2"


def test_nothing_is_kept_of_nothing(tmp_path):
    replace_caption(tmp_path / "a.txt", b"a ball", before=None, backup=Backup(tmp_path))
    replace_caption(tmp_path / "b.txt", b"a ball", before=b" \n", backup=Backup(tmp_path))
    assert not (tmp_path / BACKUPS).exists()


def test_a_caption_is_not_replaced_when_no_copy_can_be_kept(tmp_path):
    (tmp_path / BACKUPS).write_text("a file where the folder should be")
    (tmp_path / "a.txt").write_text("mine")
    with pytest.raises(CaptionError, match="no copy"):
        replace_caption(tmp_path / "a.txt", b"new", before=b"mine", backup=Backup(tmp_path))
    assert (tmp_path / "a.txt").read_text() == "mine"


def test_a_caption_that_cannot_be_written_is_one_sentence_and_leaves_nothing_behind(tmp_path):
    (tmp_path / "a.txt").mkdir()
    with pytest.raises(CaptionError, match="cannot be written"):
        replace_caption(tmp_path / "a.txt", b"new", before=None, backup=Backup(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_the_longest_name_that_a_file_system_takes_can_be_written_and_kept(tmp_path):
    path = tmp_path / ("n" * 250 + ".txt")
    replace_caption(path, b"new", before=b"old", backup=Backup(tmp_path))
    (kept,) = (tmp_path / BACKUPS).glob("*/*.txt")
    assert (path.read_bytes(), kept.read_bytes(), kept.name) == (b"new", b"old", path.name)
