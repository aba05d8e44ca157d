"""Where an evaluation is told: `evaluation.json`, its page and its image, in a folder of their own."""

from __future__ import annotations

import json
from pathlib import Path

from lora_studio.evaluate.evaluation import Evaluated
from lora_studio.evaluate.report import ReportImages, write_report
from lora_studio.evaluate.saved import RESULT
from lora_studio.files import say_unwritable, write_atomically
from lora_studio.runs import METRICS, Run


def write_evaluation(folder: Path, made: Evaluated, run: Run | None = None) -> None:
    """All three, in place of older ones; with the run's losses, if there is one. Raises StudioError."""
    path = folder / RESULT
    with say_unwritable(path):
        text = json.dumps(made.evaluation.to_json(), indent=2, ensure_ascii=False)
        write_atomically(path, f"{text}\n".encode("utf-8", "backslashreplace"))
    write_report(
        folder,
        made.evaluation,
        ReportImages(made.drawn, made.training_image),
        losses=[] if run is None else run.measurements(METRICS),
        validation=[] if run is None else run.measurements(),
    )
