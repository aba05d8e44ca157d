"""What a step came to is read while the next one is computed, as on a GPU: the run is the same."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from gradients import on_gradient
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from lora_studio.errors import TrainingDiverged
from lora_studio.recipe.load import load_recipe
from lora_studio.runs import Run
from lora_studio.training.events import Event, StepDone, StepSkipped
from lora_studio.training.loop.state import state_files
from lora_studio.training.loop.step_result import GradientWatch
from lora_studio.training.prepare import Session, prepare

CHANGES = ("training.steps=8", "training.ema=0.9", "training.checkpoint_every=3")


def run(recipe_file: Path, folder: Path, *, late: bool, poisoned: set[int]) -> tuple[Session, list[Event]]:
    """A run whose losses in some steps are not finite."""
    heard: list[Event] = []
    session = prepare(load_recipe(recipe_file, changes=CHANGES), Run(folder), heard.append)
    loop = session.loop
    loop.reads_late = late
    loop.looks_after = lambda step: False
    seen = 0

    def weigh(grad: Tensor) -> Tensor:
        nonlocal seen
        seen += 1
        return grad * float("nan") if seen in poisoned else grad

    on_gradient(session.adapters, session.adapters.layers[0].tensors["up"], weigh)
    try:
        loop.run(1)
    finally:
        session.run.close()
    return session, heard


def told(heard: list[Event]) -> list[tuple[type, int]]:
    return [(type(event), event.step) for event in heard if isinstance(event, StepDone | StepSkipped)]


def test_late_reading_changes_neither_weights_nor_counts_nor_what_is_told(
    tmp_path: Path, recipe_file: Path
) -> None:
    poisoned = {2, 5, 6}
    at_once, heard = run(recipe_file, tmp_path / "at_once", late=False, poisoned=poisoned)
    late, heard_late = run(recipe_file, tmp_path / "late", late=True, poisoned=poisoned)
    assert state_files(at_once.loop.state) == state_files(late.loop.state)
    assert at_once.loop.state.counters.skipped == 3 and at_once.loop.state.counters.updates == 5
    assert told(heard) == told(heard_late) and len(told(heard)) == 8
    rows = [[row | {"seconds": 0} for row in one.run.metrics()] for one in (at_once, late)]
    assert rows[0] == rows[1]
    for step in (3, 6):  # in the checkpoints the numbers of their own step are counted
        names = [f"checkpoints/step_{step:06}/{name}" for name in ("state.json", "adapters.safetensors")]
        for name in names:
            assert (tmp_path / "at_once" / name).read_bytes() == (tmp_path / "late" / name).read_bytes()


def test_too_many_bad_steps_end_a_run_that_reads_late(tmp_path: Path, recipe_file: Path) -> None:
    with pytest.raises(TrainingDiverged, match=r"step 6: .* the last of 5 bad steps in a row"):
        run(recipe_file, tmp_path, late=True, poisoned={2, 3, 4, 5, 6, 7})


class Copies(TorchDispatchMode):
    """Finds what makes the host wait for a device: numbers that are read, shapes that depend on data."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        name = func.overloadpacket.__name__
        if name in {"_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "equal"}:
            self.found.append(name)
        return func(*args, **(kwargs or {}))


def test_a_step_reads_no_number_from_the_device(tmp_path: Path, recipe_file: Path) -> None:
    changes = ("objective.preservation=0.5", "training.ema=0.9")
    session = prepare(load_recipe(recipe_file, changes=changes), Run(tmp_path), lambda event: None)
    loop = session.loop
    loop.reads_late = True
    loop.base_rates = [group["lr"] for group in loop.state.optimizer.param_groups]
    watch = GradientWatch(session.adapters)
    for step in (1, 2):
        loop.train_step(step, watch)
    with Copies() as copies:
        loop.train_step(3, watch)
        (torch.ones(1) * 2).item()
    session.run.close()
    assert copies.found == ["_local_scalar_dense"]  # the one of this test itself


@pytest.mark.gpu
def test_on_a_gpu_nothing_in_a_step_waits_for_the_device(tmp_path: Path, recipe_file: Path) -> None:
    session = prepare(load_recipe(recipe_file), Run(tmp_path), lambda event: None)
    loop = session.loop
    assert loop.reads_late
    loop.base_rates = [group["lr"] for group in loop.state.optimizer.param_groups]
    watch = GradientWatch(session.adapters)
    for step in range(1, 6):
        loop.train_step(step, watch)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        loop.train_step(6, watch)
    finally:
        torch.cuda.set_sync_debug_mode("default")
        session.run.close()
