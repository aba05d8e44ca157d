"""What is not finite never reaches the weights, and a tensor that does not learn is named."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from gradients import on_gradient
from tiny import SD15_LAYERS

from lora_studio.errors import CheckpointError, TrainingDiverged
from lora_studio.recipe.load import load_recipe
from lora_studio.runs import Run
from lora_studio.training.events import Event, StepDone, StepSkipped
from lora_studio.training.loop.state import load_state, state_files
from lora_studio.training.prepare import Session, prepare
from lora_studio.training.session import train

Poison = set[int]  # the calls of mse_loss, counted from 1, that answer NaN


@pytest.fixture
def poison(monkeypatch: pytest.MonkeyPatch) -> Poison:
    """Steps whose loss is NaN; a step of these recipes has one micro-batch, so one call."""
    calls: Poison = set()
    numbers = iter(range(1, 10_000))
    plain = F.mse_loss

    def poisoned(*arguments: torch.Tensor, reduction: str) -> torch.Tensor:
        error = plain(*arguments, reduction=reduction)
        return error * float("nan") if next(numbers) in calls else error

    monkeypatch.setattr(F, "mse_loss", poisoned)
    return calls


@pytest.fixture
def session(tmp_path: Path, recipe_file: Path, heard: list[Event]) -> Iterator[Session]:
    """Six steps with a mean of the weights; no checkpoint before the last."""
    changes = ("training.steps=6", "training.ema=0.9", "training.checkpoint_every=6")
    made = prepare(load_recipe(recipe_file, changes=changes), Run(tmp_path), heard.append)
    yield made
    made.run.close()


@pytest.fixture
def heard() -> list[Event]:
    return []


def tensors_of(session: Session) -> dict[str, bytes]:
    """Weights, optimizer and mean as the bytes that a checkpoint would hold."""
    files = state_files(session.loop.state)
    assert files.keys() == {
        *("adapters.safetensors", "optimizer.safetensors", "ema.safetensors", "state.json")
    }
    return {name: content for name, content in files.items() if name != "state.json"}


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_a_step_that_is_not_finite_is_skipped_and_counted_and_leaves_everything(
    session: Session, heard: list[Event], poison: Poison, where: str
) -> None:
    states: dict[int, dict[str, bytes]] = {}
    loop = session.loop
    tensor = session.adapters.layers[0].tensors["up"]
    if where == "loss":
        poison |= {3, 4}
    else:
        on_gradient(
            session.adapters,
            tensor,
            lambda grad: grad * float("inf") if len(states) in (2, 3) else grad,
        )
    record = loop.record

    def keep(values: dict[str, float | int | bool | None]) -> None:
        states[int(values["step"] or 0)] = tensors_of(session)
        record(values)

    loop.record = keep
    assert loop.run(1)
    assert states[2] == states[3] == states[4]
    assert all(states[step] != states[step - 1] for step in (2, 5, 6))
    rows = session.run.metrics()
    assert [row["step"] for row in rows if row.get("skipped")] == [3, 4]
    assert all(row["grad_norm"] is None for row in rows if row.get("skipped"))
    skipped = [event for event in heard if isinstance(event, StepSkipped)]
    assert [(event.step, event.in_a_row, event.most) for event in skipped] == [(3, 1, 5), (4, 2, 5)]
    assert [event.step for event in heard if isinstance(event, StepDone)] == [1, 2, 5, 6]
    assert "step 4 skipped" in skipped[1].text and "2 in a row, 5 end" in skipped[1].text
    counters = loop.state.counters
    assert (counters.step, counters.updates, counters.skipped, counters.skipped_in_a_row) == (6, 4, 2, 0)


def test_bad_steps_in_a_row_end_the_run_and_name_the_last_good_checkpoint(
    tmp_path: Path, recipe_file: Path, poison: Poison
) -> None:
    poison |= {2 + step for step in range(5, 9)}  # a step is timed twice before the first
    folder = tmp_path / "run"
    recipe = load_recipe(recipe_file, changes=("training.steps=12", "training.max_skipped_steps=3"))
    with pytest.raises(TrainingDiverged) as caught:
        train(recipe, folder)
    good = folder / "checkpoints" / "step_000006"
    assert "step 7: the loss is nan and the gradient norm nan, the last of 3 bad" in str(caught.value)
    assert f"the last good checkpoint is {good}; lower training.learning_rate" in str(caught.value)
    before = folder / "checkpoints" / "step_000004"
    for name in ("adapters.safetensors", "optimizer.safetensors"):
        assert (good / name).read_bytes() == (before / name).read_bytes()
    assert not (folder / "tiny.safetensors").exists()
    assert [row["step"] for row in Run(folder).metrics()] == list(range(1, 8))


def test_weights_that_are_not_finite_are_not_saved(session: Session) -> None:
    with torch.no_grad():
        session.adapters.layers[0].tensors["up"][0, 0] = float("inf")
    with pytest.raises(TrainingDiverged, match="1 trained tensors are not finite, first unet"):
        session.loop.save(1)
    assert session.run.checkpoints() == []


@pytest.mark.parametrize("end", ["down", "up"])
def test_a_tensor_without_a_gradient_is_named_after_the_first_steps(session: Session, end: str) -> None:
    deaf = session.adapters.layers[5]
    on_gradient(session.adapters, deaf.tensors[end], torch.zeros_like)
    # Without its `up` a layer's `down` has no gradient either.
    names = [f"{deaf.name}.{one}" for one in (["down"] if end == "down" else ["down", "up"])]
    with pytest.raises(TrainingDiverged) as caught:
        session.loop.run(1)
    words = f"{len(names)} of {2 * SD15_LAYERS} trained tensors had no gradient in the first 3 steps"
    assert words in str(caught.value) and ", ".join(names) + ";" in str(caught.value)
    assert session.loop.state.counters.step == 2


def test_a_checkpoint_whose_bytes_changed_is_refused(session: Session, tmp_path: Path) -> None:
    session.loop.run(1)
    folder = session.run.newest_checkpoint()
    weights = folder / "adapters.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"adapters\.safetensors is not what was written"):
        load_state(folder, session.loop.state)
