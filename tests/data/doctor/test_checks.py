"""What the planted folder cannot hold: roles, masks, whole sets, and how they are read for the doctor."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from data_config import data_config
from photographs import Planted
from PIL import Image

from lora_studio.data.buckets import assign
from lora_studio.data.captioners import CAPTIONERS
from lora_studio.data.captions import LEDGER
from lora_studio.data.captions.find_replace import BACKUPS
from lora_studio.data.captions.statistics import caption_statistics
from lora_studio.data.doctor import (
    CHECKS,
    ClipTokenizer,
    DoctorOptions,
    examine,
    examine_folder,
    read_anyway,
)
from lora_studio.data.doctor.finding import DoctorReport, Finding
from lora_studio.data.doctor.look import Case, Requirements
from lora_studio.data.scan import ScanOptions
from lora_studio.data.sources import Source
from lora_studio.errors import DatasetError


def found(report: DoctorReport, kind: str) -> list[tuple[str, str]]:
    return [(finding.severity, finding.path) for finding in report.findings if finding.kind == kind]


def report_of(*sources: Source) -> DoctorReport:
    manifest, faults = read_anyway(sources, CAPTIONERS["sidecar"])
    manifest = assign(manifest, data_config(resolution=256), stride=64)
    return examine(manifest, Requirements(256, 64, {"CLIP": ClipTokenizer()}), faults=faults)


@pytest.fixture
def train(tmp_path: Path) -> Planted:
    planted = Planted(tmp_path / "train")
    for number in range(6):
        planted.add(f"{number}.png")
    return planted


def test_an_image_that_is_also_held_out_is_leakage(train: Planted, tmp_path: Path) -> None:
    held = Planted(tmp_path / "held")
    held.seed = 100
    held.add("new.png")
    shutil.copyfile(train.folder / "0.png", held.add("copied.png"))
    with Image.open(train.folder / "1.png") as image:
        held.add("alike.jpg", image.resize((280, 280)), quality=80)
    report = report_of(Source(train.folder), Source(held.folder, role="validation"))
    assert found(report, "leakage") == [("error", "train/1.png"), ("warning", "train/0.png")]
    assert not found(report, "exact_duplicate") and not found(report, "near_duplicate")
    details = {finding.path: finding.detail for finding in report.findings if finding.kind == "leakage"}
    assert "looks like held/alike.jpg" in details["train/1.png"]
    assert "the same bytes as held/copied.png, a validation image" in details["train/0.png"]


@pytest.mark.parametrize(
    ("count", "class_words", "severities"),
    [(3, "dog", ["warning"]), (3, "", ["warning"]), (6, "dog", []), (6, "", ["note"]), (10, "", [])],
)
def test_too_few_depends_on_the_purpose(
    count: int, class_words: str, severities: list[str], tmp_path: Path
) -> None:
    planted = Planted(tmp_path / "few")
    for number in range(count):
        planted.add(f"{number}.png")
    report = report_of(Source(planted.folder, trigger="zwx style", class_words=class_words))
    assert [severity for severity, _ in found(report, "too_few")] == severities


def test_each_trigger_needs_enough_images_of_its_own(train: Planted, tmp_path: Path) -> None:
    other = Planted(tmp_path / "other")
    other.seed = 50
    for number in range(2):
        other.add(f"{number}.png").with_suffix(".txt").write_text(f"vkq robot {number}")
    report = report_of(
        Source(train.folder, trigger="zwx style", class_words="style"),
        Source(other.folder, trigger="vkq robot"),
    )
    (finding,) = [finding for finding in report.findings if finding.kind == "too_few"]
    assert finding.detail.startswith('2 images of "vkq robot"')
    assert not found(report, "trigger_missing")


def test_without_any_image_there_is_one_error_and_each_file_says_why(tmp_path: Path) -> None:
    (tmp_path / "broken.jpg").write_text("<html>")
    report, _ = examine_folder(tmp_path)
    assert found(report, "too_few") == [("error", "")] and found(report, "unusable") == [
        ("error", "broken.jpg")
    ]
    assert report.plan["used"] == 0 and report.plan["buckets"] == {}


def test_a_trigger_that_no_caption_holds_is_one_error(train: Planted) -> None:
    report, _ = examine_folder(train.folder, DoctorOptions(trigger="vkq robot", resolution=256))
    assert found(report, "trigger_missing") == [("error", "")]


def test_a_folder_without_any_captions_is_told_so_once(train: Planted) -> None:
    for text in train.folder.glob("*.txt"):
        text.unlink()
    report, _ = examine_folder(train.folder, DoctorOptions(resolution=256))
    assert found(report, "caption_missing") == [("error", "")]


def test_one_caption_for_all_is_a_choice_and_only_noted(train: Planted) -> None:
    for text in train.folder.glob("*.txt"):
        text.write_text("a zwx dog")
    report, _ = examine_folder(train.folder, DoctorOptions(resolution=256))
    assert found(report, "caption_identical") == [("note", "")]


def test_an_instance_prompt_is_not_held_against_its_images(train: Planted) -> None:
    for text in train.folder.glob("*.txt"):
        text.unlink()
    report = report_of(Source(train.folder, instance_prompt="a zwx dog", class_words="dog"))
    assert report.findings == ()


def test_masks_that_would_stop_a_training_are_an_error_and_the_rest_is_still_said(train: Planted) -> None:
    Image.new("L", (10, 50), 255).save(train.folder / "1.mask.png")
    (train.folder / "2.txt").write_text("")
    report = report_of(Source(train.folder))
    assert found(report, "refused") == [("error", "")] and found(report, "caption_empty") == [
        ("error", "2.png")
    ]
    (finding,) = [finding for finding in report.findings if finding.kind == "refused"]
    assert "1.mask.png (10x50 has not the shape of 1.png, 320x320)" in finding.detail


def test_how_a_file_was_read_is_noted(train: Planted) -> None:
    frames = [train.fresh().quantize() for _ in range(2)]
    train.add("moving.gif", frames[0], save_all=True, append_images=frames[1:])
    report, _ = examine_folder(train.folder, DoctorOptions(resolution=256))
    assert found(report, "read_note") == [("note", "moving.gif")]


def test_a_subfolder_with_images_that_is_not_read_is_a_warning(train: Planted) -> None:
    (train.folder / "more").mkdir()
    (train.folder / "notes").mkdir()
    train.fresh().save(train.folder / "more" / "a.png")
    report, _ = examine_folder(train.folder, DoctorOptions(resolution=256))
    assert found(report, "ignored") == [("warning", "more"), ("note", "notes")]
    report, _ = examine_folder(train.folder, DoctorOptions(resolution=256, recursive=True))
    assert found(report, "caption_missing") == [("error", "more/a.png")]


def test_a_file_that_changes_while_it_is_looked_at_is_one_sentence(train: Planted) -> None:
    manifest, _ = read_anyway([Source(train.folder)], CAPTIONERS["sidecar"])
    train.fresh().save(train.folder / "3.png")
    with pytest.raises(DatasetError, match=r"3\.png has changed since the folder was scanned"):
        examine(assign(manifest, data_config(resolution=256), stride=64), Requirements(256, 64, {}))


def test_progress_is_told_for_every_image(train: Planted) -> None:
    told: list[tuple[int, int]] = []
    examine_folder(train.folder, DoctorOptions(resolution=256), on_progress=lambda *done: told.append(done))
    assert told == [(number, 6) for number in range(1, 7)]


def test_every_kind_says_what_to_do_in_a_sentence(train: Planted) -> None:
    source = Source(train.folder, ScanOptions(), trigger="nothing has it")
    for finding in report_of(source, replace(source, role="validation")).findings:
        assert finding.advice.endswith(".") and finding.kind


@pytest.mark.parametrize(
    ("trigger", "severities", "words"),
    [
        ("zwx dog", [], ""),
        ("sks dog", ["note"], "if seldom used: sks is token 48,136"),
        ("red dog", ["warning"], "they are common: red is token 736"),
        ("dog", ["warning"], '"dog" is nothing but the class words'),
    ],
)
def test_a_trigger_that_the_base_knows_is_said(
    trigger: str, severities: list[str], words: str, train: Planted
) -> None:
    report = report_of(Source(train.folder, trigger=trigger, class_words="dog"))
    known = [finding for finding in report.findings if finding.kind == "trigger_known"]
    assert [finding.severity for finding in known] == severities
    assert all(words in finding.detail for finding in known)
    assert report.plan["triggers"][0].startswith(f'trigger "{trigger}": ')


def test_a_trigger_inside_of_a_longer_word_is_said(train: Planted) -> None:
    (train.folder / "0.txt").write_text("two vkqs")
    (train.folder / "1.txt").write_text("a vkq")
    report = report_of(Source(train.folder, trigger="vkq", class_words="dog"))
    (finding,) = [one for one in report.findings if one.kind == "trigger_read_otherwise"]
    assert (finding.severity, finding.path) == ("warning", "0.png") and '"vkqs"' in finding.detail


def even_width(case: Case) -> Iterator[Finding]:
    """A check as somebody would add one: a function, and its line in the table."""
    for record in case.manifest.used:
        if record.width % 2 == 0:
            yield Finding("note", record.name, f"{record.width} pixels wide", "Leave it as it is.")


def test_a_check_is_added_by_its_function_and_its_line_in_the_table(
    train: Planted, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Image.open(train.folder / "0.png") as image:
        image.resize((301, 300)).save(train.folder / "odd.png")
        width = image.width
    (train.folder / "odd.txt").write_text("a dog")
    before = report_of(Source(train.folder))
    monkeypatch.setitem(CHECKS.entries, "even_width", f"{__name__}:even_width")
    report = report_of(Source(train.folder))
    added = [finding for finding in report.findings if finding.kind == "even_width"]
    names = {image["path"] for image in report.to_json()["plan"]["images"]}
    assert {finding.path for finding in added} == names - {"odd.png"}
    assert all(finding.detail == f"{width} pixels wide" for finding in added if finding.path == "0.png")
    assert [finding for finding in report.findings if finding.kind != "even_width"] == [*before.findings]
    assert report.to_json()["findings"][-1]["kind"] == "even_width"


def test_most_images_lost_is_an_error(train: Planted) -> None:
    for number in range(6):
        (train.folder / f"bad{number}.heic").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")
    severities = [severity for severity, _ in found(examine_folder(train.folder)[0], "unusable")]
    assert severities == ["warning"] * 6
    (train.folder / "bad6.heic").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\1mif1heic")
    severities = [severity for severity, _ in found(examine_folder(train.folder)[0], "unusable")]
    assert severities == ["error"] * 7


def test_images_with_one_caption_are_one_finding(train: Planted) -> None:
    for number in range(5):
        (train.folder / f"{number}.txt").write_text("a dog" if number < 3 else "a cat")
    report, _ = examine_folder(train.folder, DoctorOptions(resolution=256))
    assert found(report, "caption_identical") == [("warning", "0.png"), ("warning", "3.png")]
    first, second = (one for one in report.findings if one.kind == "caption_identical")
    assert first.detail == '3 images have the caption "a dog": 0.png, 1.png, 2.png'
    assert (first.other, second.other) == ("1.png", "4.png")


def test_a_second_caption_that_is_not_read_is_named(train: Planted) -> None:
    (train.folder / "0.caption").write_text("something else")
    (train.folder / "1.caption").write_text((train.folder / "1.txt").read_text())  # says the same
    listed = [{"file_name": "2.png", "text": "another"}]
    (train.folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, listed)))
    report, manifest = examine_folder(train.folder, DoctorOptions(resolution=256))
    assert found(report, "read_note") == [("note", "0.png"), ("note", "2.png")]
    details = {one.path: one.detail for one in report.findings if one.kind == "read_note"}
    assert details["0.png"] == "0.caption says otherwise, and is not read: 0.txt is"
    assert details["2.png"] == "metadata.jsonl says otherwise, and is not read: 2.txt is"
    assert caption_statistics(manifest.used).not_read == ("0.caption",)


def test_signs_of_other_programs_are_named_with_our_way(train: Planted) -> None:
    (train.folder / "0.txt").write_text("(masterpiece:1.2), a dog")
    report, _ = examine_folder(train.folder, DoctorOptions(resolution=256))
    (finding,) = [one for one in report.findings if one.kind == "other_syntax"]
    assert finding.detail.startswith("weights in 0.png") and "(masterpiece:1.2)" in finding.detail
    assert ("warning", f"other syntax: {finding.detail}. {finding.advice}") in report.plan_rows()


@pytest.mark.parametrize(
    ("prompt", "kind", "way"),
    [
        ("a dog --n blurry --w 512 --d 5", "options behind the prompt in samples.prompts", "samples.steps"),
        ("<lora:old:0.8> a dog", "calls of LoRAs in samples.prompts", "[[base.loras]]"),
    ],
)
def test_signs_of_other_programs_in_prompts_are_named_too(
    prompt: str, kind: str, way: str, train: Planted
) -> None:
    _, manifest = examine_folder(train.folder, DoctorOptions(resolution=256))
    prompts = [("samples.prompts", "a dog"), ("samples.prompts", prompt)]
    report = examine(manifest, Requirements(256, 64, {}, prompts=prompts))
    (finding,) = [one for one in report.findings if one.kind == "other_syntax"]
    assert finding.detail.startswith(kind) and way in finding.advice


def test_advice_names_commands_and_keys(train: Planted) -> None:
    for text in train.folder.glob("*.txt"):
        text.unlink()
    report, _ = examine_folder(train.folder, DoctorOptions(resolution=512))
    advice = {one.kind: one.advice for one in report.findings}
    assert "`lora-studio caption FOLDER`" in advice["caption_missing"]
    assert "data.instance_prompt" in advice["caption_missing"] and "data.resolution" in advice["tiny"]


def test_own_records_are_no_files(train: Planted) -> None:
    (train.folder / LEDGER).write_text("{}\n")
    (train.folder / BACKUPS).mkdir()
    (train.folder / ".lora-studio-1234.tmp").touch()
    report, manifest = examine_folder(train.folder, DoctorOptions(resolution=256))
    assert manifest.excluded == () and not found(report, "ignored") and report.plan["files"] == 6
