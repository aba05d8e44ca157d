"""Make the pocket base's weights from nothing: `python -m lora_studio.pocket.build --work DIR`.

Stages, each checkpointed every few minutes and resumed by calling the command again: a VAE, a CLIP pair
(text and image encoder), the UNet on latents encoded once, and a polish of the VAE's decoder. Then the parts
are put together as a diffusers folder.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from transformers import CLIPTextModel, CLIPTokenizer, CLIPVisionModelWithProjection

from lora_studio.pocket.stages import run_in_processes
from lora_studio.pocket.stages.clip import ClipPair, build_clip, load_pair
from lora_studio.pocket.stages.unet import build_unet, encode_world, new_scheduler
from lora_studio.pocket.stages.vae import build_vae, polish_decoder

STAGES = ("vae", "clip", "latents", "unet", "decoder", "assemble")
DEFAULT_STEPS = {"vae": 1450, "clip": 900, "unet": 5600, "decoder": 400}


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m lora_studio.pocket.build", description=__doc__)
    add, weights = parser.add_argument, Path(__file__).parent / "weights"
    add("--work", type=Path, default=Path("runs/pocket-build"), help="checkpoints, logs and images")
    add("--out", type=Path, default=weights, help="the finished diffusers folder")
    add("--stages", nargs="+", choices=STAGES, default=STAGES)
    for stage, steps in DEFAULT_STEPS.items():
        add(f"--{stage}-steps", type=int, default=steps)
    add("--processes", type=int, default=1, help="on a CPU, one for each core is fastest")
    add("--start-from", type=Path, help="a finished base to go on from")
    return parser.parse_args()


def adopt(base: Path, work: Path) -> None:
    """Fill an empty `work` with the finished parts of `base`; its UNet is where the unet stage starts.

    The optimizer's moments are not in a finished base, so training goes on with a new warm-up. The VAE's
    encoder and the text encoder stay as they are, because the UNet has learned their language.
    """
    if (work / "unet").exists():
        raise SystemExit(f"{work} holds a build already; name an empty folder with --work.")
    vae = AutoencoderKL.from_pretrained(base / "vae", dtype=torch.float32)
    for stage in ("vae", "decoder"):
        vae.save_pretrained(work / stage / "done")
    unet = UNet2DConditionModel.from_pretrained(base / "unet", dtype=torch.float32)
    unet.save_pretrained(work / "unet" / "start")
    tokenizer = CLIPTokenizer.from_pretrained(base / "tokenizer")
    tokenizer.save_pretrained(work / "clip" / "tokenizer")
    save_file(_pair_state(base, ClipPair(tokenizer)), work / "clip" / "pair.safetensors")


def _pair_state(base: Path, pair: ClipPair) -> dict[str, torch.Tensor]:
    pair.text.load_state_dict(CLIPTextModel.from_pretrained(base / "text_encoder").float().state_dict())
    vision = CLIPVisionModelWithProjection.from_pretrained(base / "image_encoder")
    pair.vision.load_state_dict(vision.float().state_dict())
    projection = load_file(base / "image_encoder" / "text_projection.safetensors")["text_projection.weight"]
    pair.text_projection.weight.data.copy_(projection)
    return {name: tensor.contiguous() for name, tensor in pair.state_dict().items()}


def assemble(work: Path, out: Path) -> None:
    """Write the finished base of `work` to `out`; a folder that was there is replaced at the end."""
    pair, tokenizer = load_pair(work / "clip")
    vae = AutoencoderKL.from_pretrained(work / "decoder" / "done")
    unet = UNet2DConditionModel.from_pretrained(work / "unet" / "done")
    temporary = out.with_name(out.name + ".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    write_base(temporary, vae, unet, pair, tokenizer)
    shutil.rmtree(out, ignore_errors=True)
    temporary.rename(out)


def write_base(
    out: Path, vae: AutoencoderKL, unet: UNet2DConditionModel, pair: ClipPair, tokenizer: CLIPTokenizer
) -> None:
    """A folder that `StableDiffusionPipeline.from_pretrained` loads, in fp16 safetensors."""
    parts = vae.half(), pair.text.half(), tokenizer, unet.half(), new_scheduler()
    without_checker = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    pipeline = StableDiffusionPipeline(*parts, **without_checker)
    pipeline.save_pretrained(out, safe_serialization=True)
    for config in out.glob("*/config.json"):  # without the folder that a part was built in
        values = json.loads(config.read_text())
        values.pop("_name_or_path", None)
        config.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n")
    tokenizer.backend_tokenizer.model.save(str(out / "tokenizer"))  # the files that UIs read
    pair.vision.half().save_pretrained(out / "image_encoder")
    projection = {"text_projection.weight": pair.text_projection.weight.detach().to(torch.float16)}
    save_file(projection, out / "image_encoder" / "text_projection.safetensors")


def main() -> None:
    """Run the stages asked for, in order; a stage that has its steps already only rewrites its result.

    To train the shipped UNet further: --start-from lora_studio/pocket/weights --stages latents unet assemble.
    """
    options = _options()
    work, device = options.work, torch.device("cuda" if torch.cuda.is_available() else "cpu")
    run = partial(run_in_processes, options.processes, (work / "meeting").absolute())
    stages: dict[str, Callable[[], None]] = {
        "vae": lambda: run(build_vae, work / "vae", options.vae_steps, device),
        "clip": lambda: run(build_clip, work / "clip", options.clip_steps, device),
        "latents": lambda: encode_world(work, device),
        "unet": lambda: run(build_unet, work, options.unet_steps, device),
        "decoder": lambda: run(polish_decoder, work, options.decoder_steps, device),
        "assemble": lambda: assemble(work, options.out),
    }
    if options.start_from is not None:
        adopt(options.start_from, work)
    for name in STAGES:
        if name in options.stages:
            stages[name]()


if __name__ == "__main__":
    main()
