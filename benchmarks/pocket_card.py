"""The figures of the pocket base's card: VAE, prompt following, retrieval, size.

`python benchmarks/pocket_card.py [--prompts 300] [--guidance 4] [--json FILE] [--sheet FILE]`
"""

from __future__ import annotations

import argparse
import math
import time
from collections import defaultdict
from dataclasses import asdict
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DiffusionPipeline
from figures import Criterion, Share, at_least, at_most, criteria_table, machine, share_of, table, write_json
from images import DEFAULT_BASE, GUIDANCE, STEPS, Prompt, generate, load_pipeline, save_sheet
from judge import DEFAULT_FOLDER, Judge, Verdict, load_or_train
from PIL import Image
from safetensors.torch import load_file
from transformers import CLIPVisionModelWithProjection

from lora_studio.pocket.scenes import Scene, draw, held_out_scenes
from lora_studio.pocket.stages import images_to_tensor, tensor_to_images
from lora_studio.pocket.stages.clip import ClipPair, retrieval

SEED = 5  # of the held-out scenes; the stages look at seed 0 while they train
VAE_SCENES = 256
RETRIEVAL_SCENES = 200
ASPECTS = ("object", "colour", "background")


@torch.inference_mode()
def reconstructions(vae: AutoencoderKL, scenes: list[Scene]) -> tuple[list[Image.Image], float]:
    """The scenes' images through the VAE and back, and their PSNR in dB over all pixels."""
    images: list[Image.Image] = []
    squared, side = 0.0, vae.config.sample_size
    for start in range(0, len(scenes), 32):
        some = scenes[start : start + 32]
        pixels = images_to_tensor([draw(scene, side, side) for scene in some]).to(vae.device)
        again = vae.decode(vae.encode(pixels).latent_dist.mode()).sample.clamp(-1, 1)
        squared += (again - pixels).square().mean(dim=(1, 2, 3)).sum().item()
        images += tensor_to_images(again)
    return images, 10 * math.log10(4 / (squared / len(scenes)))


def following(scenes: list[Scene], verdicts: list[Verdict]) -> dict[str, list[bool]]:
    """For every scene, whether the image has its object, colour, background, and all three."""
    things = [scene.things[0] for scene in scenes]
    hits = {
        "object": [v.object == t.name for v, t in zip(verdicts, things, strict=True)],
        "colour": [v.colour == t.colour for v, t in zip(verdicts, things, strict=True)],
        "background": [v.background == s.background for v, s in zip(verdicts, scenes, strict=True)],
    }
    return hits | {"all three": [all(row) for row in zip(*hits.values(), strict=True)]}


def weakest(scenes: list[Scene], hits: dict[str, list[bool]], aspect: str) -> dict[str, float]:
    """The three names of an aspect that are drawn wrong most often, with their shares right."""
    named = {"object": lambda s: s.things[0].name, "colour": lambda s: s.things[0].colour}
    by_name: dict[str, list[bool]] = defaultdict(list)
    for scene, hit in zip(scenes, hits[aspect], strict=True):
        by_name[named.get(aspect, lambda s: s.background)(scene)].append(hit)
    shares = {name: round(sum(found) / len(found), 3) for name, found in by_name.items()}
    return dict(sorted(shares.items(), key=lambda item: item[1])[:3])


def clip_retrieval(pipe: DiffusionPipeline, base: Path) -> tuple[float, float]:
    """Retrieval among held-out scenes by the shipped encoders: text finds image, image finds text."""
    pair = ClipPair(pipe.tokenizer)
    pair.text = pipe.text_encoder.cpu()
    pair.vision = CLIPVisionModelWithProjection.from_pretrained(
        base / "image_encoder", dtype=torch.float32, local_files_only=True
    )
    projection = load_file(base / "image_encoder" / "text_projection.safetensors")["text_projection.weight"]
    pair.text_projection.load_state_dict({"weight": projection.float()})
    return retrieval(pair.eval(), pipe.tokenizer, held_out_scenes(RETRIEVAL_SCENES, seed=SEED + 1))


def folder_megabytes(folder: Path) -> float:
    """The size of all files, in MB of 10^6 bytes."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6


def _criteria(report: dict[str, object], judge: Judge, is_flow: bool) -> list[Criterion]:
    own = min(share for name, share in judge.accuracy_on_renders().items() if name.startswith("plain/"))
    shares: dict[str, dict[str, float]] = report["prompt_following"]  # type: ignore[assignment]
    return [
        at_least("judge on held-out renders, plain style, worst head", own, 0.98),
        *(at_least(f"prompt following: {aspect}", shares[aspect]["share"], 0.9) for aspect in ASPECTS),
        at_least("VAE PSNR on held-out scenes, dB", report["vae_psnr_db"], 28 if is_flow else 24),  # type: ignore[arg-type]
        at_most("folder size, MB", report["folder_megabytes"], 24 if is_flow else 16),  # type: ignore[arg-type]
    ]


def _vae_figures(vae: AutoencoderKL, judge: Judge) -> dict[str, object]:
    """PSNR, and how often the judge is right on renders that went through the VAE: the UNet's ceiling."""
    scenes = held_out_scenes(VAE_SCENES, seed=SEED + 2)
    images, psnr_db = reconstructions(vae, scenes)
    hits = following(scenes, judge.classify(images))
    ceiling = {aspect: share_of(hit).share for aspect, hit in hits.items()}
    return {"vae_psnr_db": round(psnr_db, 2), "judge_right_on_vae_reconstructions": ceiling}


def _following_figures(scenes: list[Scene], verdicts: list[Verdict]) -> dict[str, object]:
    hits = following(scenes, verdicts)
    return {
        "prompt_following": {aspect: asdict(share_of(hit)) for aspect, hit in hits.items()},
        "weakest": {aspect: weakest(scenes, hits, aspect) for aspect in ASPECTS},
        "judged_plain_style": asdict(share_of([v.style == "plain" for v in verdicts])),
    }


def measure(options: argparse.Namespace) -> tuple[dict[str, object], list[Criterion], list[Image.Image]]:
    """The report, its criteria and the generated images."""
    judge = load_or_train(options.judge)
    pipe = load_pipeline(options.base)
    report = _vae_figures(pipe.vae, judge)
    scenes = held_out_scenes(options.prompts, seed=SEED)
    prompts = [Prompt(scene.caption(), options.seed * 10**6 + i) for i, scene in enumerate(scenes)]
    started = time.monotonic()
    images = generate(pipe, prompts, guidance=options.guidance, name="prompt following")
    seconds = (time.monotonic() - started) / len(prompts)
    report |= _following_figures(scenes, judge.classify(images))
    if has_pair := (options.base / "image_encoder").is_dir():
        found, named = clip_retrieval(pipe, options.base)
        report["clip_retrieval"] = {
            "among": RETRIEVAL_SCENES,
            "text_to_image": found,
            "image_to_text": named,
        }
    report |= {
        "folder_megabytes": round(folder_megabytes(options.base), 2),
        "judge_accuracy_on_renders": judge.accuracy_on_renders(),
        "seconds_per_image": round(seconds, 3),
        "machine": machine(),
    }
    facts = {key: vars(options)[key] for key in ("prompts", "guidance", "seed")} | {"steps": STEPS}
    criteria = _criteria(report, judge, is_flow=not has_pair)
    return facts | report | {"criteria": [asdict(c) for c in criteria]}, criteria, images


def _markdown(report: dict[str, object], criteria: list[Criterion]) -> str:
    shares: dict[str, dict[str, float]] = report["prompt_following"]  # type: ignore[assignment]
    ceiling: dict[str, float] = report["judge_right_on_vae_reconstructions"]  # type: ignore[assignment]
    clip: dict[str, float] = report.get("clip_retrieval", {})  # type: ignore[assignment]
    rows = [(f"{aspect} right", Share(**s), f"{100 * ceiling[aspect]:.1f} %") for aspect, s in shares.items()]
    title = f"{report['prompts']} held-out prompts, guidance {report['guidance']}, {STEPS} steps"
    retrieved = "; ".join(f"{name} {share}" for name, share in clip.items())
    return "\n\n".join(
        (
            table((title, "generated (95 % interval)", "same judge on VAE reconstructions"), rows),
            *((f"CLIP retrieval: {retrieved}.",) if clip else ()),
            criteria_table(criteria),
        )
    )


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--base", type=Path, default=DEFAULT_BASE)
    parser.add_argument("--prompts", type=int, default=300)
    parser.add_argument("--guidance", type=float, default=GUIDANCE)
    parser.add_argument("--seed", type=int, default=0, help="of the noise")
    parser.add_argument("--judge", type=Path, default=DEFAULT_FOLDER, help="folder of the judge's weights")
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/pocket_card.json"))
    parser.add_argument("--sheet", type=Path, help="PNG of the first 40 generated images")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; 0: as many as torch likes")
    return parser.parse_args()


def main() -> None:
    """Measure, print and write."""
    options = _options()
    if options.threads:
        torch.set_num_threads(options.threads)
    report, criteria, images = measure(options)
    write_json(report, options.json)
    if options.sheet:
        save_sheet(images[:40], 8, options.sheet)
    print(_markdown(report, criteria))


if __name__ == "__main__":
    main()
