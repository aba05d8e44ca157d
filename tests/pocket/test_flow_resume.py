"""A build of the flow base that is killed goes on as if nothing had been, to the byte."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file

from lora_studio.pocket import build, stages
from lora_studio.pocket.scenes import held_out_scenes
from lora_studio.pocket.stages import text, transformer, world

SMALL: dict[str, dict[str, Any]] = {
    "flow_vae": {"block_out_channels": [4, 4, 4, 4]},
    "flow_text": {"intermediate_size": 16, "num_hidden_layers": 2},
    "flow_transformer": {"dim": 24, "n_heads": 1, "n_kv_heads": 1, "axes_dims": [8, 8, 8], "n_layers": 4},
}
BUILD = f"""
import os, signal, torch
from lora_studio.pocket import build, stages
from lora_studio.pocket.scenes import held_out_scenes
from lora_studio.pocket.stages import text, transformer, vae

torch.set_num_threads(1)
configured, update, small = stages.configuration, stages.Trainee.update, {SMALL}
stages.configuration = lambda name: configured(name) | small.get(name, {{}})
stages.CHECKPOINT_SECONDS = 0
build.FLOW = vae.Lessons("flow_vae", 32, 4, 0.05, 1e-3, 8, halves=0.5, crop=16, taught=0.5)
text.BATCH = transformer.BATCH = 4
vae.held_out_scenes = text.held_out_scenes = transformer.held_out_scenes = lambda count: held_out_scenes(2)

def update_or_die(trainee, loss):
    if (trainee.config.name, trainee.step) == (os.environ.get("KILLED_IN"), 2):
        os.kill(os.getpid(), signal.SIGKILL)
    update(trainee, loss)

stages.Trainee.update = update_or_die
build.main()
"""
STEPS = {"vae": 4, "text": 4, "transformer": 4, "decoder": 3}


def _build(work: Path, killed_in: str = "") -> int:
    """Run all stages, and die in one; the code that the process ended with."""
    counts = [part for stage, steps in STEPS.items() for part in (f"--{stage}-steps", str(steps))]
    where = ("--base", "flow", "--work", str(work), "--out", str(work / "out"), "--groups", "1")
    environment = os.environ | {"KILLED_IN": killed_in}
    return subprocess.run([sys.executable, "-c", BUILD, *where, *counts], env=environment).returncode


@pytest.mark.slow
def test_a_build_that_is_killed_in_every_stage_ends_in_the_same_bytes(tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert _build(whole) == 0
    for stage in STEPS:
        assert _build(killed, stage) == -signal.SIGKILL, stage
    assert _build(killed) == 0
    files = sorted(path.relative_to(whole) for path in whole.rglob("*.safetensors"))
    assert len(files) == 4 + 4 + 2 + 3  # states, what is done, latents and captions, the base
    for name in files:
        assert (whole / name).read_bytes() == (killed / name).read_bytes(), name


def test_a_build_can_go_on_from_a_finished_base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Taken apart, trained for no step and put together again, it is the same; what is none is refused."""
    configured, cpu = stages.configuration, torch.device("cpu")
    monkeypatch.setattr(stages, "configuration", lambda name: configured(name) | SMALL.get(name, {}))
    monkeypatch.setattr(transformer, "held_out_scenes", lambda count: held_out_scenes(2))
    torch.manual_seed(0)
    tokenizer = text.new_tokenizer(tmp_path / "tokenizer")
    parts = {
        "vae": AutoencoderKL(**stages.configuration("flow_vae")),
        "encoder": text.new_text_encoder(tokenizer).model,
        "transformer": transformer.new_transformer(),
    }
    base, work, again = (tmp_path / name for name in ("base", "work", "again"))
    build.write_flow_base(base, tokenizer=tokenizer, **parts)
    build.adopt(base, work, "flow")
    world.encode_world(work, work / "transformer" / "latents.safetensors", cpu, groups=1, scale=2)
    transformer.build_transformer(work, 0, cpu)
    build.assemble_flow(work, again)
    files = sorted(path.relative_to(base) for path in base.rglob("*.safetensors"))
    assert len(files) == 3
    for name in files:
        old, new = load_file(base / name), load_file(again / name)
        assert old.keys() == new.keys() and all(torch.equal(old[key], new[key]) for key in old), name
    for kind, wrong, words in (("unet", tmp_path / "other", "has no unet"), ("flow", work, "holds a build")):
        with pytest.raises(SystemExit, match=words):
            build.adopt(base, wrong, kind)
