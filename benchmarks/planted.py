"""Cases whose verdict is known: does `lora-studio evaluate` say what is so, and nothing that is not?

`python benchmarks/planted.py [--only CASE ...] [--seeds 1 2 3]`

A good run, one without preservation (leaks), one of four images (memorises), a file of zeros, a strength of 4
(burns) and a file of another style, each evaluated as `lora-studio evaluate` does it, with renders of the
style that none was trained on as references. Then the base against itself: 20 times other seeds of its images
stand for a tuned model's, and no verdict may come of it. Every evaluation is a piece with its own result.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from figures import machine, table, write_json
from images import DEFAULT_BASE
from methods import content_of
from PIL.Image import Image
from safetensors import safe_open
from safetensors.torch import save_file
from taught import MEMORISES, OTHER_STYLE, Known, meaning_of

from lora_studio.evaluate import burn, copies, measures, questions, way
from lora_studio.evaluate.encoders import load_encoder, pooling
from lora_studio.evaluate.evaluation import Evaluator, Inquiry
from lora_studio.evaluate.questions import Taught, pocket_contexts, questions_for
from lora_studio.evaluate.result import Evaluation, Interval, Measured, Size, Variant
from lora_studio.evaluate.verdicts import verdicts_of
from lora_studio.files import digest
from lora_studio.metadata.provenance import recipe_hash
from lora_studio.pocket.samples import STYLE, TRIGGERS
from lora_studio.tools.evaluate import EvaluationRequest, SourceArtist, evaluate
from lora_studio.tools.sample.source import SampleRequest, open_source

RESULTS = Path(__file__).parent / "results"
PIECES, REPORT, TABLE = RESULTS / "planted", RESULTS / "planted.json", RESULTS / "planted.md"
RESAMPLES, POOL = 20, 6  # of the base against itself; seeds of each prompt that they are drawn from
ABOUT = """# Planted cases

Cases whose verdict is known, on the pocket base, evaluated as `lora-studio evaluate` does it, by
`benchmarks/planted.py`. *Said* are the words that were decided; *right* is that all of *must say* and none of
*must not say* are among them."""


@dataclass(frozen=True)
class Case:
    """What is evaluated, and which words must or must not come of it."""

    run: str  # of `taught.Known`
    must: tuple[str, ...]
    must_not: tuple[str, ...]
    strength: float = 1.0
    zeroed: bool = False


BAD = ("leaks", "memorised", "overfitted", "burnt", "worse than the base", "no effect")
CASES = {
    "good": Case("style", ("learned",), BAD),
    "leaks": Case("style, no preservation", ("leaks",), ("no effect", "memorised")),
    "memorises": Case(MEMORISES, ("memorised",), ("no effect",)),
    "zeroed": Case("style", ("no effect",), ("learned", *BAD[:-1]), zeroed=True),
    "burnt": Case("style", ("burnt",), ("no effect",), strength=4.0),
    "another style": Case(OTHER_STYLE, (), ("learned", "memorised")),
}


@dataclass(frozen=True)
class Planted:
    """What was said of one case, or of one resample of the base against itself."""

    case: str
    seed: int
    measures: Mapping[str, tuple[float, float, float, int]]  # value, ends of the interval, questions
    seconds: float
    rests_on: str

    @property
    def said(self) -> list[str]:
        """The words that are decided, by the thresholds as they are now."""
        found = [Measured(name, Interval(*given), {}) for name, given in self.measures.items()]
        return [one.word for one in verdicts_of(found) if one.decided]

    @property
    def right(self) -> bool:
        """Whether it was said what is so, and nothing else that is not."""
        if self.case not in CASES:
            return not self.said
        one = CASES[self.case]
        return {*one.must} <= {*self.said} and not {*one.must_not} & {*self.said}


def measure(case: str, seed: int, runs: Path) -> Planted:
    """Train what is missing and evaluate it."""
    one, began = CASES[case], time.monotonic()
    known = Known(one.run, seed)
    file = known.train(runs)
    request = EvaluationRequest(
        strength=one.strength,
        images=_references(known, runs),
        folder=runs / "evaluated" / f"{case.replace(' ', '_')}_{seed}",
        trigger=TRIGGERS[STYLE] if known.style else "",
        base="pocket" if one.zeroed or one.run == OTHER_STYLE else None,
    )
    target = runs / known.slug
    if one.zeroed:
        target = _zeroed(file, runs / "zeroed" / f"zeroed_{seed}.safetensors")
    elif one.run == OTHER_STYLE:
        target = file
    made, _ = evaluate(target, request)
    return _planted(case, seed, made.evaluation, time.monotonic() - began, rests_on(case, seed, runs))


def _planted(case: str, seed: int, found: Evaluation, seconds: float, on: str) -> Planted:
    by_name = {one.name: one.interval for one in found.measures}
    figures = {
        name: (round(one.value, 4), round(one.low, 4), round(one.high, 4), one.questions)
        for name, one in by_name.items()
    }
    return Planted(case, seed, figures, round(seconds), on)


def _references(known: Known, runs: Path) -> Path:
    """A folder of renders of the style, which is what all but subjects are asked for, or of the subject."""
    folder = runs / ("references" if known.style else "references_bolt")
    folder.mkdir(parents=True, exist_ok=True)
    for number, image in enumerate(Known("style" if known.style else "subject", 1).references()):
        if not (path := folder / f"{number:02}.png").is_file():
            image.save(path)
    return folder


def _zeroed(file: Path, path: Path) -> Path:
    """The file with nothing but zeros in what it adds."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with safe_open(file, "pt") as given:
        tensors = {name: given.get_tensor(name) for name in given.keys()}  # noqa: SIM118 (not a mapping)
        metadata = given.metadata()
    emptied = {n: torch.zeros_like(t) if ".lora_B." in n or "lora_up" in n else t for n, t in tensors.items()}
    save_file(emptied, path, metadata)
    return path


class BaseTwice:
    """An artist whose tuned images are the base's with other seeds: of a pool, dealt anew each time."""

    def __init__(self, artist: SourceArtist, drawn: dict[tuple[str, int], Image], resample: int) -> None:
        self.artist, self.drawn, self.resample = artist, drawn, resample
        self.drawn_with: Mapping[str, str | int | float] = {**artist.drawn_with, "resample": resample}

    def learned(self, variant: Variant) -> str:
        return "the base"

    def draw(
        self, asked: Sequence[tuple[str, int]], variant: Variant | None, size: Size | None = None
    ) -> list[Image]:
        """Of each prompt's pool, in an order of the resample's own, the first ones or, as tuned, the last."""
        prompt = asked[0][0]  # of `Taught` without sizes: all are squares
        order = random.Random(f"{self.resample} {prompt}").sample(range(POOL), POOL)
        dealt = order[: len(asked)] if variant is None else order[-len(asked) :]
        lacking = [(prompt, seed) for seed in dealt if (prompt, seed) not in self.drawn]
        self.drawn |= zip(lacking, self.artist.draw(lacking, None) if lacking else [], strict=True)
        return [self.drawn[prompt, seed] for seed in dealt]


def against_itself(runs: Path) -> list[Planted]:
    """`RESAMPLES` evaluations of the base as if it were tuned."""
    known = Known("style", 1)
    target, drawn = runs / known.slug, dict[tuple[str, int], Image]()
    captions = tuple(
        path.with_suffix(".txt").read_text("utf-8").strip() for path in known.training_images(runs)
    )
    taught = Taught(TRIGGERS[known.style], captions=captions)
    asked = Inquiry(
        questions_for(taught, pocket_contexts()),
        references=sorted(_references(known, runs).glob("*.png")),
        training=known.training_images(runs),
    )
    encoder, found = load_encoder("pocket"), list[Planted]()
    with SourceArtist(open_source(target, SampleRequest(fingerprint=True)), EvaluationRequest()) as artist:
        for resample in range(RESAMPLES):
            twice, began = BaseTwice(artist, drawn, resample), time.monotonic()
            evaluator = Evaluator(twice, encoder, asked, folder=runs / "twice")
            made = evaluator.evaluate("base", Variant(), {}).evaluation
            seconds = time.monotonic() - began
            found.append(_planted(ITSELF, resample, made, seconds, rests_on("good", 1, runs)))
            print(f"{ITSELF}, {resample}: {found[-1].said}", flush=True)
    return found


ITSELF = "the base against itself"


def rests_on(case: str, seed: int, runs: Path) -> str:
    """The start of a hash of recipe, base, images, encoder and measures; not of thresholds: see `said`."""
    known = Known(CASES[case].run, seed)
    recipe = known.recipe(runs)
    assert recipe.data.images is not None
    told = [
        recipe_hash(recipe),
        content_of(DEFAULT_BASE),
        content_of(recipe.data.images),
        load_encoder("pocket").digest,
        meaning_of(measures, burn, copies, way, pooling, questions),
        *(digest(path) for path in sorted(_references(known, runs).glob("*.png"))),
    ]
    return hashlib.sha256("\n".join(told).encode()).hexdigest()[:16]


def pieces(folder: Path, runs: Path) -> list[Planted]:
    """All that were measured so far and still hold, in the order of `CASES`."""
    read = [Planted(**json.loads(path.read_text("utf-8"))) for path in sorted(folder.glob("*.json"))]
    order = [*CASES, ITSELF]
    held = [one for one in read if one.rests_on == rests_on(*_of(one), runs)]
    if len(held) < len(read):
        print(f"{len(read) - len(held)} are not counted, as they rest on something else")
    return sorted(held, key=lambda one: (order.index(one.case), one.seed))


def _of(one: Planted) -> tuple[str, int]:
    return (one.case, one.seed) if one.case in CASES else ("good", 1)


def markdown(found: Sequence[Planted]) -> str:
    """A row a case and seed; one for the base against itself."""
    figures = ("fidelity", "leakage", "change", "memorisation", "burn", "prompt_following", "drift")
    rows = [
        (
            f"{one.case}, seed {one.seed}",
            ", ".join(CASES[one.case].must) or "",
            ", ".join(one.said) or "nothing",
            "yes" if one.right else "NO",
            *(f"{one.measures[name][0]:.2f}" if name in one.measures else "" for name in figures),
        )
        for one in found
        if one.case in CASES
    ]
    itself = [one for one in found if one.case == ITSELF]
    head = ("case", "must say", "said", "right", *(name.replace("_", " ") for name in figures))
    silent = sum(one.right for one in itself)
    told = f"The base against itself: no verdict in {silent} of {len(itself)} resamples."
    return f"{table(head, rows)}\n\n{told}"


def main() -> None:
    """Evaluate what is missing, then tell what is there."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=[*CASES, ITSELF], metavar="CASE", help="default: all")
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--runs", type=Path, default=Path("runs/taught"))
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; 0: as many as torch likes")
    parser.add_argument("--trained", action="store_true", help="only runs that were trained already")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    there = {(one.case, one.seed) for one in pieces(PIECES, options.runs)}
    wanted = [(case, seed) for seed in options.seeds for case in options.only or CASES if case in CASES]
    for case, seed in wanted:
        trained = any((options.runs / Known(CASES[case].run, seed).slug).glob("*.safetensors"))
        if (case, seed) not in there and (trained or not options.trained):
            piece = measure(case, seed, options.runs)
            write_json(asdict(piece), PIECES / f"{case.replace(' ', '_')}_{seed}.json")
            print(f"{case}, seed {seed}: {'right' if piece.right else 'WRONG'}, {piece}", flush=True)
    if ITSELF in (options.only or [ITSELF]) and (ITSELF, RESAMPLES - 1) not in there:
        for piece in against_itself(options.runs):
            write_json(asdict(piece), PIECES / f"itself_{piece.seed:02}.json")
    found = pieces(PIECES, options.runs)
    write_json({"machine": machine(), "pieces": [asdict(one) for one in found]}, REPORT)
    TABLE.write_text(f"{ABOUT}\n\n{markdown(found)}\n", "utf-8")
    print(markdown(found))


if __name__ == "__main__":
    main()
