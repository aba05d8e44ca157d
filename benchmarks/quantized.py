"""What a base in few bits costs, beside bfloat16: its predictions, and what is learned on it.

`python benchmarks/quantized.py [--bases pocket pocket_flow] [--seeds 1 2] [--runs runs/quantized]`

The shipped style of each pocket base is trained with its denoiser kept in bfloat16, int8, fp8 and nf4, each
file loaded into the base as it is shipped, and judged as in learning.py. Products are float32's in all of
them, so it is what is kept that differs, and any processor does it. What was trained and judged stays, so it
may be stopped and called again, and several processes may take different bases or seeds. fp8 needs torchao.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from experiments import Question, style_questions, tuned
from figures import interval_of, machine, sha256_of, table, write_json
from images import LORA_GUIDANCE, Prompt, generate, load_pipeline
from judge import DEFAULT_FOLDER, Judge, load_or_train
from safetensors.torch import load_file, save_file
from torch import Tensor
from trained import trained

from lora_studio.families.loading import load_base
from lora_studio.objectives.base import ObjectiveOptions
from lora_studio.pocket.samples import FLOW_STYLE, STYLE
from lora_studio.pocket.scenes import draw, held_out_scenes
from lora_studio.pocket.stages import images_to_tensor
from lora_studio.quiet import quiet_libraries
from lora_studio.recipe import Recipe
from lora_studio.recipe.load import PRESET_FOLDER, load_recipe
from lora_studio.training.machine import Machine

WEIGHTS = Path("lora_studio/pocket")
BASES = {"pocket": (WEIGHTS / "weights", STYLE), "pocket_flow": (WEIGHTS / "flow_weights", FLOW_STYLE)}
ARMS = {"bfloat16": "none", "int8": "bnb_int8", "fp8": "torchao_float8", "nf4": "bnb_nf4"}
RESULTS = Path(__file__).parent / "results"
PIECES, REPORT, TABLE = RESULTS / "quantized", RESULTS / "quantized.json", RESULTS / "quantized.md"
SHARES, SCENES = (0.2, 0.5, 0.8), 32  # of the noise, and images, whose predictions are compared
NEAR = 0.03
ABOUT = """# What a base in few bits costs

`benchmarks/quantized.py`: the shipped style of each pocket base, trained on a denoiser that is kept in these
bits, with products in float32, and loaded into the base as it is shipped. *Prediction*: how far the base's
predictions are from those of the shipped float16, in percent of their size. *Style* and *object*: share of
images with the trigger that show them, the mean of both seeds; of the style the difference to bfloat16 with a
95 % interval over prompts."""


@dataclass(frozen=True)
class Piece:
    """One training, and of each prompt whether the style and the object are there."""

    base: str
    arm: str
    seed: int
    sha256: str
    prompts: int
    style: list[bool]
    object: list[bool]


def base_of(base: str, arm: str, runs: Path) -> Path:
    """The base's folder; for bfloat16 a copy whose denoiser is rounded to it."""
    shipped, copy = BASES[base][0], runs / f"{base}_in_bfloat16"
    if arm != "bfloat16":
        return shipped
    if not copy.is_dir():
        shutil.copytree(shipped, partial := copy.with_suffix(".partial"), dirs_exist_ok=True)
        for part in ("unet", "transformer"):
            for path in (partial / part).glob("*.safetensors"):
                rounded = {name: tensor.bfloat16() for name, tensor in load_file(path).items()}
                save_file(rounded, path, metadata={"format": "pt"})
        partial.rename(copy)
    return copy


@torch.no_grad()
def predictions(base: Path, quantize: str) -> Tensor:
    """Of held-out scenes at each share of noise: [shares, scenes, C, h, w], float32."""
    family = load_base(str(base))
    scenes = held_out_scenes(SCENES, seed=3)
    side = family.native_side
    texts = family.encode_text([scene.caption() for scene in scenes])
    latents, _ = family.encode_image(images_to_tensor([draw(scene, side, side) for scene in scenes]))
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(0))
    geometry = torch.tensor([[side, side, 0, 0, side, side]] * SCENES)
    Machine(torch.device("cpu"), torch.float32, quantize).shrink(family)
    objective, found = family.objective(ObjectiveOptions()), []
    for share in SHARES:
        noisy = objective.noise_at(latents, noise, torch.full((SCENES,), share))
        found.append(family.denoise(noisy.latents, noisy.timestep, texts, geometry).float())
    return torch.stack(found)


def error_of(found: Tensor, exact: Tensor) -> float:
    """Distance of two predictions, in shares of the size of the exact one."""
    return float((found - exact).norm() / exact.norm())


def recipe_of(base: str, arm: str, seed: int, runs: Path) -> Recipe:
    """The shipped style, without previews, on a base in these bits."""
    place = base_of(base, arm, runs).resolve()
    bits = (f"base.model={place}", "base.dtype=float32", f"base.quantize={ARMS[arm]}")
    changes = (*bits, f"training.seed={seed}", "samples.prompts=[]")
    return load_recipe(PRESET_FOLDER / f"{base}_style.toml", changes=changes)


def look(base: str, arm: str, seed: int, file: Path, questions: Sequence[Question], judge: Judge) -> Piece:
    """Draw and judge what is not known yet of the file."""
    place, digest = PIECES / f"{base}_{arm}_{seed}.json", sha256_of(file)
    if place.is_file():
        known = Piece(**json.loads(place.read_text("utf-8")))
        if (known.sha256, known.prompts) == (digest, len(questions)):
            return known
    folder, style = BASES[base]
    pipe = load_pipeline(folder)
    prompts = [Prompt(one.with_trigger, one.seed) for one in questions]
    with tuned(pipe, file):
        seen = judge.classify(generate(pipe, prompts, guidance=LORA_GUIDANCE, name=place.stem))
    piece = Piece(
        *(base, arm, seed, digest, len(questions)),
        style=[one.style == style for one in seen],
        object=[one.object == asked.object for one, asked in zip(seen, questions, strict=True)],
    )
    write_json(asdict(piece), place)
    return piece


def rows_of(pieces: Sequence[Piece], errors: dict[str, float]) -> list[tuple[object, ...]]:
    """Of one base, an arm a row; what is beside bfloat16 is of equal prompts and seeds."""
    by_arm = {arm: [one for one in pieces if one.arm == arm] for arm in ARMS}
    plain, rows = _by_prompt(by_arm["bfloat16"], "style"), list[tuple[object, ...]]()
    for arm, some in by_arm.items():
        style = _by_prompt(some, "style")
        beside = interval_of(np.subtract(style, plain))
        verdict = "" if arm == "bfloat16" else str(beside)
        near = "" if arm == "bfloat16" else ("within 3 points" if abs(beside.share) <= NEAR else "FARTHER")
        shares = [f"{np.mean(_by_prompt(some, name)):.1%}" for name in ("style", "object")]
        rows.append((some[0].base, arm, f"{errors[arm]:.2%}", *shares, verdict, near))
    return rows


def _by_prompt(pieces: Sequence[Piece], name: str) -> np.ndarray:
    """One value for each prompt: the mean over the seeds."""
    return np.mean([getattr(one, name) for one in pieces], axis=0)


def main() -> None:
    """Train and look at what is missing, then tell what is there."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--bases", nargs="+", choices=BASES, default=list(BASES))
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--prompts", type=int, default=50)
    parser.add_argument("--runs", type=Path, default=Path("runs/quantized"))
    parser.add_argument("--judge", type=Path, default=DEFAULT_FOLDER, help="folder of the judge's weights")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; 0: as many as torch likes")
    options = parser.parse_args()
    quiet_libraries()
    if options.threads:
        torch.set_num_threads(options.threads)
    judge, rows, told = load_or_train(options.judge), list[tuple[object, ...]](), list[dict[str, object]]()
    for base in options.bases:
        exact = predictions(BASES[base][0], "none")
        errors = {
            arm: error_of(predictions(base_of(base, arm, options.runs), how), exact)
            for arm, how in ARMS.items()
        }
        print(base, errors, flush=True)
        questions = style_questions(options.prompts, 0, BASES[base][1])
        files = {
            (arm, seed): trained(
                recipe_of(base, arm, seed, options.runs), options.runs / f"{base}_{arm}_{seed}"
            )
            for seed in options.seeds
            for arm in ARMS
        }
        pieces = [look(base, arm, seed, file, questions, judge) for (arm, seed), file in files.items()]
        rows += rows_of(pieces, errors)
        told += [{"base": base, "prediction_error": errors, "pieces": [asdict(one) for one in pieces]}]
    header = ("base", "bits", "prediction", "style", "object", "style beside bfloat16", "")
    settings = {"prompts": options.prompts, "guidance": LORA_GUIDANCE, "machine": machine()}
    write_json(settings | {"bases": told}, REPORT)
    TABLE.write_text(f"{ABOUT}\n\n{table(header, rows)}\n", "utf-8")
    print(table(header, rows))


if __name__ == "__main__":
    main()
