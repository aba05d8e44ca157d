"""Whether the measures of `lora-studio evaluate` rank runs as an independent judge does.

`python benchmarks/agreement.py [--only NAME ...] [--seeds 1 2 3]`

Each run is drawn with 24 prompts that call what it was taught and 24 that do not, two seeds each. The judge,
a CNN trained on renders only, counts the images that show it; the measures see the same images through the
pocket base's own encoder, beside renders of what was taught that no run was trained on. Every run is a piece
with a result of its own, so that this may be stopped and called again; a piece that rests on something else
(recipe, base, images, encoder or the definition of a measure) is measured anew.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import asdict
from functools import cache
from pathlib import Path
from statistics import mean

import torch
from agreement_report import ABOUT, Agreed, correlations, markdown, plot
from experiments import Question
from figures import machine, write_json
from images import DEFAULT_BASE, LORA_GUIDANCE
from judge import DEFAULT_FOLDER, Judge, Verdict, load_or_train
from methods import content_of, distance, follows
from PIL import Image
from taught import ARMS, FEW_OF_STYLE, OTHER_STYLE, QUESTIONS, SEEDS, Known, drawn, meaning_of

from lora_studio.evaluate import measures, way
from lora_studio.evaluate.copies import small
from lora_studio.evaluate.encoders import ImageEncoder, load_encoder, pooling
from lora_studio.evaluate.measures import Compared, Observed
from lora_studio.evaluate.result import Measured
from lora_studio.evaluate.result import Question as Asked
from lora_studio.metadata.provenance import recipe_hash
from lora_studio.pocket.samples import SUBJECT

RESULTS = Path(__file__).parent / "results"
PIECES, REPORT = RESULTS / "agreement", RESULTS / "agreement.json"
PLOT, TABLE = RESULTS / "agreement.png", RESULTS / "agreement.md"
RUNS = (
    *("style", "style, no preservation", "subject", FEW_OF_STYLE, "style, rank 2", OTHER_STYLE),
    *("subject, no preservation", "style, oft", "style, rank 32", "style, a third of the rate"),
    *("style, twice the rate", "style, lokr", "style, loha", "style, rank 4", "subject, denoiser alone"),
)
DEFINED_BY = ("fidelity", "leakage", "_gained", "drift", "_ratio", "_scatter", "_difference")
"""Functions of `evaluate.measures`; what they rest on besides are whole modules."""


def measure(known: Known, judge: Judge, encoder: ImageEncoder, runs: Path) -> Agreed:
    """Train and draw what is missing, and look at it in both ways."""
    file, images = known.train(runs), runs / "images"
    base = drawn(known, None, images / f"base-{known.style or SUBJECT}")
    tuned = drawn(known, file, images / known.slug)
    questions = known.questions()
    compared = compared_by(encoder, known, base, tuned)
    return Agreed(
        known.name,
        known.seed,
        judged=_judged(known, questions, judge, base, tuned),
        measured={one.name: round(one.interval.value, 4) for one in measured(compared)},
        rests_on=rests_on(known, encoder, runs),
    )


def _judged(
    known: Known,
    questions: Sequence[Question],
    judge: Judge,
    base: dict[str, list[Image.Image]],
    tuned: dict[str, list[Image.Image]],
) -> dict[str, float]:
    called, plain, before = (judge.classify(one) for one in (tuned["called"], tuned["plain"], base["plain"]))
    asked = [one for one in questions for _ in SEEDS]
    right = [
        follows(bool(known.style), v.object, v.background, q) for v, q in zip(called, asked, strict=True)
    ]
    other = base["plain"][0::2], base["plain"][1::2]
    found = {
        "fidelity": mean(shows(known, one) for one in called),
        "leakage": mean(shows(known, one) for one in plain),
        "following": mean(right),
        "drift": distance(base["plain"], tuned["plain"]) / distance(*other),
        "changed": mean(one != two for one, two in zip(before, plain, strict=True)),
    }
    return {name: round(value, 4) for name, value in found.items()}


def shows(known: Known, seen: Verdict) -> bool:
    """Whether an image shows what was taught."""
    return seen.style == known.style if known.style else seen.object == SUBJECT


def compared_by(
    encoder: ImageEncoder,
    known: Known,
    base: dict[str, list[Image.Image]],
    tuned: dict[str, list[Image.Image]],
) -> Compared:
    """What the measures of an evaluation take, with all prompts of the arms as its questions."""
    asked = [
        Asked(
            "new_contexts" if arm == "called" else "class_alone",
            one.with_trigger if arm == "called" else one.without_trigger,
            one.without_trigger,
        )
        for arm in ARMS
        for one in known.questions()
    ]
    sides = {
        name: _looks(encoder, [image for arm in ARMS for image in some[arm]]).by_question(len(asked))
        for name, some in (("base", base), ("tuned", tuned))
    }
    references = _looks(encoder, known.references())
    return Compared(
        asked,
        SEEDS,
        **sides,
        texts=encoder.texts([one.text for one in asked]),
        references=references,
        training=references,
        training_names=[],
        references_are_training=False,
    )


def measured(compared: Compared) -> list[Measured]:
    """Those that the judge has a figure for, and those that explain them."""
    names = ("fidelity", "leakage", "drift", "change", "diversity", "prompt_following", "plain_following")
    found = [getattr(measures, name)(compared) for name in names]
    return [one for one in found if one is not None]


def _looks(encoder: ImageEncoder, images: Sequence[Image.Image]) -> Observed:
    unseen, pixels = torch.zeros(len(images), 4), torch.stack([small(one) for one in images])
    return Observed(encoder.features(images), encoder.aligned(images), unseen, pixels)


def rests_on(known: Known, encoder: ImageEncoder, runs: Path) -> str:
    """The start of a hash of all that its figures depend on."""
    recipe = known.recipe(runs)
    assert recipe.data.images is not None
    told = [
        recipe_hash(recipe),
        content_of(DEFAULT_BASE),
        content_of(recipe.data.images),
        f"{QUESTIONS} {SEEDS} {LORA_GUIDANCE} {encoder.digest}",
        _definitions(),
    ]
    return hashlib.sha256("\n".join(told).encode()).hexdigest()[:16]


@cache
def _definitions() -> str:
    return meaning_of(*(getattr(measures, name) for name in DEFINED_BY), pooling, way)


def pieces(folder: Path, encoder: ImageEncoder, runs: Path) -> list[Agreed]:
    """All that were measured so far and still hold, in the order of `RUNS`."""
    read = [Agreed(**json.loads(path.read_text("utf-8"))) for path in sorted(folder.glob("*.json"))]
    found = [one for one in read if one.rests_on == rests_on(Known(one.name, one.seed), encoder, runs)]
    if lost := len(read) - len(found):
        print(f"{lost} are not counted, as they rest on something else")
    return sorted(found, key=lambda one: (RUNS.index(one.name), one.seed))


def main() -> None:
    """Measure what is missing, then tell what is there."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=RUNS, metavar="NAME", help="default: all")
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--runs", type=Path, default=Path("runs/taught"))
    parser.add_argument("--judge", type=Path, default=DEFAULT_FOLDER, help="folder of the judge's weights")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; 0: as many as torch likes")
    parser.add_argument("--trained", action="store_true", help="only runs that were trained already")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    encoder = load_encoder("pocket")
    there = {(one.name, one.seed) for one in pieces(PIECES, encoder, options.runs)}
    wanted = [Known(name, seed) for seed in options.seeds for name in options.only or RUNS]
    missing = [one for one in wanted if (one.name, one.seed) not in there]
    if options.trained:
        missing = [one for one in missing if any((options.runs / one.slug).glob("*.safetensors"))]
    judge = load_or_train(options.judge) if missing else None
    for known in missing:
        assert judge is not None
        began = time.monotonic()
        piece = measure(known, judge, encoder, options.runs)
        write_json(asdict(piece), PIECES / f"{known.slug}.json")
        print(f"{known.slug}: {time.monotonic() - began:.0f} s, {piece}", flush=True)
    found = pieces(PIECES, encoder, options.runs)
    settings = {"prompts": QUESTIONS, "seeds": len(SEEDS), "guidance": LORA_GUIDANCE, "machine": machine()}
    about = {"encoder": encoder.name, "encoder_sha256": encoder.digest} | settings
    told = {"runs": len(found), "correlations": [asdict(one) for one in correlations(found)]}
    write_json(about | told | {"pieces": [asdict(one) for one in found]}, REPORT)
    PLOT.write_bytes(plot(found))
    TABLE.write_text(f"{ABOUT}\n\n{markdown(found)}\n", "utf-8")
    print(markdown(found))


if __name__ == "__main__":
    main()
