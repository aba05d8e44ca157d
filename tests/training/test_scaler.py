"""float16: the gradients of a scaled loss, overflows that cost one step, and the scale in checkpoints."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from gradients import on_gradient
from torch import Tensor

from lora_studio.errors import TrainingDiverged
from lora_studio.recipe.load import load_recipe
from lora_studio.runs import Run
from lora_studio.training.events import Event, StepSkipped
from lora_studio.training.finish import Finished
from lora_studio.training.loop.state import load_state, state_files
from lora_studio.training.prepare import Session, prepare
from lora_studio.training.session import train

Make = Callable[..., Session]


@pytest.fixture
def heard() -> list[Event]:
    return []


@pytest.fixture
def make(tmp_path: Path, recipe_file: Path, heard: list[Event]) -> Make:
    """A session in float16 with these changes, in a folder of its own."""

    def new(*changes: str) -> Session:
        options = ("base.dtype=float16", "data.resolution=32", "training.steps=6", *changes)
        folder = tmp_path / f"run{len(list(tmp_path.iterdir()))}"
        return prepare(load_recipe(recipe_file, changes=options), Run(folder), heard.append)

    return new


def flat(session: Session) -> Tensor:
    return torch.cat([one.flatten() for one in session.adapters.state().values()])


def overflow(session: Session, times: int) -> None:
    """So many of the next gradients of one tensor overflow, as float16's do."""
    left = iter(range(times))

    def scaled(gradient: Tensor) -> Tensor:
        return gradient * float("inf") if next(left, None) is not None else gradient

    on_gradient(session.adapters, session.adapters.layers[0].tensors["up"], scaled)


def test_adapters_stay_float32_and_learn_what_they_learn_in_float32(make: Make) -> None:
    half, whole = make("training.steps=2"), make("training.steps=2", "base.dtype=float32")
    first = flat(half)
    for session in (half, whole):
        assert session.loop.run(1)
        session.run.close()
    assert next(half.family.parts["unet"].parameters()).dtype == torch.float16
    assert {p.dtype for p in half.adapters.parameters("unet")} == {torch.float32}
    assert half.loop.state.scaler is not None and whole.loop.state.scaler is None
    rows = zip(half.run.metrics(), whole.run.metrics(), strict=True)
    for ours, theirs in rows:  # a norm that was not divided by the scale would be 65536 times as large
        assert ours["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=0.05)
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=0.01)
    moved, expected = flat(half) - first, flat(whole) - first
    assert torch.cosine_similarity(moved, expected, dim=0) > 0.9


def test_an_overflow_is_skipped_and_counted_and_halves_the_scale(make: Make, heard: list[Event]) -> None:
    session = make("training.max_skipped_steps=2")
    overflow(session, 3)
    assert session.loop.run(1)
    session.run.close()
    scales = [row.get("loss_scale") for row in session.run.metrics()]
    assert scales == [65536, 32768, 16384, None, None, None]
    counters = session.loop.state.counters
    assert (counters.skipped, counters.updates, counters.skipped_in_a_row) == (3, 3, 0)
    line = next(event.text for event in heard if isinstance(event, StepSkipped))
    assert "step 1 skipped" in line and "the loss times 65536, which is halved" in line


def test_at_a_scale_of_one_overflows_are_bad_steps(make: Make) -> None:
    session = make("training.max_skipped_steps=2")
    assert session.loop.state.scaler is not None
    session.loop.state.scaler.load_state_dict(session.loop.state.scaler.state_dict() | {"scale": 2.0})
    overflow(session, 100)
    with pytest.raises(TrainingDiverged, match=r"step 3: .* the last of 2 bad steps in a row"):
        session.loop.run(1)
    session.run.close()


def test_the_scale_is_part_of_a_checkpoint_and_a_resume_is_exact(make: Make, tmp_path: Path) -> None:
    straight, second = make(), make()
    overflow(straight, 2)
    files: dict[str, bytes] = {}

    def stop(step: int) -> bool:
        files.update(state_files(straight.loop.state) if step == 3 else {})
        return False

    straight.loop.after_step = stop
    straight.loop.run(1)
    scaler = json.loads(files["state.json"])["scaler"]
    assert scaler["scale"] == 16384 and scaler["_growth_tracker"] == 1
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    assert load_state(tmp_path, second.loop.state) == 3
    second.loop.run(4)
    ends = [state_files(session.loop.state) for session in (straight, second)]
    assert {name for name in ends[0] if ends[0][name] != ends[1][name]} == set()
    for session in (straight, second):
        session.run.close()


def test_a_run_in_float16_ends_with_previews_and_a_verified_file(tmp_path: Path, recipe_file: Path) -> None:
    recipe = load_recipe(recipe_file, changes=("base.dtype=float16", "data.resolution=32"))
    result = train(recipe, tmp_path / "run")
    assert isinstance(result, Finished) and result.report.ok
    assert result.report.checks["probe_rounding"] == 2 * torch.finfo(torch.float16).eps
    assert result.summary["precision"] == "float16"
