"""Methods side by side on the pocket base: how much is learned, and what it costs the rest.

`python benchmarks/methods.py [--only NAME ...] [--seeds 1 2 3] [--prompts 48]`

Each method is a shipped recipe with a few changes, trained with each seed and judged as in learning.py: the
trained style or subject where it is called (fidelity), what the prompt asks for besides (following), and
drift: how far images without the trigger changed, beside how far another seed of their noise changes them.
Every training is a piece with a result of its own, so it may be stopped and called again at any time; a call
with nothing left to do prints the table and draws the plot from what is there. A piece says what it rests on:
one of another recipe, base, images or number of prompts is not counted, and measured anew.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from statistics import mean

import numpy as np
import numpy.typing as npt
import torch
from diffusers import StableDiffusionPipeline
from experiments import Question, style_questions, subject_questions
from figures import machine, sha256_of, write_json
from images import DEFAULT_BASE, LORA_GUIDANCE, Prompt, generate, load_pipeline
from judge import DEFAULT_FOLDER, Judge, load_or_train
from methods_report import ABOUT, SHIPPED, Piece, markdown, plot
from PIL import Image

from lora_studio.metadata.provenance import recipe_hash
from lora_studio.pocket.samples import STYLE, SUBJECT
from lora_studio.recipe import Recipe
from lora_studio.recipe.load import PRESET_FOLDER, load_recipe
from lora_studio.training.finish import Finished
from lora_studio.training.session import train

RESULTS = Path(__file__).parent / "results"
PIECES, REPORT = RESULTS / "methods", RESULTS / "methods.json"
PLOT, TABLE = RESULTS / "methods.png", RESULTS / "methods.md"
STYLE_RECIPE, SUBJECT_RECIPE = "pocket_style", "pocket_subject"


@dataclass(frozen=True)
class Method:
    """A shipped recipe, and what is different in it."""

    recipe: str
    changes: tuple[str, ...] = ()
    about: str = SHIPPED  # what kind of difference it is

    @property
    def is_style(self) -> bool:
        """Whether it teaches the style, or else the subject."""
        return self.recipe == STYLE_RECIPE


def _methods() -> Iterator[tuple[str, Method]]:
    yield from (("style", Method(STYLE_RECIPE)), ("subject", Method(SUBJECT_RECIPE)))
    for about, named in OF_STYLE.items():
        for name, changes in named.items():
            yield f"style, {name}", Method(STYLE_RECIPE, changes, about)
    yield "subject, no preservation", Method(SUBJECT_RECIPE, ("objective.preservation=0",), PRESERVATION)
    yield "subject, regularization images", Method(SUBJECT_RECIPE, REGULARIZATION_IMAGES, PRESERVATION)
    yield "subject, denoiser alone", Method(SUBJECT_RECIPE, DENOISER, TEXT)
    yield "subject, pivotal", Method("pocket_pivotal", (), TEXT)
    yield "subject, word alone", Method("pocket_pivotal", ALONE, TEXT)
    yield "subject, full", Method("pocket_full", (), ADAPTER)


ADAPTER, SIZE, TEXT = "adapter", "rank and rate", "text encoder and words"
PRESERVATION, OBJECTIVE, OPTIMIZER = "what the base knew", "objective", "optimizer"
REGULARIZATION_IMAGES = ("objective.preservation=0", "data.regularization_images.count=28")
OF_STYLE: dict[str, dict[str, tuple[str, ...]]] = {
    ADAPTER: {kind: (f"adapter.kind={kind}",) for kind in ("locon", "dora", "loha", "lokr", "oft")},
    SIZE: {f"rank {rank}": (f"adapter.rank={rank}", f"adapter.alpha={rank}") for rank in (2, 4, 8, 32)}
    | {
        "a third of the rate": ("training.learning_rate=3.7e-4",),
        "twice the rate": ("training.learning_rate=2.2e-3",),
    },
    TEXT: {
        "text encoder too": ("adapter.text_encoder=true", "training.text_encoder_learning_rate=5e-4"),
    },
    PRESERVATION: {
        "no preservation": ("objective.preservation=0",),
        "regularization images": REGULARIZATION_IMAGES,
    },
    OBJECTIVE: {
        "no min snr": ("objective.snr_gamma=0",),
        "debiased": ("objective.weighting=debiased",),
        "low variance": ("objective.timesteps=low_variance",),
        "uniform timesteps": ("objective.timesteps=uniform",),
        "more high noise": ("objective.timestep_bias=1",),
        "more low noise": ("objective.timestep_bias=-1",),
    },
    OPTIMIZER: {
        "adafactor": ("training.optimizer=adafactor",),
        "lion": ("training.optimizer=lion", "training.learning_rate=3e-4"),
        "prodigy": ("training.optimizer=prodigy", "training.learning_rate=1"),
        "schedule free": ("training.optimizer=schedule_free", "training.lr_schedule=constant"),
    },
}
DENOISER = ("adapter.text_encoder=false", "training.text_encoder_learning_rate=1e-5")
ALONE = (
    "adapter.kind=none",
    "training.learning_rate=1e-4",
    "adapter.rank=16",
    "adapter.alpha=16",
    "objective.preservation=0",
    'tokens=[{ token = "vkq", start = "cyan yellow", learning_rate = 5e-3 }]',
)
METHODS = dict(_methods())


def measure(method: str, seed: int, judge: Judge, *, prompts: int, runs: Path) -> Piece:
    """Train, draw and judge. Raises SystemExit if the run does not go to its end."""
    one, folder = METHODS[method], runs / f"{slug_of(method)}_{seed}"
    recipe = recipe_of(method, seed)
    result = train(recipe, folder, resume=any(folder.glob("checkpoints/step_*")))
    if not isinstance(result, Finished):
        raise SystemExit(f"{method}: stopped after step {result.step}; the next call goes on.")
    questions = (style_questions if one.is_style else subject_questions)(prompts, 0)
    tuned = _tuned(result)
    called = _draw(tuned, [Prompt(q.with_trigger, q.seed) for q in questions], f"{method}, called")
    plain = [Prompt(q.without_trigger, q.seed) for q in questions]
    after = _draw(tuned, plain, f"{method}, plain")
    before, otherwise = _of_base(tuple(plain))
    seen, unasked = judge.classify(called), judge.classify(after)
    shown = [v.style == STYLE if one.is_style else v.object == SUBJECT for v in seen]
    leaked = [v.style == STYLE if one.is_style else v.object == SUBJECT for v in unasked]
    right = [follows(one.is_style, v.object, v.background, q) for v, q in zip(seen, questions, strict=True)]
    return Piece(
        method,
        seed,
        recipe.training.steps,
        fidelity=round(mean(shown), 4),
        following=round(mean(right), 4),
        leaking=round(mean(leaked), 4),
        drift=round(distance(before, after) / distance(before, otherwise), 4),
        rests_on=rests_on(method, seed, prompts),
    )


def recipe_of(method: str, seed: int) -> Recipe:
    """What is trained for it."""
    one = METHODS[method]
    changes = (*one.changes, f"training.seed={seed}", "samples.prompts=[]")
    return load_recipe(PRESET_FOLDER / f"{one.recipe}.toml", changes=changes)


def rests_on(method: str, seed: int, prompts: int) -> str:
    """The start of a hash of recipe, images, captions, base and questions: equal while figures hold."""
    recipe = recipe_of(method, seed)
    assert recipe.data.images is not None
    told = [
        recipe_hash(recipe),
        content_of(DEFAULT_BASE),
        content_of(recipe.data.images),
        f"{prompts} {LORA_GUIDANCE}",
    ]
    return hashlib.sha256("\n".join(told).encode()).hexdigest()[:16]


@cache
def content_of(folder: Path) -> str:
    """A hash of the files that lie in it: their names and bytes."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    told = [f"{path.relative_to(folder).as_posix()} {sha256_of(path)}" for path in files]
    return hashlib.sha256("\n".join(told).encode()).hexdigest()


def follows(is_style: bool, thing: str, background: str, question: Question) -> bool:
    """Of a style the object stays what it was; of a subject the background is as asked for."""
    return thing == question.object if is_style else background == question.background


@cache
def _of_base(prompts: tuple[Prompt, ...]) -> tuple[list[Image.Image], list[Image.Image]]:
    """The base's images, and those with another noise: the same for all methods that ask the same."""
    base, others = load_pipeline(DEFAULT_BASE), [Prompt(p.text, p.seed + 500_000) for p in prompts]
    return _draw(base, prompts, "base"), _draw(base, others, "base, other noise")


def _tuned(result: Finished) -> StableDiffusionPipeline:
    """The base with whatever the run wrote."""
    if result.lora_file is not None and result.lora_file.is_dir():
        return load_pipeline(result.lora_file)
    pipe = load_pipeline(DEFAULT_BASE)
    if result.lora_file is not None:
        pipe.load_lora_weights(str(result.lora_file.parent), weight_name=result.lora_file.name)
    for word, path in result.embeddings.items():
        pipe.load_textual_inversion(str(path), token=word)
    return pipe


def _draw(pipe: StableDiffusionPipeline, prompts: Sequence[Prompt], name: str) -> list[Image.Image]:
    texts = [Prompt(pipe.maybe_convert_prompt(p.text, pipe.tokenizer), p.seed) for p in prompts]
    return generate(pipe, texts, guidance=LORA_GUIDANCE, name=name)


def distance(some: Sequence[Image.Image], others: Sequence[Image.Image]) -> float:
    """Root mean square of the pixels' differences, in levels of 255."""
    pairs = zip(some, others, strict=True)
    return float(np.sqrt(mean(np.square(_levels(a) - _levels(b)).mean() for a, b in pairs)))


def _levels(image: Image.Image) -> npt.NDArray[np.float64]:
    return np.asarray(image, np.float64)


def slug_of(method: str) -> str:
    """Of its files and folders."""
    return method.replace(", ", "-").replace(" ", "_")


def pieces(folder: Path, prompts: int) -> list[Piece]:
    """All that were measured so far and still hold, in the order of METHODS. It says which do not hold."""
    read = (Piece(**json.loads(path.read_text("utf-8"))) for path in sorted(folder.glob("*.json")))
    order = list(METHODS)
    found = sorted((p for p in read if p.method in METHODS), key=lambda p: (order.index(p.method), p.seed))
    held = [one for one in found if one.rests_on == rests_on(one.method, one.seed, prompts)]
    for one in found:
        if one not in held:
            print(f"{one.method}, seed {one.seed}: not counted, it rests on something else ({one.rests_on})")
    return held


def main() -> None:
    """Measure what is missing, then tell what is there."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=METHODS, metavar="NAME", help="default: all")
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--prompts", type=int, default=48)
    parser.add_argument("--runs", type=Path, default=Path("runs/methods"))
    parser.add_argument("--judge", type=Path, default=DEFAULT_FOLDER, help="folder of the judge's weights")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; 0: as many as torch likes")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    wanted = [(seed, name) for seed in options.seeds for name in options.only or METHODS]
    there = {(one.seed, one.method) for one in pieces(PIECES, options.prompts)}
    missing = [one for one in wanted if one not in there]
    judge = load_or_train(options.judge) if missing else None
    for seed, name in missing:
        assert judge is not None
        began = time.monotonic()
        piece = measure(name, seed, judge, prompts=options.prompts, runs=options.runs)
        write_json(asdict(piece), _place(seed, name))
        print(f"{name}, seed {seed}: {time.monotonic() - began:.0f} s, {piece}", flush=True)
    found = pieces(PIECES, options.prompts)
    settings = {"prompts": options.prompts, "guidance": LORA_GUIDANCE, "machine": machine()}
    write_json(settings | {"pieces": [asdict(one) for one in found]}, REPORT)
    PLOT.write_bytes(plot(found, {name: one.about for name, one in METHODS.items()}))
    TABLE.write_text(f"{ABOUT}\n\n{markdown(found)}\n", "utf-8")
    print(markdown(found))


def _place(seed: int, method: str) -> Path:
    return PIECES / f"{slug_of(method)}_{seed}.json"


if __name__ == "__main__":
    main()
