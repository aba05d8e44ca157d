"""Make a pocket base's weights from nothing: `python -m lora_studio.pocket.build --work DIR [--base flow]`.

Stages, each checkpointed every few minutes and resumed by calling the command again: a VAE, a CLIP pair
(text and image encoder), the UNet on latents encoded once, and a polish of the VAE's decoder. For the flow
base, a text encoder and a transformer are in the places of pair and UNet. Then the parts are put together as
a diffusers folder.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    StableDiffusionPipeline,
    UNet2DConditionModel,
    ZImagePipeline,
    ZImageTransformer2DModel,
)
from safetensors.torch import load_file, save_file
from transformers import (
    CLIPTextModel,
    CLIPTokenizer,
    CLIPVisionModelWithProjection,
    PreTrainedTokenizerBase,
    Qwen2Tokenizer,
    Qwen3Model,
)

from lora_studio.pocket.stages import run_in_processes
from lora_studio.pocket.stages.clip import ClipPair, build_clip, load_pair
from lora_studio.pocket.stages.text import build_text, load_text
from lora_studio.pocket.stages.transformer import build_transformer, new_flow_scheduler
from lora_studio.pocket.stages.unet import build_unet, new_scheduler
from lora_studio.pocket.stages.vae import FIRST, FLOW, build_vae, polish_decoder
from lora_studio.pocket.stages.world import encode_world

DEFAULT_STEPS = {
    "unet": {"vae": 1450, "clip": 900, "latents": 0, "unet": 5600, "decoder": 400, "assemble": 0},
    "flow": {"vae": 2600, "text": 300, "latents": 0, "transformer": 8700, "decoder": 400, "assemble": 0},
}
"""The stages of each base in their order, and their steps; none for what is not trained."""
OUT = {"unet": Path(__file__).parent / "weights", "flow": Path(__file__).parent / "flow_weights"}
FLOW_GROUPS = 256  # of 64 images


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m lora_studio.pocket.build", description=__doc__)
    stages = {stage: None for steps in DEFAULT_STEPS.values() for stage in steps}
    trained = {stage for steps in DEFAULT_STEPS.values() for stage, count in steps.items() if count}
    add = parser.add_argument
    add("--base", choices=tuple(DEFAULT_STEPS), default="unet", help="unet: the first one; flow: the second")
    add("--work", type=Path, help="checkpoints, logs and images; default: runs/pocket-build-BASE")
    add("--out", type=Path, help="the finished diffusers folder; default: the package's")
    add("--stages", nargs="+", choices=tuple(stages), help="default: all of the base")
    for stage in stages:
        if stage in trained:
            add(f"--{stage}-steps", type=int)
    add("--groups", type=int, default=FLOW_GROUPS, help="of 64 images that the flow base learns from")
    add("--processes", type=int, default=1, help="on a CPU, one for each core is fastest")
    add("--start-from", type=Path, help="a finished base of the same kind to go on from")
    return parser.parse_args()


def adopt(base: Path, work: Path, kind: str = "unet") -> None:
    """Fill an empty `work` with the finished parts of `base`; its denoiser is where its stage starts.

    The optimizer's moments are not in a finished base, so training goes on with a new warm-up. The VAE's
    encoder and the text encoder stay as they are, because the denoiser has learned their language.
    """
    denoiser = {"unet": "unet", "flow": "transformer"}[kind]
    if not (base / denoiser).is_dir():
        raise SystemExit(f"{base} has no {denoiser}: --start-from takes a finished base of --base {kind}.")
    if (work / denoiser).exists():
        raise SystemExit(f"{work} holds a build already; name an empty folder with --work.")
    vae = AutoencoderKL.from_pretrained(base / "vae", dtype=torch.float32)
    for stage in ("vae", "decoder"):
        vae.save_pretrained(work / stage / "done")
    if kind == "flow":
        _adopt_flow(base, work)
        return
    unet = UNet2DConditionModel.from_pretrained(base / "unet", dtype=torch.float32)
    unet.save_pretrained(work / "unet" / "start")
    tokenizer = CLIPTokenizer.from_pretrained(base / "tokenizer")
    tokenizer.save_pretrained(work / "clip" / "tokenizer")
    save_file(_pair_state(base, ClipPair(tokenizer)), work / "clip" / "pair.safetensors")


def _adopt_flow(base: Path, work: Path) -> None:
    transformer = ZImageTransformer2DModel.from_pretrained(base / "transformer", dtype=torch.float32)
    transformer.save_pretrained(work / "transformer" / "start")
    encoder = Qwen3Model.from_pretrained(base / "text_encoder", dtype=torch.float32)
    encoder.save_pretrained(work / "text" / "done")
    Qwen2Tokenizer.from_pretrained(base / "tokenizer").save_pretrained(work / "text" / "tokenizer")


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
    _replace(out, partial(write_base, vae=vae, unet=unet, pair=pair, tokenizer=tokenizer))


def _replace(out: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a folder that takes the place of `out` once it is whole."""
    temporary = out.with_name(out.name + ".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    write(temporary)
    shutil.rmtree(out, ignore_errors=True)
    temporary.rename(out)


def _tidy(out: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    """Take the folders that parts were built in out of the configurations; add the words as UIs read them."""
    for config in out.glob("*/config.json"):
        values = json.loads(config.read_text())
        values.pop("_name_or_path", None)
        config.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n")
    tokenizer.backend_tokenizer.model.save(str(out / "tokenizer"))


def write_base(
    out: Path, vae: AutoencoderKL, unet: UNet2DConditionModel, pair: ClipPair, tokenizer: CLIPTokenizer
) -> None:
    """A folder that `StableDiffusionPipeline.from_pretrained` loads, in fp16 safetensors."""
    parts = vae.half(), pair.text.half(), tokenizer, unet.half(), new_scheduler()
    without_checker = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    pipeline = StableDiffusionPipeline(*parts, **without_checker)
    pipeline.save_pretrained(out, safe_serialization=True)
    _tidy(out, tokenizer)
    pair.vision.half().save_pretrained(out / "image_encoder")
    projection = {"text_projection.weight": pair.text_projection.weight.detach().to(torch.float16)}
    save_file(projection, out / "image_encoder" / "text_projection.safetensors")


def assemble_flow(work: Path, out: Path) -> None:
    """As `assemble`, for the flow base: a folder that `ZImagePipeline.from_pretrained` loads."""
    encoder, tokenizer = load_text(work / "text", torch.device("cpu"))
    vae = AutoencoderKL.from_pretrained(work / "decoder" / "done")
    transformer = ZImageTransformer2DModel.from_pretrained(work / "transformer" / "done")
    _replace(
        out, partial(write_flow_base, vae=vae, encoder=encoder, tokenizer=tokenizer, transformer=transformer)
    )


def write_flow_base(
    out: Path,
    vae: AutoencoderKL,
    encoder: Qwen3Model,
    tokenizer: Qwen2Tokenizer,
    transformer: ZImageTransformer2DModel,
) -> None:
    """A folder that `ZImagePipeline.from_pretrained` loads, in fp16 safetensors."""
    parts = vae.half(), encoder.half(), tokenizer, transformer.half()
    ZImagePipeline(new_flow_scheduler(), *parts).save_pretrained(out, safe_serialization=True)
    _tidy(out, tokenizer)


def main() -> None:
    """Run the stages asked for, in order; a stage that has its steps already only rewrites its result.

    To train the shipped UNet further: --start-from lora_studio/pocket/weights --stages latents unet assemble;
    the transformer: --base flow, flow_weights for weights, transformer for unet.
    """
    options = _options()
    work, default = options.work or Path("runs") / f"pocket-build-{options.base}", DEFAULT_STEPS[options.base]
    asked: dict[str, int | None] = {stage: getattr(options, f"{stage}_steps", None) for stage in default}
    steps = {stage: default[stage] if count is None else count for stage, count in asked.items()}
    if others := [stage for stage in options.stages or () if stage not in steps]:
        raise SystemExit(f"--base {options.base} has no stage {others[0]!r}, but {', '.join(steps)}.")
    if options.start_from is not None:
        adopt(options.start_from, work, options.base)
    run = partial(run_in_processes, options.processes, (work / "meeting").absolute())
    device, out = (
        torch.device("cuda" if torch.cuda.is_available() else "cpu"),
        options.out or OUT[options.base],
    )
    is_flow = options.base == "flow"
    lessons, denoiser = (FLOW, work / "transformer") if is_flow else (FIRST, work / "unet")
    size = {"groups": options.groups, "scale": 2} if is_flow else {}
    doing: dict[str, Callable[[], None]] = {
        "vae": lambda: run(build_vae, work / "vae", steps["vae"], device, lessons),
        "clip": lambda: run(build_clip, work / "clip", steps["clip"], device),
        "text": lambda: run(build_text, work / "text", steps["text"], device),
        "latents": lambda: encode_world(work, denoiser / "latents.safetensors", device, **size),
        "unet": lambda: run(build_unet, work, steps["unet"], device),
        "transformer": lambda: run(build_transformer, work, steps["transformer"], device),
        "decoder": lambda: run(polish_decoder, work, steps["decoder"], device, lessons),
        "assemble": lambda: (assemble_flow if is_flow else assemble)(work, out),
    }
    for stage in steps:
        if stage in (options.stages or steps):
            doing[stage]()


if __name__ == "__main__":
    main()
