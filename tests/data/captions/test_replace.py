from __future__ import annotations

import pytest

from lora_studio.data.captions import find_replace
from lora_studio.data.captions.find_replace import BACKUPS, apply_changes, find_changes
from lora_studio.data.scan import scan
from lora_studio.errors import CaptionError


def changed(folder, find, replace, **options):
    changes = find_changes(scan(folder).used, find, replace, **options)
    return {change.file.path.name: change.after for change in changes}


def test_finding_changes_nothing_and_shows_before_and_after(folder, paint):
    paint("a.png", caption="a dog (small)")
    paint("b.png", colour="blue", caption="a cat")
    (change,) = find_changes(scan(folder).used, "dog (", "puppy (")
    assert (change.file.text, change.after) == ("a dog (small)", "a puppy (small)")
    assert (folder / "a.txt").read_text() == "a dog (small)" and not (folder / BACKUPS).exists()


def test_written_changes_leave_a_copy_and_the_other_captions_alone(folder, paint):
    paint("a.png", caption="a dog and a dog")
    paint("b.png", colour="blue", caption="a cat")
    before = (folder / "b.txt").stat().st_mtime_ns
    done, backup = apply_changes(find_changes(scan(folder).used, "dog", "cat"), folder=folder)
    assert (folder / "a.txt").read_text() == "a cat and a cat" and len(done) == 1
    assert backup and (backup / "a.txt").read_text() == "a dog and a dog"
    assert (folder / "b.txt").stat().st_mtime_ns == before and not (backup / "b.txt").exists()


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_encoding_and_line_ends_stay(folder, paint, encoding):
    paint("a.png")
    (folder / "a.txt").write_bytes("ein Hünd,\r\nzwx 🎈\r\n".encode(encoding))
    apply_changes(find_changes(scan(folder).used, "Hünd", "Hund"), folder=folder)
    assert (folder / "a.txt").read_bytes() == "ein Hund,\r\nzwx 🎈\r\n".encode(encoding)


def test_words_are_literal_unless_they_are_said_to_be_an_expression(folder, paint):
    paint("a.png", caption="a dog.")
    assert changed(folder, ".", "!") == {"a.txt": "a dog!"}
    assert changed(folder, "dog", r"\1") == {"a.txt": r"a \1."}
    assert changed(folder, r"(\w+)\.$", r"big \1", regex=True) == {"a.txt": "a big dog"}


def test_a_caption_is_never_emptied(folder, paint):
    paint("a.png", caption="dog")
    changes = find_changes(scan(folder).used, "dog", "")
    done, backup = apply_changes(changes, folder=folder)
    assert done[0].fault == "nothing would be left of it" and backup is None
    assert (folder / "a.txt").read_text() == "dog"


def test_a_caption_that_changed_since_it_was_shown_is_kept(folder, paint):
    paint("a.png", caption="a dog")
    changes = find_changes(scan(folder).used, "dog", "cat")
    (folder / "a.txt").write_text("a dog, and more")
    done, _ = apply_changes(changes, folder=folder)
    assert done[0].fault == "it was changed meanwhile"
    assert (folder / "a.txt").read_text() == "a dog, and more"


@pytest.mark.parametrize(
    ("find", "replace"),
    [("(", ""), ("a", r"\2"), ("a", r"\g<x>"), ("a", "\\"), ("a{99999999999}", "")],
    ids=str,
)
def test_an_expression_that_is_none_is_one_sentence(folder, paint, find, replace):
    paint("a.png", caption="a dog")
    with pytest.raises(CaptionError, match="no regular expression"):
        find_changes(scan(folder).used, find, replace, regex=True)


def test_an_expression_that_takes_endlessly_is_one_sentence(folder, paint, monkeypatch):
    paint("a.png", caption="a" * 60 + "!")
    monkeypatch.setattr(find_replace, "REGEX_SECONDS", 0.5)
    with pytest.raises(CaptionError, match=r"'\(a\+\)\+\$' was not done after 0.5 s"):
        find_changes(scan(folder).used, "(a+)+$", "b", regex=True)


def test_what_is_no_text_is_not_written(folder, paint):
    paint("a.png", caption="a dog")
    with pytest.raises(CaptionError, match=r"--replace .* is no Unicode text"):
        find_changes(scan(folder).used, "dog", "\udcff")


def test_finding_nothing_is_refused(folder, paint):
    paint("a.png", caption="a dog")
    with pytest.raises(CaptionError, match="--find is empty"):
        find_changes(scan(folder).used, "", "x")


@pytest.mark.parametrize(
    ("find", "replace", "regex"),
    [("fox", "fox\na cat", False), ("fox", r"fox\na cat", True), (" ", "\r", False)],
)
def test_a_replacement_that_would_make_more_captions_is_refused(folder, paint, find, replace, regex):
    paint("a.png", caption="a fox")
    (change,) = find_changes(scan(folder).used, find, replace, regex=regex)
    assert change.fault == "it would hold 2 captions in place of 1, as each line is one"
    done, backup = apply_changes([change], folder=folder)
    assert done == [change] and backup is None and (folder / "a.txt").read_text() == "a fox"


def test_lines_may_be_joined(folder, paint):
    paint("a.png", caption="a fox\na cat")
    (change,) = find_changes(scan(folder).used, "\n", ", ")
    assert change.fault == "" and change.after == "a fox, a cat"


def test_a_backslash_is_written_as_it_is(folder, paint):
    paint("a.png", caption="a fox")
    assert changed(folder, "fox", r"fox \1 \n") == {"a.txt": r"a fox \1 \n"}
