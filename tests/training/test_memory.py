"""When memory runs out: the same result in more passes, and in the end one sentence."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
import torch
from tiny import recipe_text
from torch import Tensor

from lora_studio.errors import OutOfMemory
from lora_studio.families.unet import StableDiffusion
from lora_studio.processes import find_device
from lora_studio.recipe import Recipe
from lora_studio.recipe.load import load_recipe
from lora_studio.runs import Run
from lora_studio.training.events import Event, MemoryRanOut
from lora_studio.training.finish import Finished
from lora_studio.training.machine import is_out_of_memory, unless_out_of_memory, within_memory
from lora_studio.training.prepare import prepare
from lora_studio.training.report import time_a_step
from lora_studio.training.session import train


@pytest.fixture
def recipe(tmp_path: Path, images: Path, tiny_base: Path) -> Recipe:
    """Two steps of two micro-batches of up to four images of one shape."""
    path = tmp_path / "tiny.toml"
    path.write_text(recipe_text(images, str(tiny_base), steps=2), "utf-8")
    changes = (
        "training.batch_size=4",
        "training.gradient_accumulation=2",
        "data.repeats=4",
        "data.resolution=32",
    )
    return load_recipe(path, changes=changes)


class SmallDevice:
    """A denoiser that has room for so many rows."""

    def __init__(self, patch: pytest.MonkeyPatch, rows: int) -> None:
        plain = StableDiffusion.denoise
        self.refused = 0

        def denoise(family: StableDiffusion, latents: Tensor, *others: Tensor) -> Tensor:
            if torch.is_grad_enabled() and len(latents) > rows:
                self.refused += 1
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
            return plain(family, latents, *others)  # type: ignore[arg-type]

        patch.setattr(StableDiffusion, "denoise", denoise)


def weights_after(recipe: Recipe, folder: Path, heard: list[Event]) -> Tensor:
    session = prepare(recipe, Run(folder), heard.append)
    session.loop.run(1)
    session.run.close()
    return torch.cat([one.flatten() for one in session.adapters.state().values()])


def test_a_step_that_does_not_fit_is_done_again_in_more_passes_with_the_same_result(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard: list[Event] = []
    undisturbed = weights_after(recipe, tmp_path / "straight", heard)
    assert not [event for event in heard if isinstance(event, MemoryRanOut)]
    device = SmallDevice(monkeypatch, rows=1)
    found = weights_after(recipe, tmp_path / "small", heard)
    assert [(e.passes, e.rows) for e in heard if isinstance(e, MemoryRanOut)] == [(2, 2), (4, 1)]
    assert device.refused == 2  # never again after it was learned
    # Adam's update is nearly the sign of a gradient, so rounding may turn it where that is nearly 0
    far = (found - undisturbed).abs() > 1e-5
    assert far.float().mean() < 1e-3
    assert (found - undisturbed).norm() < 1e-3 * undisturbed.norm()


def test_the_trial_before_training_finds_the_passes_and_the_summary_says_so(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    SmallDevice(monkeypatch, rows=2)
    heard: list[Event] = []
    result = train(recipe, tmp_path / "run", on_event=heard.append)
    assert isinstance(result, Finished) and result.summary["passes"] == 2
    told = [type(event).__name__ for event in heard]
    assert told.index("MemoryRanOut") < told.index("TrainingPlan")


def test_one_row_that_does_not_fit_ends_the_run_with_one_sentence(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    SmallDevice(monkeypatch, rows=0)
    session = prepare(recipe, Run(tmp_path / "run"), lambda event: None)
    with pytest.raises(OutOfMemory, match=r"one image at a time on cpu; lora-studio plan .*checkpointing"):
        time_a_step(session)
    session.run.close()
    assert all(parameter.grad is None for parameter in session.adapters.parameters("unet"))


def test_the_trial_has_no_more_room_than_the_steps_that_have_the_optimizers_state(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A device with room for four rows, or for two beside the optimizer's state."""
    session = prepare(recipe, Run(tmp_path / "run"), lambda event: None)
    state, plain = session.loop.state, StableDiffusion.denoise
    heard: list[Event] = []
    session.loop.split.listener = heard.append

    def denoise(family: StableDiffusion, latents: Tensor, *others: Tensor) -> Tensor:
        if len(latents) > (2 if state.reserved is not None or state.optimizer.state else 4):
            raise torch.OutOfMemoryError("CUDA out of memory")
        return plain(family, latents, *others)  # type: ignore[arg-type]

    monkeypatch.setattr(StableDiffusion, "denoise", denoise)
    time_a_step(session)
    assert [event.passes for event in heard if isinstance(event, MemoryRanOut)] == [2]
    assert state.reserved is not None
    planned = state.reserved.nbytes
    session.loop.run(1)
    session.run.close()
    assert state.reserved is None and len(heard) == 1  # no more passes were needed
    kept = sum(v.nbytes for values in state.optimizer.state.values() for v in values.values())
    assert planned == kept > 0


SAYINGS = (
    "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
    "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
    "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
    "CUDA error: out of memory",
    "NCCL Error 1: unhandled cuda error ... Cuda failure 2 'out of memory'",
)


@pytest.mark.parametrize("words", SAYINGS)
def test_libraries_of_cuda_that_find_no_memory_are_understood(words: str) -> None:
    assert is_out_of_memory(RuntimeError(words))


@pytest.mark.parametrize(
    "words",
    [
        "GET was unable to find an engine to execute this computation",
        "CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`",
    ],
)
def test_what_may_be_for_want_of_memory_is_tried_with_less_and_else_said_as_it_is(words: str) -> None:
    rows, tried = 4, list[int]()

    def work(room: int) -> int:
        tried.append(rows)
        if rows > room:
            raise RuntimeError(words)
        return rows

    def shrink() -> None:
        nonlocal rows
        if rows == 1:
            raise OutOfMemory("with one image at a time")
        rows //= 2

    assert not is_out_of_memory(RuntimeError(words))
    assert within_memory(lambda: work(2), shrink) == 2 and tried == [4, 2]
    with pytest.raises(RuntimeError, match=words[:20]):
        within_memory(lambda: work(0), shrink)
    tried.clear()
    with pytest.raises(RuntimeError):
        unless_out_of_memory(lambda: work(0))
    assert len(tried) == 2


def test_other_errors_are_not_taken_for_it() -> None:
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    words = "DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"
    assert is_out_of_memory(RuntimeError(words))
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert not is_out_of_memory(ValueError("out of memory"))

    def fails() -> None:
        raise RuntimeError("shapes")

    with pytest.raises(RuntimeError, match="shapes"):
        within_memory(fails, lambda: pytest.fail("nothing to shrink"))


@pytest.mark.parametrize(
    ("system", "given", "expected"),
    [
        ("linux", {}, "expandable_segments:True"),
        ("linux", {"PYTORCH_CUDA_ALLOC_CONF": "max_split_size_mb:64"}, "max_split_size_mb:64"),
        ("linux", {"PYTORCH_ALLOC_CONF": "max_split_size_mb:64"}, None),  # the newer name
        ("win32", {}, None),
    ],
)
def test_memory_expands_unless_the_user_has_set_it_up(
    system: str, given: dict[str, str], expected: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is in the environment before a tensor is made on the device: CUDA's allocator reads it once."""
    for name in ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF", "PYTORCH_HIP_ALLOC_CONF"):
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "platform", system)
    seen, plain = list[str | None](), torch.empty

    def empty(*given: object, **named: object) -> Tensor:
        seen.append(os.environ.get("PYTORCH_CUDA_ALLOC_CONF"))
        return plain(*given, **named)  # type: ignore[call-overload, no-any-return]

    monkeypatch.setattr(torch, "empty", empty)
    try:
        assert find_device("cpu") == torch.device("cpu")
    finally:
        os.environ.pop("PYTORCH_CUDA_ALLOC_CONF", None)
    assert seen == [expected]
