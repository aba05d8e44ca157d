"""The frozen base's predictions for the steps of a window: the same as for each, in far fewer passes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import processes
import pytest
import torch
from gradients import shift
from tiny import recipe_text
from torch import Tensor

from lora_studio.errors import OutOfMemory
from lora_studio.families.unet import StableDiffusion
from lora_studio.recipe.load import load_recipe
from lora_studio.runs import Run
from lora_studio.training.events import Event, Note
from lora_studio.training.loop.base_predictions import WINDOW
from lora_studio.training.planning.memory import peak_bytes
from lora_studio.training.prepare import Session, prepare

STEPS = 20
PRESERVING = ("objective.preservation=0.6", "data.repeats=3", f"training.steps={STEPS}")


def session_of(recipe_file: Path, folder: Path, *changes: str, heard: list[Event] | None = None) -> Session:
    listener = [].append if heard is None else heard.append
    session = prepare(load_recipe(recipe_file, changes=(*PRESERVING, *changes)), Run(folder), listener)
    shift(session.adapters)  # so that the base differs from the model in training
    return session


class BasePasses:
    """How many rows the denoiser gets in each pass without gradients; more than `most` do not fit."""

    def __init__(self, patch: pytest.MonkeyPatch, most: int = 1000) -> None:
        plain, self.rows = StableDiffusion.denoise, []

        def denoise(family: StableDiffusion, latents: Tensor, *others: Tensor) -> Tensor:
            if not torch.is_grad_enabled():
                if len(latents) > most:
                    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
                self.rows.append(len(latents))
            return plain(family, latents, *others)  # type: ignore[arg-type]

        patch.setattr(StableDiffusion, "denoise", denoise)


@pytest.mark.parametrize(
    "changes", [(), ("training.gradient_accumulation=3",), ("adapter.text_encoder=true",)], ids=str
)
def test_a_window_predicts_what_each_micro_batch_alone_does_in_far_fewer_passes(
    changes: tuple[str, ...], recipe_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop, passes = session_of(recipe_file, tmp_path, *changes).loop, BasePasses(monkeypatch)
    together, alone = 0, 0
    for step in range(1, STEPS + 1):
        for number, batch in enumerate(loop.feed.of_step(step)):
            rng, position = loop.draw_of(step, number)
            noisy, before = loop.objective.noise(batch.latents, rng, position), len(passes.rows)
            found = loop.base_predictions.targets(batch, noisy, position)
            together, before = together + len(passes.rows) - before, len(passes.rows)
            expected = loop.base_predictions.targets(batch, noisy)
            alone += len(passes.rows) - before
            torch.testing.assert_close(found.learned, expected.learned, atol=1e-5, rtol=1e-4)
            kept = [row for row in range(len(batch)) if row not in batch.preserved]
            assert torch.equal(found.learned[kept], noisy.target[kept])
    assert alone > STEPS / 2 and together < alone / 1.5


@pytest.mark.slow
def test_a_run_killed_inside_a_window_and_resumed_ends_with_the_same_bytes(
    images: Path, tiny_base: Path, tmp_path: Path
) -> None:
    file = tmp_path / "tiny.toml"
    text = recipe_text(images, str(tiny_base), steps=STEPS, extra="[objective]\npreservation = 0.6")
    file.write_text(text.replace("checkpoint_every = 2", "checkpoint_every = 5"), "utf-8")
    assert processes.train(file, tmp_path / "straight").code == 0
    fault = processes.AtStep(12, processes.kill)
    assert processes.train(file, tmp_path / "killed", fault=fault).code < 0
    newest = Run(tmp_path / "killed").newest_checkpoint().name
    assert newest == "step_000010" and 10 % WINDOW
    outcome = processes.train(file, tmp_path / "killed", resume=True)
    assert outcome.code == 0, outcome.said
    first, second = (tmp_path / name / "tiny.safetensors" for name in ("straight", "killed"))
    assert first.read_bytes() == second.read_bytes()


def test_passes_that_do_not_fit_are_made_again_with_fewer_rows_and_a_resume_begins_with_these(
    recipe_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard: list[Event] = []
    straight = session_of(recipe_file, tmp_path / "straight")
    straight.loop.run(1)
    straight.run.close()
    session = session_of(recipe_file, tmp_path / "small", heard=heard)
    passes = BasePasses(monkeypatch, most=2)
    session.loop.run(1)
    session.run.close()
    assert [one.text for one in heard if isinstance(one, Note) and "memory" in one.text] == [
        "memory ran out: the base predicts for up to 4 images at a time from now on",
        "memory ran out: the base predicts for up to 2 images at a time from now on",
    ]
    assert max(passes.rows) == 2
    state = json.loads((session.run.newest_checkpoint() / "state.json").read_text("utf-8"))
    assert state["base_passes"] == 4 and state["passes"] == 1
    found, expected = session.adapters.state(), straight.adapters.state()
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], atol=1e-4, rtol=1e-3)
    BasePasses(monkeypatch, most=0)
    with pytest.raises(OutOfMemory, match="one image at a time in the base on cpu"):
        session_of(recipe_file, tmp_path / "smallest").loop.run(1)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_base_needs_less_memory_for_a_window_than_training_for_a_step(
    checkpointing: bool, recipe_file: Path, base_of: Callable[[str], Path], tmp_path: Path
) -> None:
    switch = f"machine.gradient_checkpointing={str(checkpointing).lower()}"
    base = f"base.model={base_of('sd15 up and down')}"  # in which a step keeps something
    changes = (base, "objective.preservation=0.9", "data.resolution=32", switch)
    loop = session_of(recipe_file, tmp_path, *changes).loop
    batch = loop.feed.largest()
    training = peak_bytes(lambda: loop.try_out(batch), loop.family.device)
    (first, *_), position = [*loop.feed.of_step(1)], loop.draw_of(1, 0)[1]
    noisy = loop.objective.noise(first.latents, *loop.draw_of(1, 0))
    window = peak_bytes(lambda: loop.base_predictions.targets(first, noisy, position), loop.family.device)
    assert 0 < window < training
