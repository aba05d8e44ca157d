"""An optimizer with weights of its own to show: looking at them changes nothing, and resumes are exact."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from lora_studio.recipe import load_recipe
from lora_studio.run import Run
from lora_studio.training.session import Finished, train

CHANGES = (
    *("training.optimizer=schedule_free", "training.schedule=constant", "preview.prompts=[]"),
    *("export.dtype=float32", "training.checkpoint_every=2"),
)
LOOKING = ("holdout.count=1", "holdout.every=1")


def test_measured_and_resumed_it_ends_with_the_same_bits_and_exports_its_mean(
    tmp_path: Path, recipe_file: Path
) -> None:
    pytest.importorskip("schedulefree")
    straight = train(
        load_recipe(recipe_file, changes=(*CHANGES, *LOOKING, "holdout.every=4")), tmp_path / "one"
    )
    for steps in (2, 4):
        recipe = load_recipe(recipe_file, changes=(*CHANGES, *LOOKING, f"training.steps={steps}"))
        looked = train(recipe, tmp_path / "two", resume=steps == 4)
    assert isinstance(straight, Finished) and isinstance(looked, Finished)
    for name in ("adapters.safetensors", "optimizer.safetensors"):
        path = Path("checkpoints/step_000004") / name
        assert (tmp_path / "one" / path).read_bytes() == (tmp_path / "two" / path).read_bytes()
    assert straight.lora_file.read_bytes() == looked.lora_file.read_bytes()
    last = Run(tmp_path / "one").newest_checkpoint()
    trained, kept = load_file(last / "adapters.safetensors"), load_file(last / "optimizer.safetensors")
    exported = load_file(straight.lora_file)
    for key, tensor in trained.items():
        if key.endswith(".up"):
            mean = tensor + (kept[f"{key}|z"] - tensor) * (1 - 1 / 0.9)  # arXiv 2405.15682: y = 0.9 x + 0.1 z
            path = key.removeprefix("unet.").removesuffix(".up").replace(".", "_")
            torch.testing.assert_close(
                exported[f"lora_unet_{path}.lora_up.weight"], mean, atol=1e-7, rtol=1e-5
            )
            assert (tensor - mean).abs().max() > 1e-5
