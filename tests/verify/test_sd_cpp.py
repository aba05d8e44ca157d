"""stable-diffusion.cpp, which shares no line with diffusers, applies every tensor of a file of full size.

It needs `pip install stable-diffusion-cpp-python`, which builds it from its source.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate import init_empty_weights
from full_size import OPTIONS, full_size_family, keys_and_shapes
from original_layout import PUBLISHED, new_parts, original_tensors, write_random

from lora_studio.adapters.inject import inject
from lora_studio.lora_file.write import write_lora

pytestmark = pytest.mark.slow
DRAW = """
import sys
from stable_diffusion_cpp import StableDiffusion
model = StableDiffusion(model_path=sys.argv[1], lora_model_dir=sys.argv[2], verbose=True)
model.generate_image(prompt=sys.argv[3], width=64, height=64, sample_steps=1, cfg_scale=1.0, seed=1)
"""


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random checkpoint in the original layout."""
    with init_empty_weights(include_buffers=False):
        shapes = {
            n: tuple(t.shape)
            for n, t in original_tensors("sd15", new_parts("sd15", PUBLISHED["sd15"])).items()
        }
    path = tmp_path_factory.mktemp("full") / "base.safetensors"
    write_random(path, shapes, torch.float16)
    return path


@pytest.mark.parametrize("convolutions", [False, True])
def test_every_tensor_is_applied(convolutions: bool, base: Path, tmp_path: Path) -> None:
    pytest.importorskip("stable_diffusion_cpp")
    family = full_size_family()
    targets = family.targets
    if convolutions:
        targets = targets | {"unet": targets["unet"] + family.convolutions["unet"]}
    adapters = inject(family.parts, targets, OPTIONS, canonical_path=family.canonical_path)
    shapes = {
        key: tuple(int(side) for side in text.strip("()").split(",") if side.strip())
        for key, text in keys_and_shapes(family, adapters).items()
    }
    tensors = {
        key: 0.01 * torch.randn(shape) if shape else torch.tensor(4.0) for key, shape in shapes.items()
    }
    write_lora(tmp_path / "mine.safetensors", tensors, dtype="float16", describe=lambda _: {})
    command = [sys.executable, "-c", DRAW, str(base), str(tmp_path), "a cat <lora:mine:1>"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1200)
    said = done.stdout + done.stderr
    assert done.returncode == 0, said[-2000:]
    assert f"({len(tensors)} / {len(tensors)}) LoRA tensors have been applied" in said, said[-2000:]
    assert "unused lora tensor" not in said
