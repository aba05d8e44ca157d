"""A family that the sources do not know is one file and one line: planned, trained, written and verified."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from console import run
from made_up_unet import MadeUpUNet, base_made_up, plain_prediction
from safetensors import safe_open
from tiny import recipe_text

import lora_studio as package
from lora_studio.families import FAMILIES
from lora_studio.families.loading import load_base
from lora_studio.recipe.load import load_recipe
from lora_studio.training.finish import Finished
from lora_studio.training.session import train

CAPTIONS = ["a red ball", "the moon"]
PREVIEW = '[samples]\nprompts = ["a red ball"]\nsteps = 2\nevery = 2\n'


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A miniature of the family, which has its line in the table."""
    monkeypatch.setitem(FAMILIES.entries, "made_up", "made_up_unet:MadeUpUNet")
    return base_made_up(tmp_path / "base")


def test_a_made_up_unet_is_planned_trained_written_and_verified(
    base: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def asked(*arguments: object) -> str:
        code, out, error = run([str(one) for one in arguments], capsys)
        assert code == 0, error
        return out

    recipe = tmp_path / "recipe.toml"
    recipe.write_text(recipe_text(images, str(base), steps=2, extra=PREVIEW), "utf-8")
    assert "tiny: what will be trained" in asked("plan", recipe)
    done = train(load_recipe(recipe), tmp_path / "run")
    assert isinstance(done, Finished) and done.report.ok
    assert done.report.checks["probe_difference_share"] < 0.02
    with safe_open(done.lora_file, "pt") as file:
        assert file.metadata()["ss_base_model_version"] == "made_up"
        assert all(key.startswith("lora_unet_") for key in file.keys())  # noqa: SIM118
    asked("export", tmp_path / "run", "--to", "diffusers")
    asked("verify", done.lora_file, "--base", base)


def test_its_prediction_is_that_of_diffusers(base: Path) -> None:
    family = load_base(str(base))
    assert type(family) is MadeUpUNet
    latents, timestep, geometry = family.probe_inputs()
    with torch.no_grad():
        ours = family.denoise(latents, timestep, family.encode_text(CAPTIONS), geometry)
    torch.testing.assert_close(ours, plain_prediction(base, latents, timestep, CAPTIONS), atol=1e-5, rtol=0)


def test_nothing_in_the_sources_knows_it() -> None:
    sources = Path(package.__file__).parent.rglob("*.py")
    assert not [path for path in sources if "MadeUp" in path.read_text("utf-8")]
    assert "made_up" not in FAMILIES.names()
