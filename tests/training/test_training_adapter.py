"""A distilled base: what is assumed and said of it, and a LoRA that is beside it while it learns alone."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from lora_files import write_random_lora
from tiny import recipe_text

from lora_studio.errors import BaseModelError, RecipeError
from lora_studio.families.base import UsualSampling
from lora_studio.families.loading import load_base
from lora_studio.families.loading.single_file import named_distilled
from lora_studio.lora_file.lora_file import base_layers
from lora_studio.lora_file.open import Merged, merge_plain
from lora_studio.recipe.load import load_recipe
from lora_studio.runs import Run
from lora_studio.training.events import ignore_events
from lora_studio.training.prepare import Session, prepare
from lora_studio.training.session import train

BaseOf = Callable[[str], Path]
SAMPLES = '[samples]\nprompts = ["a red ball"]\nsteps = 2\n[objective]\npreservation = 0.5\n'


@pytest.fixture
def turbo(base_of: BaseOf, tmp_path: Path) -> Path:
    return Path(shutil.copytree(base_of("z_image"), tmp_path / "Tiny-Turbo"))


@pytest.fixture
def helper(turbo: Path, tmp_path: Path) -> Path:
    """A LoRA of some of its layers, that are trained and not, as strong as the base."""
    shapes = {name: tuple(one.weight.shape) for name, one in base_layers(load_base(str(turbo))).items()}
    chosen = {name: shapes[name] for name in shapes if name.endswith(("to_q", "feed_forward.w2"))}
    chosen |= {name: shapes[name] for name in shapes if name.endswith("adaLN_modulation.0")}
    return write_random_lora(tmp_path / "helper.safetensors", rank=3, alpha=6.0, shapes=chosen)


def session_of(turbo: Path, images: Path, folder: Path, *changes: str, extra: str = "") -> Session:
    path = folder / "recipe.toml"
    path.write_text(recipe_text(images, str(turbo), steps=2, extra=extra), "utf-8")
    return prepare(load_recipe(path, changes=changes), Run(folder / "run"), ignore_events)


def loss_of(session: Session) -> float:
    batch = session.loop.feed.micro_batch(1, 0)
    return session.loop.forward_backward(batch, *session.loop.draw_of(1, 0)).item()


@pytest.mark.parametrize("checkpointing", ["false", "true"])
def test_it_is_as_merged_while_it_learns_and_gone_otherwise(
    turbo: Path, helper: Path, images: Path, tmp_path: Path, checkpointing: str
) -> None:
    option, how = f"base.training_adapter={helper}", f"machine.gradient_checkpointing={checkpointing}"
    found = []
    for number, changes in enumerate([(option,), (f"base.loras=[{{file='{helper}'}}]",), ()]):
        folder = tmp_path / str(number)
        folder.mkdir()
        session = session_of(turbo, images, folder, how, *changes)
        loss = loss_of(session)
        learned = session.adapters.named_parameters()
        gradients = {key: one.grad.clone() for key, one in learned.items() if one.grad is not None}
        latents, timestep, geometry = session.family.probe_inputs()
        with torch.no_grad():
            text = session.family.conditioning_of(["a probe"] * 2)
            prediction = session.family.denoise(latents, timestep, text, geometry)
        session.run.close()
        found.append((loss, gradients, prediction))
    (beside, gradients, alone), (merged, of_merged, _), (plain, of_plain, without) = found
    assert beside == pytest.approx(merged, rel=1e-5) and abs(beside - plain) > 1e-3
    assert torch.equal(alone, without)
    for key, gradient in of_merged.items():
        torch.testing.assert_close(gradients[key], gradient, atol=1e-6, rtol=1e-3)
    assert any(not torch.allclose(gradients[key], one, rtol=0.1) for key, one in of_plain.items())


def test_a_run_with_one_ends_with_a_file_for_the_base_alone(
    turbo: Path, helper: Path, images: Path, tmp_path: Path
) -> None:
    session = session_of(turbo, images, tmp_path, f"base.training_adapter={helper}", extra=SAMPLES)
    first, second = session.family.notes
    assert first == (
        "taken for distilled to a few steps, as its name says; if it is not, set base.distilled = false"
    )
    assert (
        second
        == "helper.safetensors is beside it while it learns, and neither in previews nor in the finished file"
    )
    batch, noisy = session.loop._micro_batch(0)
    asked = session.loop.base_predictions.targets(batch, noisy, None).learned
    session.run.close()
    bare = session_of(turbo, images, tmp_path, extra=SAMPLES)
    assert torch.equal(asked, bare.loop.base_predictions.targets(batch, noisy, None).learned)
    bare.run.close()
    result = train(
        load_recipe(tmp_path / "recipe.toml", changes=(f"base.training_adapter={helper}",)), tmp_path / "out"
    )
    assert result.report.ok  # diffusers loads it into the base alone, and predicts what was probed
    helper.unlink()
    with pytest.raises(RecipeError, match=r"base\.training_adapter"):
        train(tmp_path / "out", resume=True)


NAMES = {
    "Z-Image-Turbo": True,
    "z_image_turbo_bf16": True,
    "Z-Image-De-Turbo": False,
    "Z-Image": False,
    "FLUX.1-schnell": True,
    "sd3.5_large_turbo": True,
    "base-8steps": True,
}


@pytest.mark.parametrize("name", NAMES)
def test_a_name_says_whether_it_is_distilled(name: str) -> None:
    assert named_distilled(name) == NAMES[name]


def test_what_is_assumed_is_said_and_a_distilled_base_by_itself_is_warned_about(
    turbo: Path, base_of: BaseOf, images: Path, tmp_path: Path
) -> None:
    alone = session_of(turbo, images, tmp_path)
    alone.run.close()
    assert alone.family.distilled and alone.family.usual_sampling == UsualSampling(9, 1.0)
    assert alone.family.notes[1].startswith(
        "warning: it is distilled to a few steps, and training it as it is blurs"
    )
    said = session_of(turbo, images, tmp_path, "base.distilled=false")
    said.run.close()
    assert said.family.notes == () and said.family.usual_sampling == UsualSampling(30, 4.0)
    words = (
        "taken for not distilled to a few steps, as its name says nothing else; if it is, set base.distilled"
    )
    assert load_base(str(base_of("z_image")), weights=False).notes == (f"{words} = true",)


def test_what_means_nothing_is_refused(
    turbo: Path, helper: Path, images: Path, tiny_base: Path, tmp_path: Path
) -> None:
    with pytest.raises(BaseModelError, match=r"base\.distilled is true, but .* makes no difference"):
        session_of(tiny_base, images, tmp_path, "base.distilled=true")
    with pytest.raises(RecipeError, match=r"base.training_adapter: .*are not in this base"):
        session_of(tiny_base, images, tmp_path, f"base.training_adapter={helper}")
    drawn = ("data.regularization_images.count=1",)
    with pytest.raises(RecipeError, match=r"guidance is 7\.5, but .* distilled .* set it to 1, .* to 9\."):
        session_of(turbo, images, tmp_path, *drawn)


def test_a_lora_in_the_base_is_part_of_its_fingerprint(turbo: Path, helper: Path) -> None:
    plain, merged, weaker = (load_base(str(turbo)) for _ in range(3))
    merge_plain(merged, [Merged(helper, 1.0)])
    merge_plain(weaker, [Merged(helper, 0.5)])
    assert len({one.fingerprint("transformer") for one in (plain, merged, weaker)}) == 3
