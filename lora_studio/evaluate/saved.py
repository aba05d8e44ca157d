"""Evaluations as they lie in folders: where that of a run or file is, and what it says."""

from __future__ import annotations

import json
from pathlib import Path

from lora_studio.errors import StudioError, reason_of
from lora_studio.evaluate.result import Evaluation, evaluation_of
from lora_studio.runs.reading import unreadable
from lora_studio.text import command_of

RESULT = "evaluation.json"
MOST_BYTES = 10**8


def evaluation_folder(target: Path) -> Path:
    """Where `lora-studio evaluate` puts that of a run's folder, or of a file."""
    return target / "evaluation" if target.is_dir() else target.with_name(f"{target.stem}_evaluation")


def saved_evaluation(target: Path) -> Evaluation:
    """That of a run, of a LoRA file, of a folder that holds one, or of an evaluation.json itself.

    Raises StudioError if there is none, or it is damaged.
    """
    places = [evaluation_folder(target) / RESULT, target / RESULT, target]
    for path in places if target.suffix != ".json" else [target]:
        if path.name.endswith(".json") and path.is_file():
            return read_evaluation(path)
    if not target.exists():
        raise StudioError(f"{target} is not there; give a run's folder, or a LoRA file, that was evaluated.")
    advice = f"make one with: {command_of('evaluate', target)}"
    raise StudioError(f"{target} has no evaluation; {advice}")


def read_evaluation(path: Path) -> Evaluation:
    """What an evaluation.json says. Raises StudioError if it is something else."""
    if why := unreadable(path, most_bytes=MOST_BYTES):
        raise StudioError(f"{path} cannot be read as an evaluation ({why}).")
    try:
        evaluation = evaluation_of(json.loads(path.read_bytes().decode("utf-8")))
        _check(evaluation)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        advice = "evaluate the run or file again"
        raise StudioError(f"{path} is no evaluation as we write it ({reason_of(error)}); {advice}.") from None
    return evaluation


def _check(evaluation: Evaluation) -> None:
    """What the types promise and JSON does not. Raises TypeError or ValueError."""
    for one in evaluation.measures:
        interval = one.interval
        numbers = [interval.value, interval.low, interval.high, *one.per_question.values()]
        numbers += [plain for plain in (one.base, one.tuned) if plain is not None]
        if not all(isinstance(number, int | float) for number in numbers):
            raise TypeError(f"a figure of {one.name} is no number")
    texts = [evaluation.name, *evaluation.notes, *(one.prompt for one in evaluation.questions)]
    texts += [part for one in evaluation.verdicts for part in (one.word, one.measure, one.sentence)]
    texts += [one.name for one in evaluation.measures] + [one.training_image for one in evaluation.nearest]
    if not all(isinstance(text, str) for text in texts):
        raise TypeError("one of its texts is none")
    if any(not 0 <= one.question < len(evaluation.questions) for one in evaluation.nearest):
        raise ValueError("a near image is of a prompt that is not there")
