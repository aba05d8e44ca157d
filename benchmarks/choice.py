"""Whether the checkpoint that `lora-studio choose` takes is better than the last one, as the judge sees it.

`python benchmarks/choice.py [--tasks style subject] [--seeds 1 2 3] [--runs runs/choice]`

The shipped recipes of the pocket base's style and subject, trained three times too long. The checkpoints are
measured on a few prompts, beside renders of what was taught that no run was trained on, and one is chosen by
the rule of `evaluate.choosing`. Then the judge, which knows nothing of that, counts what images of the chosen
and of the last checkpoint show, with prompts that the choice never saw, and fidelity less drift of the one is
compared with that of the other, question by question. Training, choice and judgement of each run are pieces
with results of their own, so this may be stopped and called again.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from experiments import Question, style_questions, subject_questions
from figures import Share, interval_of, machine, table, write_json
from images import DEFAULT_BASE, LORA_GUIDANCE, Prompt, generate, load_pipeline
from judge import DEFAULT_FOLDER, Judge, load_or_train
from PIL import Image

from lora_studio.pocket.samples import STYLE, SUBJECT
from lora_studio.pocket.scenes import NATIVE, draw, held_out_scenes, sample_scene
from lora_studio.recipe.evaluate import EvaluateConfig
from lora_studio.recipe.load import PRESET_FOLDER, load_recipe
from lora_studio.runs import Run, step_of
from lora_studio.tools.choose import ChoiceRequest, choose_of_run
from lora_studio.training.finish import Finished
from lora_studio.training.finish.export import ExportRequest, export_run
from lora_studio.training.session import is_finished, train

RESULTS = Path(__file__).parent / "results"
PIECES, REPORT, TABLE = RESULTS / "choice", RESULTS / "choice.json", RESULTS / "choice.md"
TOO_LONG = 3
CHECKPOINTS = 6  # of a run, all of which are kept
REFERENCES, REFERENCE_SEED = 24, 31
BUDGET = {name: EvaluateConfig.model_fields[name].default for name in ("drift", "leakage")}
ABOUT = """# The chosen checkpoint and the last one

The shipped recipes of the pocket base's style and subject, trained three times too long, by
`benchmarks/choice.py`. *Chosen* by fidelity, drift and leakage as `lora-studio choose` measures them; what
stands here is what the judge sees, with prompts that the choice never saw: the share of images with the
trigger that show what was taught (*fidelity*), and how far images without it changed, of how far another
noise changes them (*drift*). *Better by*: fidelity less drift of the chosen one, less that of the last one,
with a 95 % interval over prompts; below 0 the last one was better."""


@dataclass(frozen=True)
class Judged:
    """What the judge sees of one checkpoint."""

    step: int
    fidelity: float
    drift: float
    leaking: float


@dataclass(frozen=True)
class Piece:
    """One run."""

    task: str
    seed: int
    steps: int
    chosen: Judged
    last: Judged
    within_budget: bool
    why: str
    better_by: Share

    @property
    def holds(self) -> bool:
        """Whether the chosen one is better, or as good within the interval."""
        return self.better_by.high >= 0


def train_too_long(task: str, seed: int, runs: Path) -> Path:
    """A finished run, which a later call goes on with. Raises SystemExit if it was stopped."""
    folder, preset = runs / f"pocket_{task}_{seed}", PRESET_FOLDER / f"pocket_{task}.toml"
    if is_finished(folder):
        return folder
    steps = TOO_LONG * load_recipe(preset).training.steps
    kept = (f"training.checkpoint_every={steps // CHECKPOINTS}", "training.keep_checkpoints=1000")
    changes = (f"training.steps={steps}", *kept, f"training.seed={seed}", "samples.prompts=[]")
    result = train(
        load_recipe(preset, changes=changes), folder, resume=any(folder.glob("checkpoints/step_*"))
    )
    if not isinstance(result, Finished):
        raise SystemExit(f"{task}, seed {seed}: stopped after step {result.step}; the next call goes on.")
    return folder


@cache
def references(task: str, folder: Path) -> Path:
    """A folder of renders of what was taught, of scenes that no training image has."""
    folder = folder / f"references_{task}"
    folder.mkdir(parents=True, exist_ok=True)
    for number, scene in enumerate(held_out_scenes(REFERENCES, seed=REFERENCE_SEED)):
        if task == "subject":
            seed = REFERENCE_SEED * 10**6 + number
            scene = sample_scene(seed, name=SUBJECT, colour="red", background=scene.background, pairs=0.0)
        image = draw(scene, NATIVE, NATIVE, style=STYLE) if task == "style" else draw(scene, NATIVE, NATIVE)
        image.save(folder / f"{number:02}.png")
    return folder


def measure(task: str, seed: int, judge: Judge, *, prompts: int, runs: Path) -> Piece:
    """Train, choose and judge."""
    folder = train_too_long(task, seed, runs)
    changes = {**BUDGET, "images": references(task, runs), "first_seed": 1000}
    found = choose_of_run(folder, ChoiceRequest(changes)).choice
    last = max(step_of(path) for path in Run(folder).checkpoints())
    step = found.taken.variant.step
    assert step is not None
    questions = (style_questions if task == "style" else subject_questions)(prompts, 0)
    plain = [Prompt(one.without_trigger, one.seed) for one in questions]
    before, otherwise = of_base(tuple(plain))
    rows = {one: _scores(folder, one, task, questions, judge, before) for one in {step, last}}
    usual = float(np.mean(distances(before, otherwise)))
    score = {one: shown - moved / usual for one, (shown, moved, _) in rows.items()}
    judged = {
        one: Judged(one, *(round(float(value), 4) for value in (shown.mean(), moved.mean() / usual, leak)))
        for one, (shown, moved, leak) in rows.items()
    }
    return Piece(
        task=task,
        seed=seed,
        steps=last,
        chosen=judged[step],
        last=judged[last],
        within_budget=found.within,
        why=found.why,
        better_by=interval_of(score[step] - score[last]),
    )


def _scores(
    folder: Path, step: int, task: str, questions: Sequence[Question], judge: Judge, before: list[Image.Image]
) -> tuple[np.ndarray, np.ndarray, float]:
    """Of each question whether its image shows what was taught, and how far the one without trigger moved."""
    out = folder / "judged" / f"step_{step:06}"
    (made,) = export_run(folder, ExportRequest(("kohya",), step, folder=out, force=True))
    pipe, path = load_pipeline(DEFAULT_BASE), made.made.paths[0]
    pipe.load_lora_weights(str(path.parent), weight_name=path.name)
    name = f"{folder.name} step {step}"
    with_trigger = [Prompt(one.with_trigger, one.seed) for one in questions]
    without = [Prompt(one.without_trigger, one.seed) for one in questions]
    called = generate(pipe, with_trigger, guidance=LORA_GUIDANCE, name=f"{name}, called")
    after = generate(pipe, without, guidance=LORA_GUIDANCE, name=f"{name}, plain")
    shown, leaked = ([_shows(task, one) for one in judge.classify(some)] for some in (called, after))
    return np.asarray(shown, np.float64), distances(before, after), float(np.mean(leaked))


def _shows(task: str, seen: object) -> bool:
    return getattr(seen, "style", "") == STYLE if task == "style" else getattr(seen, "object", "") == SUBJECT


@cache
def of_base(prompts: tuple[Prompt, ...]) -> tuple[list[Image.Image], list[Image.Image]]:
    """The base's images, and those with another noise."""
    base, others = load_pipeline(DEFAULT_BASE), [Prompt(p.text, p.seed + 500_000) for p in prompts]
    own = generate(base, list(prompts), guidance=LORA_GUIDANCE, name="base")
    return own, generate(base, others, guidance=LORA_GUIDANCE, name="base, other noise")


def distances(some: Sequence[Image.Image], others: Sequence[Image.Image]) -> np.ndarray:
    """Of each pair, the root mean square of the pixels' differences."""
    pairs = zip(some, others, strict=True)
    return np.array([np.sqrt(np.square(_levels(a) - _levels(b)).mean()) for a, b in pairs])


def _levels(image: Image.Image) -> np.ndarray:
    return np.asarray(image, np.float64)


def markdown(found: Sequence[Piece]) -> str:
    """A row a run."""
    header = (
        "task",
        "seed",
        "chosen",
        "last",
        "fidelity",
        "of the last",
        "drift",
        "of the last",
        "better by",
        "",
    )
    rows = [
        (
            *(one.task, one.seed, one.chosen.step, one.last.step),
            *(f"{100 * value:.0f} %" for value in (one.chosen.fidelity, one.last.fidelity)),
            *(f"{value:.2f}" for value in (one.chosen.drift, one.last.drift)),
            f"{one.better_by.share:+.3f} ({one.better_by.low:+.3f} to {one.better_by.high:+.3f})",
            "holds" if one.holds else "FAILS",
        )
        for one in found
    ]
    return table(header, rows)


def pieces(folder: Path) -> list[Piece]:
    """All that were measured so far."""
    found = []
    for path in sorted(folder.glob("*.json")):
        told = json.loads(path.read_text("utf-8"))
        judged = {key: Judged(**told.pop(key)) for key in ("chosen", "last")}
        found.append(Piece(**told | judged | {"better_by": Share(**told["better_by"])}))
    return found


def main() -> None:
    """Measure what is missing, then tell what is there."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tasks", nargs="+", choices=("style", "subject"), default=["style", "subject"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--prompts", type=int, default=48)
    parser.add_argument("--runs", type=Path, default=Path("runs/choice"))
    parser.add_argument("--judge", type=Path, default=DEFAULT_FOLDER, help="folder of the judge's weights")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; 0: as many as torch likes")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    there = {(one.task, one.seed) for one in pieces(PIECES)}
    wanted = [(task, seed) for seed in options.seeds for task in options.tasks]
    missing = [one for one in wanted if one not in there]
    judge = load_or_train(options.judge) if missing else None
    for task, seed in missing:
        assert judge is not None
        began = time.monotonic()
        piece = measure(task, seed, judge, prompts=options.prompts, runs=options.runs)
        write_json(asdict(piece), PIECES / f"{task}_{seed}.json")
        print(f"{task}, seed {seed}: {time.monotonic() - began:.0f} s, {piece}", flush=True)
    found = pieces(PIECES)
    settings = {"prompts": options.prompts, "guidance": LORA_GUIDANCE, "budget": BUDGET, "machine": machine()}
    write_json(settings | {"pieces": [asdict(one) for one in found]}, REPORT)
    TABLE.write_text(f"{ABOUT}\n\n{markdown(found)}\n", "utf-8")
    print(markdown(found))


if __name__ == "__main__":
    main()
