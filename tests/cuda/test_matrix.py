"""Whole runs on a pretended GPU: devices and dtypes are right, nothing in a step waits, the plan is whole.

With blocks in main memory the peak falls, and copies go beside computing.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import stub
from cases import (
    BUNDLES,
    DTYPES,
    FAMILIES,
    KINDS,
    OFFLOADED,
    OFFLOADED_BLOCKS,
    OPTIMIZERS,
    UNSIMULATED,
    USUAL,
    Case,
    cases,
    of_family,
    slow_cases,
)
from waits import GOES_ON, WAITS

from lora_studio.adapters import ADAPTERS
from lora_studio.families import FAMILIES as REGISTERED
from lora_studio.quantization import NONE, QUANTIZERS
from lora_studio.training.optimizers import OPTIMIZERS as REGISTERED_OPTIMIZERS

PROCESSES = 2
Found = Mapping[str, Mapping[str, Any]]  # the outcome of each run, and of each line of `waits.py`
pytestmark = pytest.mark.skipif(bool(stub.why_not()), reason=f"no GPU is pretended: {stub.why_not()}")

CANNOT_SKIP = r"waits for what it has just launched, in training/loop/step_result\.py:\d+"
READS_ITSELF = r"reads a number, in training/loop/state\.py:\d+"
EXCUSED = {
    "adamw": "",  # leaves a bad step out on the device; the others are asked on the host whether to
    "prodigy": f"{CANNOT_SKIP}|{READS_ITSELF}",  # prodigyopt adds its estimate up there, tensor by tensor
}
"""What may wait in a step with an optimizer, and why."""
BOTH = ("", ", checkpointing")  # of `OFFLOADED`


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Found:
    return outcomes(tmp_path_factory.mktemp("pretended"))


@pytest.fixture(scope="module")
def found_slowly(tmp_path_factory: pytest.TempPathFactory) -> Found:
    return outcomes(tmp_path_factory.mktemp("pretended"), "slow")


def outcomes(folder: Path, *more: str) -> Found:
    """Some processes share the runs."""
    command = [str(folder), str(PROCESSES), *more]
    process = stub.start(stub.build(folder), "run_cases.py", command, folder / "cache")
    _, said = process.communicate(timeout=60 * stub.MINUTES)
    assert process.returncode == 0, said[-3000:]
    printed = (path.read_text("utf-8") for path in folder.glob("*.jsonl"))
    lines = [json.loads(line) for text in printed for line in text.splitlines()]
    return {line.pop("name"): line for line in lines}


@pytest.mark.parametrize("case", cases(), ids=lambda case: case.name)
def test_a_whole_run_is_right_on_a_gpu(case: Case, found: Found) -> None:
    assert_right(case, found[case.name])


@pytest.mark.slow
@pytest.mark.parametrize("case", slow_cases(), ids=lambda case: case.name)
def test_so_is_every_run_of_families_that_are_alike(case: Case, found_slowly: Found) -> None:
    assert_right(case, found_slowly[case.name])


def assert_right(case: Case, outcome: Mapping[str, Any]) -> None:
    assert outcome["fault"] == ""
    assert outcome["device"] == {"cuda": "cuda:0"}.get(case.device, case.device)
    assert outcome["dtype"] == f"torch.{'float16' if case.dtype == 'auto' else case.dtype}"
    assert outcome["misplaced"] == []
    allowed = EXCUSED.get(case.optimizer, CANNOT_SKIP)
    assert [one for one in outcome["blocking"] if not re.fullmatch(allowed, one)] == []
    limits = "dropout" in case.bundles  # adapter.max_norm counts layers
    assert outcome["reads_back"] == [1 + limits]
    assert outcome["events"] == [outcome["device"]]  # of the stream on which the numbers are made


@pytest.mark.parametrize("case", [one for one in cases() if one.plans], ids=lambda case: case.name)
def test_the_plan_sees_the_whole_frozen_base(case: Case, found: Found) -> None:
    outcome = found[case.name]
    assert outcome["planned_bytes"] == outcome["denoiser_bytes"] > 0


@pytest.mark.parametrize(
    "case", [one for one in cases() if "shown" in one.bundles], ids=lambda case: case.name
)
def test_all_phases_of_a_run_were_gone_through(case: Case, found: Found) -> None:
    phases = {"images", "captions", "previews", "validation", "training", "probe"}
    assert found[case.name]["phases"].keys() == phases


@pytest.mark.parametrize("line", WAITS)
def test_what_waits_for_a_gpu_is_seen(line: str, found: Found) -> None:
    assert found[line]["blocking"]


@pytest.mark.parametrize("line", GOES_ON)
def test_what_does_not_wait_is_let_through(line: str, found: Found) -> None:
    assert found[line]["blocking"] == {}


@pytest.mark.parametrize("name", OFFLOADED)
def test_a_run_with_blocks_in_main_memory_goes_through_and_nothing_in_a_step_waits(
    name: str, found: Found
) -> None:
    outcome = found[name]
    assert (outcome["fault"], outcome["blocking"], outcome["misplaced"]) == ("", {}, [])
    assert set(outcome["phases"]) >= {"training", "probe"}


@pytest.mark.parametrize("how", BOTH)
def test_the_peak_falls_by_what_is_in_main_memory(how: str, found: Found) -> None:
    """But for two blocks that are there, the largest ones at most; sizes are rounded up to 512 bytes."""
    here, away = found[f"all here{how}"], found[f"offloaded{how}"]
    moved = away["offloaded"]["all"] - away["offloaded"]["there"]
    assert moved > 0
    for phase in ("training", "probe"):
        fallen = here["phases"][phase]["peak"] - away["phases"][phase]["peak"]
        assert 0.95 * moved <= fallen <= away["offloaded"]["all"], (phase, fallen, moved)


@pytest.mark.parametrize("how", BOTH)
def test_copies_go_beside_what_is_computed(how: str, found: Found) -> None:
    """Each block's begin before the one before it is computed, and are waited for behind that.

    A step goes the order of blocks up and down again; at both ends two are there already.
    """
    order = found[f"offloaded{how}"]["order"]
    done = {line.split()[-1]: place for place, line in enumerate(order) if line.startswith("copies done")}
    waits = {line.split()[-1]: place for place, line in enumerate(order) if line.startswith("compute waits")}
    copied = [number for number in done if number in waits]
    assert len(copied) == 2 * (OFFLOADED_BLOCKS - 2)
    beside = [number for number in copied if "compute" in order[done[number] : waits[number]]]
    assert len(beside) == len(copied), order
    for place in done.values():  # into memory that nothing before it still reads
        assert "copies wait for compute" in order[max(0, place - 3) : place]


def test_every_family_meets_every_kind_dtype_optimizer_and_bundle() -> None:
    for family in FAMILIES:
        own = [case for case in (*cases(), *slow_cases()) if case.family == family]
        assert {case.kind for case in own} == {*of_family(KINDS, family)}
        assert {case.dtype for case in own} >= {*DTYPES}
        assert {case.optimizer for case in own} == {*OPTIMIZERS}
        assert {bundle for case in own for bundle in case.bundles} == {*of_family(BUNDLES, family)}
    usual = [case.bundles for case in cases() if (case.kind, case.optimizer) == USUAL]
    assert {bundle for bundles in usual for bundle in bundles} == {*BUNDLES}
    assert len(cases()) == len({case.name for case in cases()}) == 30


def test_what_is_in_the_tables_is_simulated_or_has_a_reason() -> None:
    """So a new kind, optimizer, quantiser or family fails here until it is one of both."""
    assert len(set(REGISTERED.names()) - UNSIMULATED.keys()) == len(FAMILIES)
    assert set(ADAPTERS.names()) <= {*KINDS}
    assert set(REGISTERED_OPTIMIZERS.names()) <= OPTIMIZERS.keys() | UNSIMULATED.keys()
    assert set(QUANTIZERS.names()) - {NONE} <= UNSIMULATED.keys()
