"""A LoRA for the pocket base is said to fit that alone, by the shapes of its layers; no UI has it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from lora_files import write_random_lora
from safetensors.torch import load_file, save_file
from torch import Tensor
from typer.testing import CliRunner
from ui_files import as_lokr, as_peft, only, without

from lora_studio.cli import app
from lora_studio.families.layer_names import OUTSIDE, OWN, POCKET_BASE
from lora_studio.families.loading import load_base
from lora_studio.lora_file.lora_file import base_layers
from lora_studio.tools.inspect import inspect_file
from lora_studio.verify import verify
from lora_studio.verify.uis.table import UIS

Tensors = dict[str, Tensor]


def shapes() -> dict[str, tuple[int, ...]]:
    """Of every layer of the base as it is loaded, by the names that UIs know."""
    return {name: tuple(one.weight.shape) for name, one in base_layers(load_base("pocket")).items()}


@pytest.fixture(scope="module")
def tensors(tmp_path_factory: pytest.TempPathFactory) -> Tensors:
    wanted = {name: shape for name, shape in shapes().items() if "attn" in name or "resnets" in name}
    return load_file(write_random_lora(tmp_path_factory.mktemp("x") / "x.safetensors", shapes=wanted))


def test_the_layers_of_the_base_are_those_that_are_compared_with() -> None:
    own = {name: one.shape for name, one in POCKET_BASE.places.items() if one.how in (OWN, OUTSIDE)}
    assert own == shapes()


FILES: dict[str, Callable[[Tensors], Tensors]] = {
    "plain LoRA": dict,
    "PEFT's names": as_peft,
    "LoKr": lambda t: as_lokr({key: one for key, one in t.items() if "attn" in key}),
    "one layer": lambda t: {key: one for key, one in t.items() if "mid_block_resnets_0_conv1." in key},
    "one layer lacks a half": lambda t: without(t, "mid_block_resnets_0_conv1.lora_up.weight"),
}


def test_what_is_so_for_every_ui_is_said_once(tensors: Tensors, tmp_path: Path) -> None:
    save_file(tensors, tmp_path / "style.safetensors")
    printed = CliRunner().invoke(app, ["inspect", str(tmp_path / "style.safetensors")]).output
    rows = [line for line in printed.splitlines() if line.startswith(tuple(UIS))]
    assert len(rows) == len(UIS) and sum("no base for it" in row for row in rows) >= 5
    assert printed.count("as ComfyUI") == 4  # diffusers loads it, and of A1111 more is said


@pytest.mark.parametrize("what", FILES)
def test_it_says_so_by_its_shapes_and_promises_no_ui(what: str, tensors: Tensors, tmp_path: Path) -> None:
    path = tmp_path / "style.safetensors"
    save_file(FILES[what](tensors), path, metadata={"ss_base_model_version": "sd_v1"})
    report, facts = verify(path), inspect_file(path)
    assert report.checks["made_for"] == facts.family == "the pocket base"
    for uis in (report.uis, facts.uis):
        assert [one.ui for one in uis if one.loads == "completely"] in ([], ["diffusers"])
        assert all("it fits the pocket base alone" in str(one) for one in uis if one.ui != "diffusers")
    assert report.ok == (what != "one layer lacks a half"), report.faults
    if what == "plain LoRA":
        assert {one.loads for one in report.uis if one.ui != "diffusers"} == {"no base for it"}
        assert len(facts.uis) == len(UIS)


def test_the_verbs_print_it(tensors: Tensors, tmp_path: Path) -> None:
    save_file(tensors, tmp_path / "x.safetensors")
    for call in (["verify", "x.safetensors"], ["inspect", "x.safetensors"], ["inspect", "."]):
        done = CliRunner().invoke(app, [call[0], str(tmp_path / call[1])])
        assert done.exit_code == 0 and "the pocket base" in done.output and "7 of 7" not in done.output


def test_an_embedding_of_its_width_says_so(tmp_path: Path) -> None:
    save_file({"emb_params": torch.ones(2, 96)}, tmp_path / "x.safetensors")
    facts = inspect_file(tmp_path / "x.safetensors")
    assert facts.family == "the pocket base"
    assert not any(one.loads == "completely" for one in facts.uis)


def test_a_file_of_a_published_base_or_a_miniature_is_not_one_of_it(
    base_of: Callable[[str], Path], tmp_path: Path
) -> None:
    save_file(only("SD1", "lora_unet_mid_block_"), tmp_path / "sd1.safetensors")
    layers = base_layers(load_base(str(base_of("sd15"))))
    sizes = {name: tuple(one.weight.shape) for name, one in layers.items() if "attn" in name}
    write_random_lora(tmp_path / "mini.safetensors", shapes=sizes)
    assert inspect_file(tmp_path / "sd1.safetensors").family == "SD1"
    assert inspect_file(tmp_path / "mini.safetensors").family == "a base built like SD1"
