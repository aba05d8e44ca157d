"""Captions in a folder, written by a captioner that says the colour of each image's corner."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar

import pytest

from lora_studio.data.captioners import CaptionResult, CaptionWriter, WriterOptions
from lora_studio.data.captioners.write import write_captions
from lora_studio.data.captions import LEDGER, read_captions
from lora_studio.data.captions.find_replace import BACKUPS
from lora_studio.data.captions.wording import Wording
from lora_studio.data.images.decode import load_image
from lora_studio.data.manifest import Manifest, Record
from lora_studio.data.scan import scan

NAMES = {(255, 0, 0): "red", (0, 0, 255): "blue", (255, 255, 255): "white", (0, 0, 0): ""}


class Colours(CaptionWriter):
    """A captioner of the tests; `asked` says what it looked at, `stop_after` when it fails."""

    name: ClassVar[str] = "colours"
    uses: ClassVar[tuple[str, ...]] = ("prompt",)
    batch_size = 2
    stop_after = 1000

    def __init__(self, options: WriterOptions | None = None) -> None:
        super().__init__(options or WriterOptions())
        self.asked: list[str] = []

    @property
    def settings(self) -> dict[str, str | int | float]:
        return {"prompt": self.options.prompt}

    def describe(self, records: Sequence[Record]) -> list[CaptionResult]:
        if len(self.asked) >= self.stop_after:
            raise KeyboardInterrupt
        self.asked += [record.name for record in records]
        words = [NAMES.get(load_image(record.path).getpixel((0, 0))) for record in records]
        return [
            CaptionResult(fault="no word for it") if word is None else CaptionResult(word) for word in words
        ]


def captions_in(folder):
    return {path.name: path.read_text("utf-8") for path in sorted(folder.glob("*.txt"))}


def write(folder, writer=None, **options):
    return write_captions(scan(folder), writer or Colours(), folder=folder, **options)


@pytest.fixture
def three(folder, paint):
    for name, colour in (("a", "red"), ("b", "blue"), ("c", "white")):
        paint(f"{name}.png", colour=colour)
    return folder


def test_images_without_a_caption_get_one_and_the_record_says_from_whom(three):
    (three / "b.txt").write_text("my own words")
    outcome = write(three)
    assert captions_in(three) == {"a.txt": "red\n", "b.txt": "my own words", "c.txt": "white\n"}
    assert (outcome.written, dict(outcome.kept), outcome.backup) == (2, {"by hand": 1}, None)
    lines = [json.loads(line) for line in (three / LEDGER).read_text().splitlines()]
    assert [(line["caption"], line["image"], line["author"]) for line in lines] == [
        ("a.txt", "a.png", "colours"),
        ("c.txt", "c.png", "colours"),
    ]


def test_training_reads_what_was_written_and_the_record_is_no_image(three):
    write(three, Colours(WriterOptions(wording=Wording(trigger="zwx"))))
    assert [record.caption for record in read_captions(scan(three)).used] == [
        "zwx, red",
        "zwx, blue",
        "zwx, white",
    ]


def test_after_a_stop_only_what_is_missing_is_looked_at(three):
    stopped = Colours()
    stopped.stop_after = 2
    with pytest.raises(KeyboardInterrupt):
        write(three, stopped)
    assert list(captions_in(three)) == ["a.txt", "b.txt"]
    again = Colours()
    outcome = write(three, again)
    assert again.asked == ["c.png"] and (outcome.written, outcome.done_before) == (1, 2)
    assert write(three).written == 0


def test_overwriting_that_was_stopped_goes_on_where_it_was(three):
    for name in "abc":
        (three / f"{name}.txt").write_text(f"mine {name}")
    stopped = Colours()
    stopped.stop_after = 2
    with pytest.raises(KeyboardInterrupt):
        write(three, stopped, replace="all")
    again = Colours()
    write(three, again, replace="all")
    assert again.asked == ["c.png"]
    kept = {path.name: path.read_text() for path in (three / BACKUPS).glob("*/*.txt")}
    assert kept == {"a.txt": "mine a", "b.txt": "mine b", "c.txt": "mine c"}


def test_what_is_replaced_is_shown_and_kept(three):
    (three / "a.txt").write_bytes("schön".encode("utf-16"))
    seen = []
    outcome = write(three, replace="all", on_image=seen.append)
    assert (seen[0].name, seen[0].before, seen[0].after) == ("a.png", "schön", "red")
    assert [(one.done, one.total) for one in seen] == [(1, 3), (2, 3), (3, 3)]
    assert outcome.backup and (outcome.backup / "a.txt").read_bytes() == "schön".encode("utf-16")


def test_a_caption_that_stands_elsewhere_than_beside_the_image_counts_as_one(three):
    """A file beside the image would hide it."""
    found = scan(three)
    listed = replace(found.used[0], caption="from a list of captions", captioned_by="a list")
    outcome = write_captions(Manifest((listed, *found.used[1:])), Colours(), folder=three)
    assert dict(outcome.kept) == {"by hand": 1} and list(captions_in(three)) == ["b.txt", "c.txt"]


def test_redo_replaces_a_captioners_words_and_never_a_persons(three):
    (three / "b.txt").write_text("my own words")
    write(three)
    (three / "c.txt").write_text("white, which I corrected\n")
    other = Colours(WriterOptions(prompt="other"))
    outcome = write(three, other, replace="generated")
    assert other.asked == ["a.png"] and dict(outcome.kept) == {"by hand": 2}
    assert captions_in(three)["c.txt"] == "white, which I corrected\n"


def test_other_settings_alone_replace_nothing(three):
    write(three)
    outcome = write(three, Colours(WriterOptions(wording=Wording(prefix="a"))))
    assert outcome.written == 0 and dict(outcome.kept) == {"colours": 3}


def test_an_image_that_changed_is_looked_at_again_when_asked(three, paint):
    write(three)
    paint("a.png", colour=(0, 0, 255), width=50)
    writer = Colours()
    write(three, writer, replace="generated")
    assert writer.asked == ["a.png"] and captions_in(three)["a.txt"] == "blue\n"


def test_a_caption_written_by_hand_while_the_captioner_works_is_kept(three):
    class Slow(Colours):
        def describe(self, records: Sequence[Record]) -> list[CaptionResult]:
            (three / "a.txt").write_text("by hand, just now")
            return super().describe(records)

    outcome = write(three, Slow())
    assert captions_in(three)["a.txt"] == "by hand, just now"
    assert outcome.faults == [("a.png", "a.txt was changed meanwhile and is kept")]


def test_images_that_got_no_caption_are_named_with_the_reason(three, paint):
    paint("d.png", colour="black")
    paint("e.png", colour="pink")
    (three / "a.txt").write_bytes(b"caf\xe9")
    outcome = write(three, replace="all")
    assert outcome.faults == [
        ("a.png", "a.txt cannot be read (neither UTF-8 nor UTF-16 with its mark)"),
        ("d.png", "the captioner said nothing"),
        ("e.png", "no word for it"),
    ]
    assert (three / "a.txt").read_bytes() == b"caf\xe9" and not (three / "d.txt").exists()


def test_a_dry_run_shows_the_captions_and_writes_nothing(three):
    (three / "a.txt").write_text("mine")
    before = sorted(three.iterdir())
    seen = []
    outcome = write(three, replace="all", dry_run=True, on_image=seen.append)
    assert outcome.written == 3 and [one.after for one in seen] == ["red", "blue", "white"]
    assert sorted(three.iterdir()) == before and (three / "a.txt").read_text() == "mine"


def test_images_themselves_are_never_touched(three):
    before = {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in three.glob("*.png")}
    write(three, replace="all")
    assert before == {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in three.glob("*.png")}


def test_names_with_spaces_and_of_any_script_are_captioned(folder, paint):
    names = ["a b.png", "ü.png", "猫.v2.png", "🎈.png", "n" * 250 + ".png"]
    for number, name in enumerate(names):
        paint(name, width=40 + number)
    assert write(folder).written == len(names)
    assert {path.stem for path in folder.glob("*.txt")} == {name[:-4] for name in names}


def test_a_repeats_folders_name_is_no_caption_but_a_list_of_captions_is(folder, paint):
    for kind in ("10_fox", "5_owl"):
        (folder / kind).mkdir()
    paint("10_fox/a.png", colour="red")
    paint("5_owl/b.png", colour="blue")
    (folder / "5_owl" / "metadata.jsonl").write_text('{"file_name": "b.png", "text": "an owl"}\n', "utf-8")
    outcome = write(folder)
    assert (outcome.written, outcome.kept.total()) == (1, 1)
    assert (folder / "10_fox" / "a.txt").read_text("utf-8").strip() == "red"
    assert not (folder / "5_owl" / "b.txt").exists()
