"""What is left of a style and of a subject when their LoRA files are put together, by every method.

`python benchmarks/combining.py --style FILE --subject FILE [--prompts 48] [--judge FOLDER] [--only NAME ...]`

On held-out prompts of the learning benchmark, by its judge: the style where it is called and the object
with it, the subject where it is called and the background with it; and both where both are called at once.
Each row is a piece with a result of its own, so the command may be stopped and called again; a call with
nothing left to do prints the table from what is there. The pieces belong to two files: for others give
another `--pieces`.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean

import torch
from diffusers import StableDiffusionPipeline
from experiments import Question, style_questions, subject_questions, tuned
from figures import machine, sha256_of, table, write_json
from images import DEFAULT_BASE, LORA_GUIDANCE, Prompt, generate, load_pipeline
from judge import DEFAULT_FOLDER, Judge, Verdict, load_or_train

from lora_studio.lora_file.factors import RankLimit
from lora_studio.lora_file.open import open_plain
from lora_studio.pocket.samples import STYLE, STYLE_TRIGGER, SUBJECT
from lora_studio.tools.combine import Term, combine
from lora_studio.tools.methods import MergeOptions

RESULTS = Path(__file__).parent / "results"
PIECES, REPORT = RESULTS / "combining", RESULTS / "combining.json"


@dataclass(frozen=True)
class Merge:
    """How a file is made of the two; the first is the one that `project` protects."""

    method: str
    options: MergeOptions = MergeOptions()  # noqa: RUF009 - frozen
    subject_first: bool = False
    strength: float = 1.0  # of both


MERGES = {
    "concat": Merge("concat"),
    "concat at 0.7": Merge("concat", strength=0.7),
    "svd to rank 16": Merge("svd", MergeOptions(RankLimit(rank=16))),
    "svd to rank 8": Merge("svd", MergeOptions(RankLimit(rank=8))),
    "svd to 0.9 of the energy": Merge("svd", MergeOptions(RankLimit(energy=0.9))),
    "ties": Merge("ties"),
    "ties, half kept": Merge("ties", MergeOptions(density=0.5)),
    "dare": Merge("dare"),
    "dare, nine tenths kept": Merge("dare", MergeOptions(density=0.9)),
    "project, style protected": Merge("project"),
    "project, subject protected": Merge("project", subject_first=True),
}
ALONE = ("base", "style alone", "subject alone", "both loaded")
ROWS = (*ALONE, *MERGES)


@dataclass(frozen=True)
class Piece:
    """Shares of images."""

    row: str
    style: float  # the style's trigger: the style is there
    object: float  # the style's trigger: the object that was asked for is
    subject: float  # the subject's trigger: the subject is there
    background: float  # the subject's trigger: the background that was asked for is
    both_style: float  # both triggers: the style
    both_subject: float  # both triggers: the subject
    left_out: float  # distance of the file from the exact sum, relative to its norm


@dataclass(frozen=True)
class Setting:
    """What all rows have in common."""

    pipe: StableDiffusionPipeline
    judge: Judge
    style: Path
    subject: Path
    prompts: int


def measure(row: str, setting: Setting) -> Piece:
    """Draw with the files of a row, and judge."""
    of_style, of_subject = style_questions(setting.prompts, 0), subject_questions(setting.prompts, 0)
    with ExitStack() as stack:
        left_out = stack.enter_context(_loaded(row, setting))
        called = _judged(setting, [(q.with_trigger, q.seed) for q in of_style], f"{row}: style")
        shown = _judged(setting, [(q.with_trigger, q.seed) for q in of_subject], f"{row}: subject")
        together = [(f"{q.with_trigger}, {STYLE_TRIGGER}", q.seed) for q in of_subject]
        both = _judged(setting, together, f"{row}: both")
    return Piece(
        row,
        style=_share(v.style == STYLE for v in called),
        object=_share(v.object == q.object for v, q in _pairs(called, of_style)),
        subject=_share(v.object == SUBJECT for v in shown),
        background=_share(v.background == q.background for v, q in _pairs(shown, of_subject)),
        both_style=_share(v.style == STYLE for v in both),
        both_subject=_share(v.object == SUBJECT for v in both),
        left_out=round(left_out, 4),
    )


@contextmanager
def _loaded(row: str, setting: Setting) -> Iterator[float]:
    """The pipeline with what a row stands for; how far a merged file is from the exact sum."""
    with ExitStack() as stack:
        left_out = 0.0
        if row in MERGES:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            left_out = _merge(MERGES[row], setting, folder / "merged.safetensors")
            stack.enter_context(tuned(setting.pipe, folder / "merged.safetensors"))
        elif row == "both loaded":
            stack.enter_context(_both(setting))
        elif row != "base":
            stack.enter_context(tuned(setting.pipe, setting.style if "style" in row else setting.subject))
        yield left_out


@contextmanager
def _both(setting: Setting) -> Iterator[None]:
    """Side by side, as diffusers keeps them."""
    for name in ("style", "subject"):
        file: Path = getattr(setting, name)
        setting.pipe.load_lora_weights(str(file.parent), weight_name=file.name, adapter_name=name)
    setting.pipe.set_adapters(["style", "subject"], [1.0, 1.0])
    try:
        yield
    finally:
        setting.pipe.unload_lora_weights()


def _merge(merge: Merge, setting: Setting, out: Path) -> float:
    files = [setting.style, setting.subject]
    terms = [
        Term(open_plain(file), merge.strength) for file in (files[::-1] if merge.subject_first else files)
    ]
    return combine(terms, out, method=merge.method, options=merge.options).left_out


def _judged(setting: Setting, prompts: Sequence[tuple[str, int]], name: str) -> list[Verdict]:
    asked = [Prompt(text, seed) for text, seed in prompts]
    return setting.judge.classify(generate(setting.pipe, asked, guidance=LORA_GUIDANCE, name=name))


def _pairs(verdicts: Sequence[Verdict], questions: Sequence[Question]) -> Iterator[tuple[Verdict, Question]]:
    return zip(verdicts, questions, strict=True)


def _share(hits: Iterator[bool]) -> float:
    return round(mean(map(float, hits)), 4)


def _place(folder: Path, row: str) -> Path:
    return folder / f"{row.replace(', ', '-').replace(' ', '_')}.json"


def found_in(folder: Path) -> list[Piece]:
    """All that were measured so far, in the order of ROWS."""
    paths = [_place(folder, row) for row in ROWS]
    return [Piece(**json.loads(path.read_text("utf-8"))) for path in paths if path.is_file()]


def markdown(pieces: Sequence[Piece]) -> str:
    """A row a way to use the two files."""
    figures = ("style", "object", "subject", "background", "both_style", "both_subject", "left_out")
    rows = [(one.row, *(f"{100 * getattr(one, name):.0f} %" for name in figures)) for one in pieces]
    titles = (
        "style",
        "its object",
        "subject",
        "its background",
        "both: style",
        "both: subject",
        "off the sum",
    )
    return table(("files", *titles), rows)


def main() -> None:
    """Measure what is missing, then tell what is there."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--style", type=Path, required=True, help="a LoRA of recipes/pocket_style.toml")
    parser.add_argument("--subject", type=Path, required=True, help="a LoRA of recipes/pocket_subject.toml")
    parser.add_argument("--only", nargs="+", choices=ROWS, metavar="NAME", help="default: all")
    parser.add_argument("--prompts", type=int, default=48)
    parser.add_argument("--pieces", type=Path, default=PIECES)
    parser.add_argument("--judge", type=Path, default=DEFAULT_FOLDER, help="folder of the judge's weights")
    parser.add_argument("--out", type=Path, default=REPORT)
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; 0: as many as torch likes")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    missing = [row for row in options.only or ROWS if not _place(options.pieces, row).is_file()]
    if missing:
        judge = load_or_train(options.judge)
        setting = Setting(load_pipeline(DEFAULT_BASE), judge, options.style, options.subject, options.prompts)
        for row in missing:
            began = time.monotonic()
            piece = measure(row, setting)
            write_json(asdict(piece), _place(options.pieces, row))
            print(f"{row}: {time.monotonic() - began:.0f} s, {piece}", flush=True)
    pieces = found_in(options.pieces)
    files = {name: sha256_of(getattr(options, name)) for name in ("style", "subject")}
    facts = {
        "prompts": options.prompts,
        "guidance": LORA_GUIDANCE,
        "lora_sha256": files,
        "machine": machine(),
    }
    write_json(facts | {"pieces": [asdict(one) for one in pieces]}, options.out)
    print(markdown(pieces))


if __name__ == "__main__":
    main()
