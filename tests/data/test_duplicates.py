"""Of files with the same bytes the one stays that somebody has done something for, and what goes is said."""

from __future__ import annotations

import json
import shutil

import pytest
from PIL import Image

from lora_studio.data.captions import read_captions
from lora_studio.data.doctor import DoctorOptions, examine_folder
from lora_studio.data.scan import ScanOptions, scan
from lora_studio.data.sources import Source, read_sources

FIRST, COPY = "p0 (1).png", "p0.png"  # in the order of their names


@pytest.fixture
def twice(folder, paint):
    """One image under two names, without captions, beside another one."""
    paint(FIRST, 80, 70, "red")
    shutil.copyfile(folder / FIRST, folder / COPY)
    paint("other.png", 80, 70, "blue", caption="blue")
    return folder


def names(records):
    return [record.name for record in records if not record.name.startswith("other")]


def test_a_hand_written_caption_is_never_lost_to_a_copy_without_one(twice, reason):
    for captioned, other in ((FIRST, COPY), (COPY, FIRST)):
        text = (twice / captioned).with_suffix(".txt")
        text.write_text("a robot")
        manifest = read_captions(scan(twice), instance_prompt="zwx")
        assert names(manifest.used) == [captioned] and "a robot" in [one.caption for one in manifest.used]
        assert reason(manifest, other) == f"the same bytes as {captioned}"
        text.unlink()


def test_a_caption_in_a_list_counts_as_one_and_an_empty_file_does_not(twice):
    (twice / "p0.txt").write_text(" \n")
    lines = [{"file_name": FIRST, "text": "a robot"}, {"file_name": "other.png", "text": "blue"}]
    (twice / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert names(scan(twice).used) == [FIRST]


def test_the_masked_one_is_kept_wherever_its_mask_lies(twice, tmp_path, reason):
    mask = Image.new("L", (80, 70), 255)
    mask.save(twice / "p0 (1).mask.png")
    (used,) = [one for one in scan(twice).used if one.name != "other.png"]
    assert (used.name, used.mask) == (FIRST, "p0 (1).mask.png")
    (twice / "p0 (1).mask.png").unlink()
    masks = tmp_path / "masks"
    masks.mkdir()
    mask.save(masks / FIRST)
    (used,) = [one for one in scan(twice, ScanOptions(masks=masks)).used if one.name != "other.png"]
    assert (used.name, used.mask) == (FIRST, f"masks/{FIRST}")


def test_of_copies_with_as_much_the_shorter_name_stays(twice, folder, paint):
    paint("z.png", colour="green")
    for name in ("z - Copy.png", "z (2).png"):
        shutil.copyfile(folder / "z.png", folder / name)
    assert names(scan(twice).used) == ["p0.png", "z.png"]


def test_what_a_copy_had_of_its_own_is_said(twice, reason):
    (twice / "p0.txt").write_text("a robot")
    (twice / "p0 (1).txt").write_text("a red robot")
    Image.new("L", (80, 70), 255).save(twice / "p0 (1).mask.png")
    assert names(scan(twice).used) == [FIRST]  # it has a mask besides
    (twice / "p0.txt").rename(twice / "p0 (1).txt")
    (twice / "p0.txt").write_text("a robot in the sun")
    Image.new("L", (80, 70), 255).save(twice / "p0.mask.png")
    (twice / "p0 (1).mask.png").unlink()
    said = "the same bytes as p0.png; its other caption is not used"
    assert reason(scan(twice), FIRST) == said
    report, _ = examine_folder(twice, DoctorOptions(resolution=64))
    (finding,) = [one for one in report.findings if one.kind == "exact_duplicate"]
    assert finding.detail.startswith(said)


def test_across_folders_the_captioned_one_stays_too(tmp_path):
    folders = [tmp_path / "plain", tmp_path / "captioned"]
    for number, folder in enumerate(folders):
        folder.mkdir()
        Image.new("RGB", (40, 30), "red").save(folder / "a.png")
        Image.new("RGB", (40, 30), (0, 0, number)).save(folder / "own.png")
    (folders[1] / "a.txt").write_text("a robot")
    sources = [Source(folder, instance_prompt="zwx") for folder in folders]
    manifest = read_sources(sources, read_captions)
    assert [one.name for one in manifest.used] == ["plain/own.png", "captioned/a.png", "captioned/own.png"]
    (copy,) = manifest.excluded
    assert (copy.name, copy.excluded) == ("plain/a.png", "the same bytes as captioned/a.png")
