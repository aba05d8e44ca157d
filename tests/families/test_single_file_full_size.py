"""Random checkpoints of full size in the original layout: loaded, told apart, one LoRA step on the CPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate import init_empty_weights
from memory import PEAK_BYTES, needs_proc
from original_layout import PUBLISHED, new_parts, original_tensors, write_random

import lora_studio
from lora_studio.families import FAMILIES

GIB = 2**30
ROOT = Path(lora_studio.__file__).parents[1]
DTYPES = {"sd15": "float16", "sdxl": "bfloat16"}

LOAD = (
    PEAK_BYTES
    + """
import json, sys
from pathlib import Path
import torch
from lora_studio.families.loading.single_file import open_single_file
path, dtype = Path(sys.argv[1]), getattr(torch, sys.argv[2])
loaded = open_single_file(path).load(dtype=dtype)
weights = [weight for part in loaded.parts.values() for weight in part.parameters()]
print(json.dumps({
    "kind": loaded.notes[0],
    "bytes": sum(weight.numel() * weight.element_size() for weight in weights),
    "peak": peak_bytes(),
}))
"""
)
STEP = (
    PEAK_BYTES
    + """
import json, sys
from pathlib import Path
import torch
from lora_studio.adapters.inject import inject
from lora_studio.adapters.rules import AdapterOptions
from lora_studio.objectives.base import ObjectiveOptions
from lora_studio.families.loading import load_file
from lora_studio.rng import generator
family = load_file(Path(sys.argv[1]), dtype=getattr(torch, sys.argv[2]))
dtype = getattr(torch, sys.argv[2])
with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=dtype != torch.float32):
    conditioning = family.encode_text(["a red ball"])
    mean, _ = family.encode_image(torch.rand(1, 3, 128, 128) * 2 - 1)
    noised = family.objective(ObjectiveOptions(timesteps="uniform")).noise(mean, generator("step"))
parts = {family.denoiser: family.targets[family.denoiser]}
adapters = inject(
    family.parts, parts, AdapterOptions("lora", 4, 4, 0), canonical_path=family.canonical_path
)
weights = adapters.parameters(family.denoiser)
optimizer = torch.optim.AdamW(weights, lr=1e-4)
geometry = torch.tensor([[128.0, 128.0, 0.0, 0.0, 128.0, 128.0]])
with torch.autocast("cpu", torch.bfloat16, enabled=dtype != torch.float32):
    answer = family.denoise(noised.latents, noised.timestep, conditioning, geometry)
torch.nn.functional.mse_loss(answer.float(), noised.target).backward()
optimizer.step()
changed = sum(bool(layer.delta().any()) for layer in adapters.layers)
print(json.dumps({"changed": changed, "layers": len(adapters.layers), "peak": peak_bytes()}))
"""
)


@pytest.fixture(scope="module", params=list(DTYPES))
def checkpoint(request, tmp_path_factory):
    """(kind, file) of a whole random base."""
    kind = request.param
    with init_empty_weights(include_buffers=False):
        parts = new_parts(kind, PUBLISHED[kind])
        shapes = {name: tuple(t.shape) for name, t in original_tensors(kind, parts).items()}
    path = tmp_path_factory.mktemp("full") / f"{kind}.safetensors"
    write_random(path, shapes, getattr(torch, DTYPES[kind]))
    yield kind, path
    path.unlink()


def answer_of(script: str, path: Path, dtype: str) -> dict:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", script, str(path), dtype]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout.splitlines()[-1])
    print(kind_and_sizes(answer))
    return answer


def kind_and_sizes(answer: dict) -> dict:
    """For whoever runs these with -s."""
    return {k: f"{v / GIB:.2f} GiB" if k in ("bytes", "peak") else v for k, v in answer.items()}


@pytest.mark.slow
@needs_proc
def test_no_second_copy_is_made_of_a_full_size_base(checkpoint):
    kind, path = checkpoint
    dtype = "bfloat16"
    answer = answer_of(LOAD, path, dtype)
    titles = {"sd15": "Stable Diffusion 1.x", "sdxl": "Stable Diffusion XL"}
    assert answer["kind"].startswith(titles[kind])
    # one copy, the pages of one part that the system maps and may drop, and the libraries
    assert answer["peak"] < answer["bytes"] + 0.8 * path.stat().st_size + GIB


@pytest.mark.slow
@needs_proc
@pytest.mark.parametrize("checkpoint", [kind for kind in DTYPES if kind in FAMILIES.names()], indirect=True)
def test_a_lora_step_trains_on_a_full_size_base(checkpoint):
    kind, path = checkpoint
    answer = answer_of(STEP, path, "float32" if kind == "sd15" else "bfloat16")
    assert answer["changed"] == answer["layers"] > 0
    assert answer["peak"] < 22 * GIB
