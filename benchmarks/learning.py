"""What the shipped recipes teach the pocket base, on prompts that no training image has.

`python benchmarks/learning.py [--style-lora FILE] [--subject-lora FILE] [--prompts 200] [--sheet FILE]`

A LoRA that is not given is trained first, with the shipped recipe, into `--runs`. Both are loaded through
diffusers, judged by a CNN trained on renders only (`judge.py`), and compared with the base on equal seeds.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
from experiments import (
    BASE_PLAIN,
    BASE_TRIGGER,
    TUNED_TRIGGER,
    Outcome,
    Setting,
    style_experiment,
    subject_experiment,
)
from figures import Share, criteria_table, machine, sha256_of, table, write_json
from images import DEFAULT_BASE, LORA_GUIDANCE, STEPS, load_pipeline, save_sheet
from judge import DEFAULT_FOLDER, load_or_train

from lora_studio.pocket.samples import FLOW_STYLE, STYLE

EXPERIMENTS = {"style": style_experiment, "subject": subject_experiment}
_SHEET_COLUMNS = 8


def train_lora(recipe: Path, run_folder: Path) -> Path:
    """The LoRA file that a recipe makes; the only place that knows the library's training interface."""
    from lora_studio.errors import Interrupted, StudioError
    from lora_studio.recipe.load import load_recipe
    from lora_studio.training.session import train

    try:
        result = train(load_recipe(recipe), run_folder)
    except StudioError as error:
        raise SystemExit(f"{recipe.name}: {error}") from None
    except Interrupted as stopped:
        raise SystemExit(f"{recipe.name}: {stopped}; nothing was measured.") from None
    assert result.lora_file is not None, "the shipped recipes train layers"
    return result.lora_file


def _style(base: Path) -> str:
    return FLOW_STYLE if (base / "transformer").is_dir() else STYLE


def _name(base: Path) -> str:
    return "pocket_flow" if (base / "transformer").is_dir() else "pocket"


def lora_files(options: argparse.Namespace) -> dict[str, Path]:
    """The LoRA files by experiment: the ones given, or newly trained ones."""
    files: dict[str, Path] = {}
    for name in options.only or EXPERIMENTS:
        given: Path | None = getattr(options, f"{name}_lora")
        files[name] = given or train_lora(
            options.recipes / f"{_name(options.base)}_{name}.toml", options.runs / name
        )
        if not files[name].is_file():
            raise SystemExit(f"{files[name]}: there is no such LoRA file.")
    return files


def run_experiments(options: argparse.Namespace, files: dict[str, Path]) -> dict[str, Outcome]:
    """The outcome of every experiment that has a LoRA file."""
    judge = load_or_train(options.judge)
    setting = Setting(load_pipeline(options.base), judge, options.guidance, _style(options.base))
    return {n: EXPERIMENTS[n](setting, file, options.prompts, options.seed) for n, file in files.items()}


def report_of(
    options: argparse.Namespace, files: dict[str, Path], outcomes: dict[str, Outcome]
) -> dict[str, object]:
    """All figures with what they were measured with; no paths and no host name."""
    criteria = [vars(c) for outcome in outcomes.values() for c in outcome.criteria]
    return {
        "prompts": options.prompts,
        "seed": options.seed,
        "guidance": options.guidance,
        "steps": STEPS,
        "lora_sha256": {name: sha256_of(file) for name, file in files.items()},
        "base_denoiser_sha256": {
            f.name: sha256_of(f)
            for part in ("unet", "transformer")
            for f in sorted((options.base / part).glob("*.safetensors"))
        },
        "judge_accuracy_on_renders": load_or_train(options.judge).accuracy_on_renders(),
        "machine": machine(),
        **{name: outcome.report for name, outcome in outcomes.items()},
        "criteria": criteria,
        "passed": all(c["passed"] for c in criteria),
    }


def markdown(outcomes: dict[str, Outcome]) -> str:
    """A table of arms for each experiment, then the criteria."""
    parts: list[str] = []
    for name, outcome in outcomes.items():
        arms: dict[str, dict[str, dict[str, float]]] = outcome.report["arms"]  # type: ignore[assignment]
        figures = list(arms[BASE_PLAIN])
        rows = [(arm, *(Share(**shares[figure]) for figure in figures)) for arm, shares in arms.items()]
        parts.append(table((f"{name}: judged ...", *figures), rows))
    criteria = [c for outcome in outcomes.values() for c in outcome.criteria]
    return "\n\n".join((*parts, criteria_table(criteria)))


def sheet(outcomes: dict[str, Outcome], path: Path) -> None:
    """For each experiment a row of the base and below it a row of the tuned model, same prompts and seeds."""
    columns = min(_SHEET_COLUMNS, *(len(o.images[BASE_TRIGGER]) for o in outcomes.values()))
    rows = [o.images[arm][:columns] for o in outcomes.values() for arm in (BASE_TRIGGER, TUNED_TRIGGER)]
    save_sheet([image for row in rows for image in row], columns, path)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--style-lora", type=Path, help="a LoRA of recipes/pocket_style.toml")
    parser.add_argument("--subject-lora", type=Path, help="a LoRA of recipes/pocket_subject.toml")
    parser.add_argument("--only", nargs="+", choices=tuple(EXPERIMENTS), help="default: both")
    parser.add_argument("--prompts", type=int, default=200)
    parser.add_argument("--guidance", type=float, default=LORA_GUIDANCE)
    parser.add_argument("--seed", type=int, default=0, help="of the noise")
    parser.add_argument("--base", type=Path, default=DEFAULT_BASE)
    parser.add_argument("--recipes", type=Path, default=Path("recipes"))
    parser.add_argument("--runs", type=Path, default=Path("runs/learning"), help="where LoRAs are trained")
    parser.add_argument("--judge", type=Path, default=DEFAULT_FOLDER, help="folder of the judge's weights")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/learning.json"))
    parser.add_argument("--sheet", type=Path, help="PNG: base above, tuned below")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; 0: as many as torch likes")
    return parser.parse_args()


def main() -> None:
    """Train what is missing, measure, print and write."""
    options = _options()
    if options.threads:
        torch.set_num_threads(options.threads)
    started = time.monotonic()
    files = lora_files(options)
    outcomes = run_experiments(options, files)
    report = report_of(options, files, outcomes)
    write_json(report | {"seconds": round(time.monotonic() - started)}, options.out)
    if options.sheet:
        sheet(outcomes, options.sheet)
    print(markdown(outcomes))


if __name__ == "__main__":
    main()
