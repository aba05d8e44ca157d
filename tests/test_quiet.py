"""What is imported only when it is used, and what stays as it was around imports."""

from __future__ import annotations

import gc
import os
import re
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from lora_studio.quiet import (
    SPINS,
    SPINS_BESIDE_OTHERS,
    WAITING,
    paused_collector,
    paused_until_told,
    shorten_waits,
)
from lora_studio.recipe.load import PRESET_FOLDER

PLAIN_THEN_QUANTISED = """
import sys
import torch
from lora_studio.adapters.inject import inject
from lora_studio.adapters.rules import AdapterOptions
from lora_studio.families.loading import load_base
from lora_studio.quantization import bnb_nf4

def layer_of(family):
    inject({"unet": family.parts["unet"]}, {"unet": ("mid_block.attentions.0.proj_in", "attn1.to_q")},
           AdapterOptions("lora", 2, 2.0, seed=0), canonical_path=family.canonical_path)
    return next(name for name, _ in family.parts["unet"].named_modules() if name.endswith("attn1.to_q"))

plain = load_base("pocket")
path = layer_of(plain)
loaded = {"bitsandbytes.nn", "torch._inductor.lowering", "matplotlib"} & set(sys.modules)
assert not loaded, loaded
quantised = load_base("pocket")
bnb_nf4(quantised.parts["unet"], [path], torch.float32)
assert "bitsandbytes.nn" in sys.modules
import bitsandbytes
assert layer_of(quantised) == path
layer = quantised.parts["unet"].get_submodule(path)
assert type(layer).__module__ == "peft.tuners.lora.bnb", type(layer)
assert isinstance(layer.base_layer, bitsandbytes.nn.Linear4bit)
"""


def test_bitsandbytes_is_imported_for_layers_that_it_quantises_and_for_no_others() -> None:
    ran = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", PLAIN_THEN_QUANTISED],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr[-2000:]


def test_the_collector_is_as_it_was_after_a_pause_in_a_pause() -> None:
    with paused_collector():
        with paused_collector():
            assert not gc.isenabled()
        assert not gc.isenabled()
    assert gc.isenabled()


def test_a_pause_ends_with_the_first_event() -> None:
    heard: list[tuple[str, bool]] = []
    with paused_until_told() as told:
        assert not gc.isenabled()
        told(lambda event: heard.append((event, gc.isenabled())))("first")
    assert heard == [("first", True)] and gc.isenabled()
    gc.unfreeze()


@pytest.mark.skipif(sys.platform != "linux", reason="libgomp is what torch's threads come from on Linux")
def test_threads_that_train_on_a_cpu_soon_sleep_while_they_wait(tmp_path: Path) -> None:
    """By what libgomp says of itself when torch loads it; the run ends there, for want of images."""
    recipe, changes = PRESET_FOLDER / "pocket_style.toml", ("data.images=nowhere", "machine.device=cpu")
    command = [sys.executable, "-m", "lora_studio", "train", str(recipe), "--out", str(tmp_path)]
    environment = {key: value for key, value in os.environ.items() if key not in WAITING}
    ran = subprocess.run(
        [*command, *(word for one in changes for word in ("--set", one))],
        env={**environment, "OMP_DISPLAY_ENV": "VERBOSE"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 2 and "nowhere" in ran.stderr
    assert re.search(rf"GOMP_SPINCOUNT = '({SPINS}|{SPINS_BESIDE_OTHERS})'", ran.stderr)


@pytest.mark.parametrize("name", WAITING)
def test_how_threads_wait_is_as_the_user_has_it(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", {name: "7"})
    shorten_waits("cpu")
    assert os.environ == {name: "7"}


@pytest.mark.parametrize(
    ("device", "others", "spins"),
    [("cpu", 5.0, SPINS), ("cpu", 95.0, SPINS_BESIDE_OTHERS), ("cuda", 5.0, None), ("cuda:1", 95.0, None)],
)
def test_threads_sleep_sooner_beside_others_and_wait_as_they_do_where_a_gpu_trains(
    device: str, others: float, spins: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "environ", {})
    monkeypatch.setattr(psutil, "cpu_percent", lambda interval: others)
    shorten_waits(device)
    assert os.environ == ({"GOMP_SPINCOUNT": str(spins)} if spins else {})
