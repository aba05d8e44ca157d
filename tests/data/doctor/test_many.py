"""What the doctor says stays readable, and is said in time, of very many images."""

from __future__ import annotations

import time

from lora_studio.data.doctor.finding import DoctorReport, Finding, suggest
from lora_studio.data.doctor.page import page
from lora_studio.data.manifest import Manifest, Record

COUNT = 30_000
RECORDS = tuple(Record(path=f"/x/{number:05}.png", name=f"{number:05}.png") for number in range(COUNT))
PLAN = {"files": COUNT, "used": COUNT, "buckets": {}, "resolution": 512, "stride": 64, "cropped_away": 0.0}
REPORT = DoctorReport(
    tuple(Finding("warning", one.name, "soft", "Replace it.", "blur", leave_out=True) for one in RECORDS),
    PLAN,
)


def test_the_list_of_what_to_leave_out_takes_time_in_proportion_to_the_images() -> None:
    began = time.process_time()
    suggested = suggest(REPORT, RECORDS)
    assert list(suggested) == [record.name for record in RECORDS]
    assert time.process_time() - began < 1.5  # 0.05 here; looking up each name among all takes ten


def test_the_page_of_very_many_findings_is_small_and_says_how_many_there_are() -> None:
    text = page(REPORT, Manifest(RECORDS), title="many")
    assert len(text) < 500_000
    assert "And 29940 more: " in text and "and others, which --json names" in text
