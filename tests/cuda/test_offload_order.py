"""Blocks in main memory on a pretended GPU: the peak falls, nothing waits, and copies go beside computing."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest
import stub
from run_offload import BLOCKS, RUNS

pytestmark = pytest.mark.skipif(bool(stub.why_not()), reason=f"no GPU is pretended: {stub.why_not()}")
Found = Mapping[str, Mapping[str, Any]]
BOTH = ("", ", checkpointing")


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Found:
    folder = tmp_path_factory.mktemp("offload")
    process = stub.start(stub.build(folder), "run_offload.py", (), folder / "cache")
    printed, said = process.communicate(timeout=60 * stub.MINUTES)
    assert process.returncode == 0, said[-3000:]
    lines = (json.loads(line) for line in printed.splitlines() if line.startswith('{"name"'))
    return {line.pop("name"): line for line in lines}


@pytest.mark.parametrize("name", RUNS)
def test_a_run_goes_through_and_nothing_in_a_step_waits(name: str, found: Found) -> None:
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
    assert len(copied) == 2 * (BLOCKS - 2)
    beside = [number for number in copied if "compute" in order[done[number] : waits[number]]]
    assert len(beside) == len(copied), order
    for place in done.values():  # into memory that nothing before it still reads
        assert "copies wait for compute" in order[max(0, place - 3) : place]
