"""What people see of an evaluation: a page of one file, and one image for model cards.

`evaluation.html` and `evaluation.png` hold no path, no name of a user, and nothing from the network.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lora_studio.evaluate.report.page import KIND, report_page
from lora_studio.evaluate.report.sheet import report_sheet
from lora_studio.evaluate.report.thumbnails import ReportImages
from lora_studio.evaluate.result import Evaluation
from lora_studio.files import say_unwritable, write_atomically
from lora_studio.pages import write_page

__all__ = ["PAGE", "SHEET", "ReportImages", "write_report"]

PAGE, SHEET = "evaluation.html", "evaluation.png"


def write_report(
    folder: Path,
    evaluation: Evaluation,
    images: ReportImages,
    *,
    losses: Sequence[Mapping[str, Any]] = (),
    validation: Sequence[Mapping[str, Any]] = (),
) -> list[Path]:
    """Write `evaluation.html` and `evaluation.png`; where they are.

    `losses` and `validation` are the lines of a run's metrics.jsonl and validation.jsonl. An older report is
    replaced. Raises StudioError if another file is in its place.
    """
    page, sheet = folder / PAGE, folder / SHEET
    with say_unwritable(page):
        content = report_page(evaluation, images, losses=losses, validation=validation)
        write_page(page, content, kind=KIND)
    with say_unwritable(sheet):
        write_atomically(sheet, report_sheet(evaluation, images))
    return [page, sheet]
