"""A LoRA for the second pocket base is said to fit that alone, by its layers' shapes, and not Z-Image."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformer_loras import some_layers, write_diffusers
from typer.testing import CliRunner

from lora_studio.cli import app
from lora_studio.families.layer_names.published_transformers import POCKET_TRANSFORMER
from lora_studio.families.loading import load_base
from lora_studio.tools.inspect import inspect_file
from lora_studio.verify import verify

OURS = "the pocket base pocket_flow"


def shapes() -> dict[str, tuple[int, ...]]:
    """Of every linear layer of the transformer as it is loaded, by diffusers' paths."""
    modules = load_base("pocket_flow").parts["transformer"].named_modules()
    return {path: tuple(one.weight.shape) for path, one in modules if isinstance(one, nn.Linear)}


def tensors(prefix: str, layers: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    draw, found = torch.Generator().manual_seed(0), {}
    for path, (rows, columns) in layers.items():
        found[f"{prefix}{path}.lora_A.weight"] = 0.1 * torch.randn(2, columns, generator=draw)
        found[f"{prefix}{path}.lora_B.weight"] = 0.1 * torch.randn(rows, 2, generator=draw)
    return found


def attention(*, fused: bool) -> dict[str, tuple[int, ...]]:
    own = {path: shape for path, shape in shapes().items() if ".attention." in path}
    if not fused:
        return own
    found = {path.replace("to_q", "qkv"): (3 * rows, n) for path, (rows, n) in own.items() if "to_q" in path}
    return found | {path.replace("to_out.0", "out"): one for path, one in own.items() if "to_out" in path}


def test_the_layers_of_the_base_are_those_that_are_compared_with() -> None:
    known, own = POCKET_TRANSFORMER.shapes, shapes()
    assert {path: known[path] for path in own} == own
    fused = {path.replace("to_q", "qkv"): (3 * n, m) for path, (n, m) in own.items() if "to_q" in path}
    assert fused and {path: known[path] for path in fused} == fused


@pytest.mark.parametrize("spelling", ["diffusers", "original"])
def test_it_says_so_by_its_shapes_and_promises_no_ui(spelling: str, tmp_path: Path) -> None:
    path, is_original = tmp_path / "style.safetensors", spelling == "original"
    prefix = "diffusion_model." if is_original else "transformer."
    save_file(tensors(prefix, attention(fused=is_original)), path)
    report, facts = verify(path, base="pocket_flow"), inspect_file(path)
    assert report.ok, report.faults
    assert report.checks["made_for"] == facts.family == OURS
    for uis in (report.uis, facts.uis):
        assert [one.ui for one in uis if one.loads == "completely"] in ([], ["diffusers"])
        assert all("it fits the pocket base alone" in str(one) for one in uis if one.ui != "diffusers")
    done = CliRunner().invoke(app, ["inspect", str(path)])
    assert done.exit_code == 0 and OURS in done.output and "no base for it" in done.output


def test_a_file_for_z_image_is_still_one(tmp_path: Path) -> None:
    facts = inspect_file(write_diffusers(tmp_path / "x.safetensors", some_layers("z_image")))
    assert facts.family == "Z-Image" and any(one.loads == "completely" for one in facts.uis)
