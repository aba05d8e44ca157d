"""What the recipes of the second pocket base teach it: three seeds of training, two judges.

`python benchmarks/flow_learning.py [--seeds 1 2 3] [--judges 11 12] [--runs runs/flow_learning]`

Style and subject are trained with each seed and asked for on prompts like those of `learning.py`; of the
style on others, and more of them, as its recipe was chosen on those. Each judge names what it sees in every
image; of each prompt the mean over the seeds is taken, and what is demanded has to hold for the whole 95 %
interval over prompts. What was trained and judged is kept, so it may be stopped and called again, and several
processes may take different seeds.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from experiments import (
    BASE_PLAIN,
    LIMITS,
    TUNED_PLAIN,
    TUNED_TRIGGER,
    Question,
    style_questions,
    subject_questions,
    tuned,
)
from figures import Share, interval_of, machine, sha256_of, table, write_json
from images import LORA_GUIDANCE, STEPS, Prompt, generate, load_pipeline
from judge import DEFAULT_FOLDER, SEED, Judge, load_or_train
from PIL import Image
from trained import trained

from lora_studio.pocket.samples import FLOW_STYLE, SUBJECT
from lora_studio.recipe import Recipe
from lora_studio.recipe.load import PRESET_FOLDER, load_recipe

BASE = Path("lora_studio/pocket/flow_weights")
TASKS = ("style", "subject")
RESULTS = Path(__file__).parent / "results"
PIECES, REPORT, TABLE = (
    RESULTS / "flow_learning",
    RESULTS / "flow_learning.json",
    RESULTS / "flow_learning.md",
)
LIMIT = LIMITS[FLOW_STYLE]
SUBJECT_BACKGROUND_FALL = 0.10
CHOSEN_ON = 200  # the first questions, on which recipes of the style were compared
PROMPTS = {"style": 600, "subject": 200}
ABOUT = f"""# What is learned by `pocket_flow`

`benchmarks/flow_learning.py`, at guidance {LORA_GUIDANCE:g} with {STEPS} steps, on prompts that no training
image has: shares of images in which the judge sees it, of each prompt the mean over the seeds, with a 95 %
interval over prompts. A demand is met if the whole interval meets it. Each judge is a small CNN trained on
real renders only."""


@dataclass(frozen=True)
class Piece:
    """What the judges see in all images of a task: of the base (seed 0), or of a file that was trained."""

    task: str
    seed: int
    sha256: str
    questions: str  # their digest
    prompts: int
    seen: dict[str, dict[str, list[list[str]]]]
    """By judge and arm, of each prompt the object, background and style."""


@dataclass(frozen=True)
class Finding:
    """One demand, as one judge sees it."""

    task: str
    judge: str
    name: str
    value: Share
    by_seed: list[float]
    least: float | None = None
    most: float | None = None

    @property
    def holds(self) -> bool:
        """Whether the whole interval meets the demand."""
        return (self.least is None or self.value.low >= self.least) and (
            self.most is None or self.value.high <= self.most
        )

    @property
    def demand(self) -> str:
        return f">= {self.least:.0%}" if self.least is not None else f"<= {self.most:.0%}"


def questions_of(task: str, count: int) -> list[Question]:
    """Those of `learning.py`; of the style, with prompts and noise that its recipe was not chosen on."""
    if task == "subject":
        return subject_questions(count, 0)
    drawn = style_questions(CHOSEN_ON + 2 * count, 0, FLOW_STYLE)
    known = {one.without_trigger for one in drawn[:CHOSEN_ON]}
    return [one for one in drawn[CHOSEN_ON:] if one.without_trigger not in known][:count]


def digest_of(questions: Sequence[Question]) -> str:
    """Of all that is asked, and with which noise."""
    return hashlib.sha256(json.dumps([asdict(one) for one in questions]).encode()).hexdigest()


def recipe_of(task: str, seed: int) -> Recipe:
    """The shipped one, without previews."""
    changes = (f"training.seed={seed}", "samples.prompts=[]")
    return load_recipe(PRESET_FOLDER / f"pocket_flow_{task}.toml", changes=changes)


def look(task: str, seed: int, file: Path, count: int, judges: dict[str, Judge]) -> Piece:
    """Draw and judge what is not known yet of the file, or of the base if the seed is 0."""
    place, digest = PIECES / f"{task}_{seed}.json", sha256_of(file)
    questions = questions_of(task, count)
    asked = digest_of(questions)
    known = Piece(**json.loads(place.read_text("utf-8"))) if place.is_file() else None
    same = known is not None and (known.sha256, known.questions) == (digest, asked)
    if known is not None and same and set(judges) <= set(known.seen):
        return known
    pipe = load_pipeline(BASE)

    def arm(name: str, prompts: list[str]) -> list[Image.Image]:
        wanted = [Prompt(text, one.seed) for text, one in zip(prompts, questions, strict=True)]
        return generate(pipe, wanted, guidance=LORA_GUIDANCE, name=f"{task}, seed {seed}: {name}")

    plain = [one.without_trigger for one in questions]
    if seed == 0:
        images = {BASE_PLAIN: arm(BASE_PLAIN, plain)}
    else:
        with tuned(pipe, file):
            called = arm(TUNED_TRIGGER, [one.with_trigger for one in questions])
            images = {TUNED_TRIGGER: called, TUNED_PLAIN: arm(TUNED_PLAIN, plain)}
    seen = {
        name: {
            one: [[v.object, v.background, v.style] for v in judge.classify(made)]
            for one, made in images.items()
        }
        for name, judge in judges.items()
    }
    piece = Piece(task, seed, digest, asked, count, seen)
    write_json(asdict(piece), place)
    return piece


def findings(base: Piece, pieces: Sequence[Piece], judge: str) -> list[Finding]:
    """What is demanded of a task, as a judge sees it in all seeds together."""
    questions = questions_of(base.task, base.prompts)

    def hits(piece: Piece, arm: str, place: int, wanted: Sequence[str]) -> np.ndarray:
        seen = [one[place] for one in piece.seen[judge][arm]]
        return np.array([one == asked for one, asked in zip(seen, wanted, strict=True)], np.float64)

    def found(name: str, by_seed: list[np.ndarray], **limits: float | None) -> Finding:
        means = [round(float(one.mean()), 4) for one in by_seed]
        return Finding(base.task, judge, name, interval_of(np.mean(by_seed, axis=0)), means, **limits)

    def fall(place: int, wanted: list[str]) -> list[np.ndarray]:
        before = hits(base, BASE_PLAIN, place, wanted)
        return [before - hits(one, TUNED_TRIGGER, place, wanted) for one in pieces]

    is_style = base.task == "style"
    place, taught = (2, FLOW_STYLE) if is_style else (0, SUBJECT)
    shown, leaking = (
        [hits(one, arm, place, [taught] * len(questions)) for one in pieces]
        for arm in (TUNED_TRIGGER, TUNED_PLAIN)
    )
    backgrounds = fall(1, [one.background for one in questions])
    told = [
        found("shown with the trigger", shown, least=LIMIT.style if is_style else LIMIT.subject),
        found("shown without it", leaking, most=LIMIT.leak),
    ]
    if is_style:
        told.append(found("objects lost", fall(0, [one.object for one in questions]), most=LIMIT.object_fall))
    most = LIMIT.background_fall if is_style else SUBJECT_BACKGROUND_FALL
    return [*told, found("backgrounds lost", backgrounds, most=most)]


def markdown(found: Sequence[Finding]) -> str:
    """A row for each demand and judge."""
    header = ("task", "judge", "", "all seeds", "demanded", "by seed", "")
    rows = [
        (
            *(one.task, one.judge, one.name, one.value, one.demand),
            ", ".join(f"{value:.1%}" for value in one.by_seed),
            "holds" if one.holds else "FAILS",
        )
        for one in found
    ]
    return table(header, rows)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--judges", nargs="+", type=int, default=[SEED, SEED + 1], help="seeds of theirs")
    parser.add_argument("--prompts", type=int, help=f"of each task; if not given, {PROMPTS}")
    parser.add_argument("--runs", type=Path, default=Path("runs/flow_learning"))
    parser.add_argument("--judge", type=Path, default=DEFAULT_FOLDER, help="folder of the judges' weights")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; 0: as many as torch likes")
    return parser.parse_args()


def main() -> None:
    """Train and look at what is missing, then tell what is there."""
    options = _options()
    if options.threads:
        torch.set_num_threads(options.threads)
    judges = {str(seed): load_or_train(options.judge, seed) for seed in options.judges}
    weights = next((BASE / "transformer").glob("*.safetensors"))
    asked = {task: options.prompts or PROMPTS[task] for task in options.tasks}
    found, digests = list[Finding](), dict[str, str]()
    for task in options.tasks:
        runs = {seed: options.runs / f"{task}_{seed}" for seed in options.seeds}
        files = {seed: trained(recipe_of(task, seed), folder) for seed, folder in runs.items()}
        base = look(task, 0, weights, asked[task], judges)
        pieces = [look(task, seed, file, asked[task], judges) for seed, file in files.items()]
        digests |= {f"{task}_{one.seed}": one.sha256 for one in pieces}
        for name in judges:
            found += findings(base, pieces, name)
    different = {
        task: len({one.with_trigger for one in questions_of(task, count)}) for task, count in asked.items()
    }
    settings = {
        "prompts": asked,
        "different_prompts": different,
        "guidance": LORA_GUIDANCE,
        "steps": STEPS,
        "machine": machine(),
    }
    accuracy = {name: judge.accuracy_on_renders() for name, judge in judges.items()}
    told = [asdict(one) | {"demand": one.demand, "holds": one.holds} for one in found]
    write_json(settings | {"files": digests, "judges": accuracy, "findings": told}, REPORT)
    TABLE.write_text(f"{ABOUT}\n\n{markdown(found)}\n", "utf-8")
    print(markdown(found))


if __name__ == "__main__":
    main()
