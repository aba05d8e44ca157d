"""An option works if a training step with it is near float32's; what does not is refused before training."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny import recipe_text
from torch import nn

from lora_studio.errors import RecipeError
from lora_studio.lora_file.write import DTYPES
from lora_studio.processes import default_precision
from lora_studio.quantization import QUANTIZERS
from lora_studio.recipe.load import load_recipe
from lora_studio.recipe.training import MachineConfig
from lora_studio.training.machine import Machine, self_test
from lora_studio.training.machine.self_test import (
    COMPILE_FROM,
    OptionTest,
    asked_of,
    choose_compile,
    trials,
    try_all,
    try_option,
)
from lora_studio.training.prepare.checks import check_recipe
from lora_studio.training.report import _device

pytestmark = pytest.mark.filterwarnings("ignore")  # what the quantisers' libraries say when imported
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _forget() -> Iterator[None]:
    """Outcomes are kept for a process."""
    try_option.cache_clear()
    yield
    try_option.cache_clear()


def zeros(denoiser: nn.Module, paths: Sequence[str], dtype: torch.dtype) -> None:
    """A quantiser as a broken build may be: it runs, and all it gives is nothing."""
    for path in paths:
        nn.init.zeros_(denoiser.get_submodule(path).weight)  # type: ignore[arg-type]


def test_what_plain_torch_can_do_works_on_every_machine() -> None:
    heard: list[str] = []
    outcomes = {one.option: one for one in try_all(CPU, lambda one: heard.append(one.option), quick=True)}
    assert list(outcomes) == heard == [option for option in trials(CPU) if "compile" not in option]
    certain = [f'base.dtype = "{name}"' for name in DTYPES] + ["fused AdamW"]
    certain += ["machine.gradient_checkpointing = true", "machine.channels_last = true"]
    assert [option for option in certain if not outcomes[option].works] == []
    assert outcomes["machine.tf32 = true"].why == "cpu has no TF32"
    assert all(one.works or one.why for one in outcomes.values())


def test_a_library_that_is_there_but_computes_nonsense_does_not_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(QUANTIZERS.entries, "bnb_nf4", "broken:zeros")
    monkeypatch.setitem(sys.modules, "broken", SimpleNamespace(zeros=zeros))  # type: ignore[arg-type]
    outcome = try_option('base.quantize = "bnb_nf4"', CPU)
    assert not outcome.works and "differ from float32's by" in outcome.why


def test_options_that_do_not_work_are_all_refused_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(QUANTIZERS.entries, "bnb_int8", "a_library_that_nobody_has:int8")
    path = tmp_path / "tiny.toml"
    path.write_text(recipe_text(tmp_path, "pocket"), "utf-8")
    changes = ("base.quantize=bnb_int8", "machine.attention=xformers", "machine.channels_last=true")
    with pytest.raises(RecipeError) as refused:
        check_recipe(load_recipe(path, changes=changes))
    first, second = str(refused.value).splitlines()
    assert first.startswith('machine.attention = "xformers" does not work on this machine (cpu): ')
    assert second == (
        'base.quantize = "bnb_int8" does not work on this machine (cpu): a_library_that_nobody_has is not '
        "installed; `lora-studio env` shows what does."
    )


def test_the_defaults_are_tried_by_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "lora_studio.training.machine.self_test.try_option", lambda *_: pytest.fail("not asked for")
    )
    path = tmp_path / "tiny.toml"
    path.write_text(recipe_text(tmp_path, "pocket"), "utf-8")
    assert check_recipe(load_recipe(path)).machine.device == CPU


@pytest.mark.parametrize(
    ("capability", "dtype"),
    [((7, 5), torch.float16), ((8, 0), torch.bfloat16), ((12, 0), torch.bfloat16)],
    ids=["T4", "A100", "RTX 50"],
)
def test_bfloat16_is_for_gpus_that_have_it_and_is_tried_there(
    capability: tuple[int, int], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: capability)
    device = torch.device("cuda:0")
    assert default_precision(device) == dtype and default_precision(CPU) == torch.float32
    name = str(dtype).removeprefix("torch.")
    assert asked_of(Machine(device, dtype)) == [f'base.dtype = "{name}"']


@pytest.mark.slow
def test_compilation_works_where_there_is_a_compiler() -> None:
    outcome = try_option("machine.compile = true", CPU)
    assert outcome.works, outcome.why


@pytest.mark.gpu
def test_options_of_a_gpu_are_tried_on_it() -> None:
    outcomes = try_all(torch.device("cuda"), lambda one: None)
    assert {one.option for one in outcomes if one.works} >= {'base.dtype = "bfloat16"', "fused AdamW"}


@pytest.mark.parametrize(
    ("device", "passes", "works", "expected"),
    [
        ("cuda:0", COMPILE_FROM, True, True),
        ("cuda:0", COMPILE_FROM, False, False),
        ("cuda:0", COMPILE_FROM - 1, True, False),
        ("cpu", COMPILE_FROM, True, False),
    ],
)
def test_blocks_are_compiled_where_the_compiler_works_and_the_run_is_long_enough(
    device: str, passes: int, works: bool, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[str] = []

    def try_here(option: str, where: torch.device) -> OptionTest:
        tried.append(option)
        return OptionTest(option, works, "" if works else "no compiler", 1.0)

    monkeypatch.setattr(self_test, "try_option", try_here)
    machine = Machine(torch.device(device), torch.float32)
    assert machine.config.compile == "auto"
    assert choose_compile(machine, passes).config.compile is expected
    assert bool(tried) == (device == "cuda:0" and passes >= COMPILE_FROM)
    for said in (True, False):
        own = replace(machine, config=MachineConfig(compile=said))
        assert choose_compile(own, passes).config.compile is said
    assert asked_of(Machine(CPU, torch.float32)) == []  # nothing is tried for it before that


@pytest.mark.parametrize("compiles", [True, False])
def test_the_plan_says_whether_a_gpu_is_handed_compiled_blocks(compiles: bool) -> None:
    machine = Machine(torch.device("cuda:0"), torch.bfloat16, config=MachineConfig(compile=compiles))
    recipe = SimpleNamespace(machine=MachineConfig())
    session: Any = SimpleNamespace(machine=machine, recipe=recipe, offloaded=None)
    section = _device(session)
    assert section.data["compile"] is compiles
    assert section.rows[1][1].startswith("compiled: " if compiles else "not compiled: ")
    assert "8,000 passes" in section.rows[1][1]
    session.recipe.machine = machine.config  # as the user said: nothing to explain
    assert len(_device(session).rows) == 1


def test_the_gpu_of_a_mac_is_taken_only_if_a_step_works_on_it(monkeypatch: pytest.MonkeyPatch) -> None:
    from lora_studio.recipe.base import BaseConfig
    from lora_studio.recipe.training import MachineConfig
    from lora_studio.training.machine.self_test import machine_here

    config, base = MachineConfig(), BaseConfig(model="pocket")
    assert machine_here(config, base).note == ""
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)  # but this is no Mac
    found = machine_here(config, base)
    assert found.device == CPU and found.note.startswith("the GPU of this Mac (mps) fails a trial step: ")
    assert machine_here(MachineConfig(device="cpu"), base).note == ""
