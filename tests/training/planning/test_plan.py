"""What a plan says before training, against what can be counted in another way."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from console import run as command
from diffusers import AutoencoderKL, UNet2DConditionModel
from tiny import recipe_text
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from transformers import CLIPTextModel

from lora_studio.console import Screen, print_needs, print_plan
from lora_studio.families.base import innermost_blocks
from lora_studio.recipe.load import load_recipe
from lora_studio.runs import ReadOnlyRun, Run
from lora_studio.training.events import ignore_events
from lora_studio.training.finish import Finished
from lora_studio.training.planning import GIB, Advice, RunPlan, advise, in_main_memory, plan, together
from lora_studio.training.planning.memory import Memory
from lora_studio.training.prepare import Session, prepare
from lora_studio.training.report import counts, describe, time_everything

MORE = """
[validation]
count = 2
every = 3
[samples]
prompts = ["a red ball, zwx style", "a blue cat"]
steps = 4
every = 2
"""


@pytest.fixture(scope="module")
def recipe_path(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path, images: Path) -> Path:
    """Seven steps with validation images and previews."""
    path = tmp_path_factory.mktemp("plan") / "tiny.toml"
    text = recipe_text(images, str(tiny_base), steps=7, extra=MORE)
    path.write_text(text.replace("resolution = 64", "resolution = 64\nrepeats = 2"), "utf-8")
    return path


@pytest.fixture(scope="module")
def session(recipe_path: Path) -> Session:
    return prepare(load_recipe(recipe_path), ReadOnlyRun(Path("runs/none")), ignore_events)


@pytest.fixture(scope="module")
def planned(recipe_path: Path, session: Session, tmp_path_factory: pytest.TempPathFactory) -> RunPlan:
    """In a folder of its own, and for a device with next to nothing."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("empty"))
        state = torch.get_rng_state()
        found = plan(recipe_path, memory_gib=0.03)
        assert torch.equal(state, torch.get_rng_state())
        assert list(Path().iterdir()) == []
    return found


def test_weights_and_training_states_are_those_of_the_files(planned: RunPlan, tiny_base: Path) -> None:
    networks = {"unet": UNet2DConditionModel, "vae": AutoencoderKL, "text_encoder": CLIPTextModel}
    memory = planned.memory
    for name, network in networks.items():
        loaded = network.from_pretrained(tiny_base / name)
        numbers = sum(one.numel() for one in loaded.parameters())
        assert memory.parts[name] == pytest.approx(4 * numbers, rel=0.001)  # and a few buffers
    assert memory.adapters == memory.gradients == 4 * planned.training.data["num_parameters"]
    assert memory.optimizer == pytest.approx(2 * memory.adapters, rel=0.01)  # two moments, and counters
    assert memory.mean == 0 and 0 < memory.made < 16 / 9 * memory.parts["unet"]
    assert memory.total == memory.resident + max(memory.gradients + memory.activations, memory.previews)


def test_activations_hold_all_that_is_saved_for_the_backward_pass(session: Session, planned: RunPlan) -> None:
    parameters = {
        one.untyped_storage().data_ptr() for p in session.family.parts.values() for one in p.parameters()
    }
    saved: dict[int, tuple[int, Tensor]] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            saved[storage.data_ptr()] = (storage.nbytes(), tensor)  # kept, so that no address is used twice
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        session.loop.loss(session.loop.feed.largest(), torch.Generator().manual_seed(0))
    total = sum(size for size, _ in saved.values())
    assert 0.9 * total < planned.memory.activations < 1.5 * total


def test_times_are_counted_as_the_run_will_do_it_and_trials_change_nothing(session: Session) -> None:
    """Seven steps, measured every 3 and drawn every 2, also before the first and after the last."""
    before, state = session.adapters.state(), torch.get_rng_state()
    timing = time_everything(session)
    assert (timing.steps, timing.validations, timing.previews) == (
        7,
        2 + len({3, 6, 7}),
        len({0, 2, 4, 6, 7}),
    )
    assert min(timing.step, timing.validation, timing.preview) > 0
    assert timing.total == pytest.approx(7 * timing.step + 5 * timing.validation + 5 * timing.preview)
    resumed = counts(session, first_step=5)
    assert (resumed.steps, resumed.validations, resumed.previews) == (3, 1 + len({6, 7}), len({6, 7}))
    advise(session, Memory({}, 0, 0, 0, 0, 0, 0, activations=10**9, previews=0, room=1))
    assert all(torch.equal(tensor, before[key]) for key, tensor in session.adapters.state().items())
    assert torch.equal(state, torch.get_rng_state())
    assert all(one.grad is None for one in session.adapters.named_parameters().values())
    assert not session.loop.state.optimizer.state
    assert not session.family.parts["unet"].is_gradient_checkpointing


def test_what_does_not_fit_gets_advice_whose_figures_come_true(planned: RunPlan, recipe_path: Path) -> None:
    assert not planned.memory.fits
    advice = {one.change.partition(" ")[0]: one for one in planned.advice}
    batch = advice["training.batch_size"]
    assert batch.change == "training.batch_size = 1, training.gradient_accumulation = 2" and batch.measured
    changes = ("training.batch_size=1", "training.gradient_accumulation=2")
    smaller = plan(load_recipe(recipe_path, changes=changes), memory_gib=0.03)
    assert planned.memory.activations - smaller.memory.activations == pytest.approx(batch.saves, rel=0.1)
    half = advice["base.dtype"]
    frozen = planned.memory.parts
    assert half.saves == pytest.approx((frozen["unet"] + frozen["text_encoder"]) / 2, abs=4)
    assert advice["machine.gradient_checkpointing"].saves > 0
    order = [(not one.enough, not one.as_good, -one.saves) for one in planned.advice]
    assert order == sorted(order)


def test_blocks_in_main_memory_are_advised_on_a_gpu_with_what_they_free(
    session: Session, planned: RunPlan, tiny_base: Path
) -> None:
    """Matrices of all blocks but the two largest; adapted ones, small here, are added up at once and stay."""
    unet = UNet2DConditionModel.from_pretrained(tiny_base / "unet")
    adapted = {layer.path for layer in session.adapters.layers}
    stay = {id(one.weight) for path, one in unet.named_modules() if path in adapted}  # type: ignore[attr-defined]
    own = [[one for one in block.parameters() if id(one) not in stay] for block in innermost_blocks(unet)]
    sizes = sorted(sum(4 * one.numel() for one in block if one.dim() > 1) for block in own)
    (advice,) = in_main_memory(session, planned.memory)
    left = advice.applied(planned.memory).parts
    assert left["unet"] == planned.memory.parts["unet"] - sum(sizes[:-2])
    assert left["vae"] == planned.memory.parts["vae"] and advice.as_good
    assert not any("offload" in one.change for one in planned.advice), "on a CPU there is nothing to gain"


def test_what_fits_gets_no_advice(session: Session, planned: RunPlan) -> None:
    roomy = replace(planned.memory, room=GIB)
    assert roomy.fits and advise(session, roomy) == ()
    assert not replace(planned.memory, room=planned.memory.total).fits  # a twentieth stays free


def test_changes_are_added_up_until_it_fits() -> None:
    memory = Memory({"unet": 1000}, 0, 0, 0, 0, 0, 0, activations=4000, previews=0, room=2000)
    halves = [Advice("a", "", True, True, activations=0.5), Advice("b", "", True, True, activations=0.25)]
    count, after = together(memory, [*halves, Advice("c", "", True, True, parts={"unet": 0.0})])
    assert (count, after.total, after.fits) == (2, 1000 + 500, True)


def test_the_verb_predicts_what_a_run_leaves_on_the_disk_and_leaves_nothing_itself(
    finished: Finished,
    recipe_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    checkpoint = tmp_path / "runs" / "tiny" / "checkpoints" / "step_000002"
    checkpoint.mkdir(parents=True)
    code, out, _ = command(["plan", str(recipe_file), "--memory", "1", "--json"], capsys)
    assert code == 0 and list(checkpoint.parent.parent.iterdir()) == [checkpoint.parent]
    found, folder = json.loads(out), finished.folder
    assert found["folder_in_use"]
    sizes = [
        sum(file.stat().st_size for file in checkpoint.iterdir()) for checkpoint in Run(folder).checkpoints()
    ]
    disk = found["disk"]
    assert disk["checkpoints"] / disk["num_checkpoints"] == pytest.approx(max(sizes), rel=0.1)
    assert disk["num_checkpoints"] == len(sizes) == 2
    assert disk["file"] == pytest.approx(finished.lora_file.stat().st_size, rel=0.02)
    drawn = sum(path.stat().st_size for path in (folder / "previews").iterdir())
    assert 0.5 * drawn < disk["previews"] < 3 * drawn
    assert len(list((folder / "previews").glob("step_*.png"))) == found["timing"]["previews"]


def test_people_are_told_the_same(planned: RunPlan, capsys: pytest.CaptureFixture[str]) -> None:
    print_plan(planned.training, Screen(width=200))
    print_needs(replace(planned, folder_in_use=True), Screen(width=200))
    out = capsys.readouterr().out
    assert re.search(r"memory +[\d.]+ MiB on cpu: DOES NOT FIT into 30.7 MiB", out)
    assert re.search(r"change +\w+\.\w+ = ", out) and "runs/tiny holds a run already" in out
    assert "for validation images" in out and "gradients" in out and "checkpoints at a time" in out


def test_a_warm_up_that_the_run_does_not_outlast_is_noted(
    session: Session, planned: RunPlan, recipe_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As a short trial's is with the default; step 7 of 20 has 7 / 20 of the rate."""
    assert planned.training.data["warmup_note"] == ""
    recipe = load_recipe(recipe_path, changes=("training.warmup_steps=20",))
    found = describe(replace(session, recipe=recipe), first_step=1, timing=planned.timing)
    print_plan(found, Screen(width=200))
    assert (
        "the warm-up takes 20 steps, so the rate gets to 35% of this, in the last step"
        in capsys.readouterr().out
    )


KEYS = """
name base images_used images_excluded captions captioned_by captions_without_trigger preservation
preserved_caption captions_cut buckets steps first_step images_per_step views_per_image num_parameters
most_image_weight num_layers compile device precision learning_rate seconds_per_step folder
seconds_of_validation seconds_of_previews seconds_of_evaluation device_note
held_out validation_every repeats processes batch_size regularization_images masks masked_preservation
backgrounds token_chunks variation caption_warnings triggers base_notes adapter_notes warmup_note num_tokens
notes findings
"""


def test_the_keys_of_the_json_are_those_that_are_promised(planned: RunPlan) -> None:
    """Each fact is in one section, and none is missing where there is nothing to print of it."""
    found = planned.to_json()
    assert found["training"].keys() == set(KEYS.split())
    facts = [key for section in planned.training.sections for key in section.data]
    assert len(facts) == len(set(facts)) == len(KEYS.split()) - 1  # the name is the plan's own
    assert found["training"]["buckets"]["latents"] == found["training"]["images_used"]
    assert set(found) == {
        *("training", "memory", "disk", "timing", "advice", "cached"),
        *("seconds_of_preparing", "folder_in_use", "base_error"),
    }


def test_json_has_all_figures_and_sums(planned: RunPlan) -> None:
    found = json.loads(json.dumps(planned.to_json()))
    memory = found["memory"]
    assert memory["room"] == round(0.03 * GIB) and memory["fits"] is False
    assert memory["total"] == planned.memory.total and found["disk"]["total"] == planned.disk.total
    assert found["training"]["steps"] == 7 and found["training"]["folder"] == "runs/tiny"
    assert found["advice"][0]["change"] == planned.advice[0].change
