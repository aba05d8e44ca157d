"""An optimizer with weights of its own to show: looking at them changes nothing, and resumes are exact."""

from __future__ import annotations

from pathlib import Path

import pytest
from safetensors.torch import load_file
from torch import Tensor

from lora_studio.recipe.load import load_recipe
from lora_studio.runs import Run
from lora_studio.training.finish import Finished
from lora_studio.training.session import train

CHANGES = (
    *("training.optimizer=schedule_free", "training.lr_schedule=constant", "samples.prompts=[]"),
    *("export.dtype=float32", "training.checkpoint_every=2"),
)
LOOKING = ("validation.count=1", "validation.every=1")


def test_measured_and_resumed_it_ends_with_the_same_bits_and_exports_its_mean(
    tmp_path: Path, recipe_file: Path
) -> None:
    pytest.importorskip("schedulefree")
    straight = train(
        load_recipe(recipe_file, changes=(*CHANGES, *LOOKING, "validation.every=4")), tmp_path / "one"
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

    def mean(key: str) -> Tensor:  # arXiv 2405.15682: y = 0.9 x + 0.1 z
        tensor = trained[key]
        return (tensor + (kept[f"{key}|z"] - tensor) * (1 - 1 / 0.9)).flatten(1)

    for key in trained:
        if key.endswith(".up"):
            layer = key.removesuffix(".up")
            name = f"lora_unet_{layer.removeprefix('unet.').replace('.', '_')}"
            up, down = (exported[f"{name}.lora_{end}.weight"].flatten(1) for end in ("up", "down"))
            found = up @ down * exported[f"{name}.alpha"] / len(down)
            expected = mean(f"{layer}.up") @ mean(f"{layer}.down")
            assert (found - expected).norm() < 1e-5 * expected.norm()
            assert (trained[key].flatten(1) - mean(key)).abs().max() > 1e-5
