"""Make the pocket base's weights from nothing: `python -m lora_studio.pocket.build --work DIR`.

Stages, each checkpointed every few minutes and resumed by calling the command again: a VAE, a CLIP pair
(text and image encoder), the UNet on latents encoded once, and a polish of the VAE's decoder. Then the parts
are put together as a diffusers folder.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

import torch

from lora_studio.pocket.stages.common import run_in_processes

STAGES = ("vae", "clip", "latents", "unet", "decoder", "assemble")

DEFAULT_STEPS = {"vae": 1450, "clip": 900, "unet": 5600, "decoder": 400}


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m lora_studio.pocket.build", description=__doc__)
    parser.add_argument(
        "--work", type=Path, default=Path("runs/pocket-build"), help="checkpoints, logs and images"
    )
    parser.add_argument(
        "--out", type=Path, default=Path(__file__).parent / "weights", help="the finished diffusers folder"
    )
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=STAGES)
    for stage, steps in DEFAULT_STEPS.items():
        parser.add_argument(f"--{stage}-steps", type=int, default=steps)
    parser.add_argument("--processes", type=int, default=1, help="on a CPU, one for each core is fastest")
    parser.add_argument("--start-from", type=Path, help="a finished base to go on from")
    return parser.parse_args()


def main() -> None:
    """Run the stages asked for, in order; a stage that has its steps already only rewrites its result.

    To train the shipped UNet further: --start-from lora_studio/pocket/weights --stages latents unet assemble.
    """
    options = _options()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    run = partial(run_in_processes, options.processes, (options.work / "meeting").absolute())
    if options.start_from is not None:
        from lora_studio.pocket.stages.adopt import adopt

        adopt(options.start_from, options.work)
    if "vae" in options.stages:
        from lora_studio.pocket.stages.vae import build_vae

        run(build_vae, options.work / "vae", options.vae_steps, device)
    if "clip" in options.stages:
        from lora_studio.pocket.stages.clip import build_clip

        run(build_clip, options.work / "clip", options.clip_steps, device)
    if "latents" in options.stages:
        from lora_studio.pocket.stages.unet import encode_world

        encode_world(options.work, device)
    if "unet" in options.stages:
        from lora_studio.pocket.stages.unet import build_unet

        run(build_unet, options.work, options.unet_steps, device)
    if "decoder" in options.stages:
        from lora_studio.pocket.stages.vae import polish_decoder

        run(polish_decoder, options.work, options.decoder_steps, device)
    if "assemble" in options.stages:
        from lora_studio.pocket.stages.assemble import assemble

        assemble(options.work, options.out)


if __name__ == "__main__":
    main()
