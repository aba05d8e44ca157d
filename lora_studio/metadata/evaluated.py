"""What a file's metadata, model card and sidecars say of its evaluation: figures, and nothing that was shown.

No prompt goes in, as those like the training captions are captions; no name of a training image, no path.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

from lora_studio.errors import StudioError
from lora_studio.evaluate.report.words import MEASURES, headline, interval_in_words, measure_words
from lora_studio.evaluate.result import Evaluation
from lora_studio.evaluate.saved import RESULT, evaluation_folder, read_evaluation
from lora_studio.files import digest
from lora_studio.runs import Run
from lora_studio.runs.reading import STATE
from lora_studio.text import plural, shown

EVALUATION = "lora_studio.evaluation."  # before the keys
SHEET = "evaluation.png"
_IN_SHORT = ("fidelity", "prompt_following", "drift", "leakage")  # of a sidecar, which is read in a corner
_FACTS = ("encoder", "encoder_sha256")


def evaluation_keys(evaluation: Evaluation) -> dict[str, str]:
    """Keys of a file's metadata: verdicts, every measure with its interval, and what they rest on."""
    known = [one for one in evaluation.measures if math.isfinite(one.interval.value)]
    found = {one.name: interval_in_words(one.interval, measure_words(one.name)) for one in known}
    found |= {name: str(evaluation.facts[name]) for name in _FACTS if name in evaluation.facts}
    found |= {"prompts": str(len(evaluation.questions)), "seeds": str(len(evaluation.seeds))}
    found |= {"verdict": headline(evaluation), "strength": f"{evaluation.variant.strength:g}"}
    return {f"{EVALUATION}{name}": shown(value, limit=200) for name, value in found.items()}


def evaluation_in(metadata: Mapping[str, str]) -> dict[str, str]:
    """What a file's metadata says of its evaluation, without the prefix."""
    found = {key: value for key, value in metadata.items() if key.startswith(EVALUATION)}
    return {key.removeprefix(EVALUATION): value for key, value in found.items()}


def evaluation_section(told: Mapping[str, str], image: str = "") -> str:
    """Of a model card: the verdict, the sheet at the path `image` if there is one, and a table of figures.

    `told` is of `evaluation_in`, and may come from any file: its values have to be harmless as Markdown.
    """
    asked = f"{_counted(told, 'prompts')} with {_counted(told, 'seeds')} each"
    by = f", seen by the image encoder {told['encoder']}" if "encoder" in told else ""
    lines = [
        "## Evaluation",
        f"**{told.get('verdict', 'no verdict')}**: {asked}, drawn by the base and with this file at strength "
        f"{told.get('strength', '1')}{by}. Intervals are 95 %.",
    ]
    if image:
        lines.append(f"![base and tuned images side by side, with the figures below]({image})")
    rows = [
        f"| {words.title} | {told[name]} | {words.line} |" for name, words in MEASURES.items() if name in told
    ]
    if rows:
        lines.append("\n".join(["| measure | value | what it says |", "|---|---|---|", *rows]))
    return "\n\n".join(lines)


def _counted(told: Mapping[str, str], what: str) -> str:
    count = told.get(what, "")
    return plural(int(count), what.removesuffix("s")) if count.isdecimal() and len(count) < 9 else what


def evaluation_in_short(told: Mapping[str, str]) -> str:
    """A line: "evaluated: learned; fidelity +0.613 (+0.563 to +0.663)"; "" if it was not."""
    if "verdict" not in told:
        return ""
    figures = [f"{measure_words(name).title.lower()} {told[name]}" for name in _IN_SHORT if name in told]
    return "; ".join([f"evaluated: {told['verdict']}", *figures])


def evaluation_of_target(target: Path) -> Evaluation | None:
    """The evaluation that lies with a run or a LoRA file, if it is of what the file holds now.

    Nothing if there is none, or it is damaged, of an older file or of another checkpoint than the one that
    the run ended with: figures of something else are worse than none.
    """
    path = evaluation_folder(target) / RESULT
    try:
        evaluation = read_evaluation(path) if path.is_file() else None
        learned = "" if evaluation is None else _learned(target)
    except (StudioError, OSError):
        return None
    if evaluation is None or evaluation.facts.get("learned_sha256") != learned:
        return None
    return evaluation


def _learned(target: Path) -> str:
    """As `tools.evaluate` tells what it has drawn with: of a run its checkpoint's state, else the file."""
    if not target.is_dir():
        return digest(target)
    run = Run(target)
    step = run.file_step()
    return digest((run.newest_checkpoint() if step is None else run.checkpoint_of(step)) / STATE)


def sheet_of_target(target: Path) -> str:
    """The path of evaluation.png from a run's folder, or from that of a file; "" if it is not there."""
    folder = evaluation_folder(target)
    return f"{folder.name}/{SHEET}" if (folder / SHEET).is_file() else ""
