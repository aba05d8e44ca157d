"""A sweep over rank, learning rate and preservation on the pocket style, and the judge's word on its advice.

`python benchmarks/sweep_pocket.py [--seeds 2] [--runs runs/sweep_pocket] [--threads 1]`

`lora-studio sweep` of the shipped recipe, 12 settings with the shipped one among them, measured beside
renders of the style that no run was trained on. Then the judge, which knows nothing of that, looks at the
recommended and at the shipped setting with prompts that the sweep never saw: how many images with the trigger
show the style and the object that was asked for, and how far images without it have changed.

It may be stopped and called again, and several processes may be called at a time: they share the trials. The
last one to end, or one called with --judge-only, judges and writes the results.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from choice import REFERENCES, distances, of_base, references
from experiments import Question, style_questions
from figures import Share, interval_of, machine, sha256_of, table, write_json
from images import DEFAULT_BASE, LORA_GUIDANCE, Prompt, generate, load_pipeline
from judge import DEFAULT_FOLDER, Judge, load_or_train

from lora_studio.pocket.samples import STYLE
from lora_studio.recipe.load import PRESET_FOLDER, load_recipe
from lora_studio.sweep import SweepPlan, plan_sweep
from lora_studio.sweep.folder import SweepFolder
from lora_studio.sweep.report import markdown, sweep_plot
from lora_studio.sweep.result import SweepResult, Tried, result_of
from lora_studio.sweep.running import TrialChange, run_sweep

RESULTS = Path(__file__).parent / "results"
PIECES, REPORT = RESULTS / "sweep_pocket", RESULTS / "sweep_pocket.json"
TABLE, PLOT = RESULTS / "sweep_pocket.md", RESULTS / "sweep_pocket.png"
VARY = {
    "adapter.rank": (8, 16, 32),
    "training.learning_rate": (7e-4, 1.1e-3),
    "objective.preservation": (0.4, 0.6),
}
SHIPPED = {"adapter.rank": 16, "training.learning_rate": 1.1e-3, "objective.preservation": 0.6}
PROMPTS = 3  # of each group, in the sweep
ABOUT = """
## As the judge sees it

`benchmarks/sweep_pocket.py`: with prompts that the sweep never saw, the share of images with the trigger that
show the style and of those that show the object, how far images without it changed (of how far another noise
changes them), and how many of them show the style. *Better by*: style less drift of the recommended setting,
less that of the shipped one, the mean of both seeds, with a 95 % interval over prompts; wholly below 0 the
recommended one would be beaten."""


@dataclass(frozen=True)
class JudgedTrial:
    """What the judge sees of one file; the score is that of each prompt: style less drift."""

    name: str
    sha256: str
    prompts: int
    style: float
    object: float
    drift: float
    leaking: float
    scores: list[float]


def plan_of(seeds: int, runs: Path) -> SweepPlan:
    """The sweep, of the shipped recipe without its previews."""
    changes = ("samples.prompts=[]", f"evaluate.prompts={PROMPTS}", "evaluate.encoder=pocket")
    place = (runs / "references_style").resolve()
    if len(list(place.glob("*.png"))) < REFERENCES:  # another process may look at them just now
        references("style", runs)
    images = f"evaluate.images={json.dumps(str(place))}"
    recipe = load_recipe(PRESET_FOLDER / "pocket_style.toml", changes=(*changes, images))
    return plan_sweep(recipe, VARY, seeds=seeds)


def shipped_of(result: SweepResult) -> Tried:
    """The setting of the shipped recipe."""
    return next(one for one in result.tried if one.values == SHIPPED)


def judged(tried: Tried, judge: Judge, prompts: int) -> list[JudgedTrial]:
    """Each of its seeds, drawn anew only if the file or the prompts are others."""
    found = []
    for one in tried.trials:
        if (file := next(one.folder.glob("*.safetensors"), None)) is None:
            continue  # a trial that failed
        piece, digest = PIECES / f"{one.trial.name}.json", sha256_of(file)
        if piece.is_file():
            known = JudgedTrial(**json.loads(piece.read_text("utf-8")))
            if (known.sha256, known.prompts) == (digest, prompts):
                found.append(known)
                continue
        made = _judge(one.trial.name, file, style_questions(prompts, 0), judge)
        write_json(asdict(made), piece)
        found.append(made)
    return found


def _judge(name: str, file: Path, questions: Sequence[Question], judge: Judge) -> JudgedTrial:
    pipe = load_pipeline(DEFAULT_BASE)
    pipe.load_lora_weights(str(file.parent), weight_name=file.name)
    plain = tuple(Prompt(one.without_trigger, one.seed) for one in questions)
    before, otherwise = of_base(plain)
    with_trigger = [Prompt(one.with_trigger, one.seed) for one in questions]
    called = generate(pipe, with_trigger, guidance=LORA_GUIDANCE, name=f"{name}, called")
    after = generate(pipe, list(plain), guidance=LORA_GUIDANCE, name=f"{name}, plain")
    seen, leaked = judge.classify(called), judge.classify(after)
    style = np.array([one.style == STYLE for one in seen], np.float64)
    moved = distances(before, after) / float(np.mean(distances(before, otherwise)))
    right = [one.object == asked.object for one, asked in zip(seen, questions, strict=True)]
    return JudgedTrial(
        name=name,
        sha256=sha256_of(file),
        prompts=len(questions),
        style=round(float(style.mean()), 4),
        object=round(float(np.mean(right)), 4),
        drift=round(float(moved.mean()), 4),
        leaking=round(float(np.mean([one.style == STYLE for one in leaked])), 4),
        scores=[round(float(one), 4) for one in style - moved],
    )


def better_by(some: Sequence[JudgedTrial], others: Sequence[JudgedTrial]) -> Share:
    """Of each prompt the mean over seeds."""
    one, other = (np.mean([each.scores for each in side], axis=0) for side in (some, others))
    return interval_of(one - other)


def write(result: SweepResult, judge: Judge, prompts: int) -> None:
    """The sweep's table, plot and figures, and what the judge says."""
    taken, shipped = result.recommended, shipped_of(result)
    assert taken is not None
    sides = {"recommended": judged(taken, judge, prompts), "shipped": judged(shipped, judge, prompts)}
    found = better_by(sides["recommended"], sides["shipped"])
    holds = found.high >= 0
    header = ("", "trial", "style", "object", "drift", "leaking")
    rows = [
        (
            *(side, one.name, f"{100 * one.style:.0f} %", f"{100 * one.object:.0f} %"),
            *(f"{one.drift:.2f}", f"{100 * one.leaking:.0f} %"),
        )
        for side, trials in sides.items()
        for one in trials
    ]
    verdict = f"Better by {found.share:+.3f} ({found.low:+.3f} to {found.high:+.3f}): "
    verdict += "the recommended recipe is not beaten." if holds else "the recommended recipe is BEATEN."
    told = f"{ABOUT}\n\n{table(header, rows)}\n\n{verdict}\n"
    TABLE.write_text(markdown(result) + told, "utf-8")
    if (plot := sweep_plot(result)) is not None:
        PLOT.write_bytes(plot)
    judgement = {side: [asdict(one) for one in trials] for side, trials in sides.items()}
    judgement |= {"better_by": asdict(found), "holds": holds, "prompts": prompts}  # type: ignore[dict-item]
    settings = {"prompts_of_the_sweep": PROMPTS, "guidance": LORA_GUIDANCE, "machine": machine()}
    write_json(settings | {"sweep": result.to_json(), "judge": judgement}, REPORT)
    print(told)


def told(change: TrialChange) -> None:
    """A line for each trial that begins or ends."""
    state = "" if change.placed.job is None else change.placed.job.state
    left = "" if change.seconds_left is None else f", {change.seconds_left / 60:.0f} min left"
    line = (
        f"{change.placed.trial.name} {state} {change.seconds:.0f} s; {change.ended} of {change.total}{left}"
    )
    print(f"{time.strftime('%H:%M:%S')} {line} {change.placed.reason}", flush=True)


def main() -> None:
    """Train what is missing, then judge once all is there."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--prompts", type=int, default=48, help="that the judge is asked")
    parser.add_argument("--runs", type=Path, default=Path("runs/sweep_pocket"))
    parser.add_argument("--judge", type=Path, default=DEFAULT_FOLDER, help="folder of the judge's weights")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; 0: as many as torch likes")
    parser.add_argument("--judge-only", action="store_true", help="train nothing; judge what is there")
    options = parser.parse_args()
    if options.threads:
        os.environ["OMP_NUM_THREADS"] = str(options.threads)  # of the trials' processes
        torch.set_num_threads(options.threads)
    plan, folder = plan_of(options.seeds, options.runs), SweepFolder(options.runs / "sweep")
    if options.judge_only:
        result = result_of(plan, folder)
    else:
        result = run_sweep(plan, folder, devices=["cpu"], on_change=told, on_trouble=print)
    if result.unfinished and not options.judge_only:
        print(f"{len(result.unfinished)} trials are at work in another process, which will judge.")
        return
    write(result, load_or_train(options.judge), options.prompts)


if __name__ == "__main__":
    main()
