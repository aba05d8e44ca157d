"""Every kind of adapter, and every option that changes a file's layers, as plain LoRA in a file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from lora_studio.adapters import ADAPTERS
from lora_studio.adapters.adapter_set import AdapterSet
from lora_studio.adapters.inject import inject
from lora_studio.adapters.rules import AdapterOptions
from lora_studio.export import kohya
from lora_studio.families.base import ModelFamily
from lora_studio.families.loading import load_base
from lora_studio.lora_file.lora_file import open_lora
from lora_studio.lora_file.write import write_lora
from lora_studio.recipe.adapter import LayersConfig
from lora_studio.verify import verify

CASES: dict[str, dict[str, object]] = {
    **{kind: {"kind": kind} for kind in ADAPTERS.names()},
    "pissa": {"start": "pissa"},
    "many ranks": {
        "kind": "locon",
        "conv_rank": 3,
        "rules": [LayersConfig(pattern="*attn2*", rank=2, alpha=7.0)],
    },
    "rslora": {"scaling": "sqrt_rank"},
}


def tuned(family: ModelFamily, by: float = 0.05, **options: object) -> AdapterSet:
    """Adapters in the middle of the denoiser that do something."""
    wishes = AdapterOptions(**({"kind": "lora", "rank": 4, "alpha": 2.0, "seed": 0} | options))  # type: ignore[arg-type]
    adapters = inject(
        family.parts,
        {"unet": ("mid_block.attentions.0.proj_in", "0.attn2.to_k", "0.attn1.to_q", "resnets.0.conv1")},
        wishes,
        canonical_path=family.canonical_path,
    )
    torch.manual_seed(0)
    with torch.no_grad():
        for tensor in adapters.parameters("unet"):
            tensor += by * torch.randn(tensor.shape)
    return adapters


@pytest.mark.parametrize("by", [0.05, 1e-5])
@pytest.mark.parametrize("case", CASES)
def test_the_file_has_every_layers_change(
    case: str, by: float, base_of: Callable[[str], Path], tmp_path: Path
) -> None:
    """Also of a change so small that float16 would keep few of its bits."""
    family = load_base(str(base_of("sd15")))
    adapters = tuned(family, by, **CASES[case])
    path = tmp_path / "file.safetensors"
    write_lora(path, kohya.tensors(family, adapters), dtype="float16", describe=lambda block: {})
    file = open_lora(path)
    assert len(file.layers) == len(adapters.layers)
    assert len({one.alpha for one in file.layers.values()}) == 1
    for layer in adapters.layers:
        live, name = layer.delta(), family.ui_name(layer.part, layer.path)
        assert file.delta(name).shape == live.shape
        assert (file.delta(name) - live).norm() < 2e-3 * live.norm()


@pytest.mark.parametrize("case", ["many ranks", "dora"])
def test_diffusers_reads_such_a_file_right(case: str, base_of: Callable[[str], Path], tmp_path: Path) -> None:
    """It loses the alphas of some of SD1's layers, and PEFT gives them the commonest one."""
    base = str(base_of("sd15"))
    path = tmp_path / "file.safetensors"
    family = load_base(base)
    tensors = kohya.tensors(family, tuned(family, **CASES[case]))
    write_lora(path, tensors, dtype="float16", describe=lambda block: {})
    report = verify(path, base=base)
    assert report.ok, report.faults


def test_a_file_without_what_uis_look_for_gets_it_as_zero(base_of: Callable[[str], Path]) -> None:
    family = load_base(str(base_of("sdxl")))
    options = AdapterOptions("lora", 4, 4.0, 0)
    targets = {"unet": ("attn1.to_q",), "text_encoder_2": ("layers.1.self_attn.q_proj",)}
    adapters = inject(family.parts, targets, options, canonical_path=family.canonical_path)
    tensors = kohya.tensors(family, adapters)
    layers = {key.partition(".")[0] for key in tensors}
    trained = {family.ui_name(layer.part, layer.path) for layer in adapters.layers}
    stem = "lora_te2_text_model_encoder_layers_1_self_attn_"
    (cross,) = [name for name in layers - trained if name.startswith("lora_unet")]
    assert cross.endswith("attn2_to_k")
    assert layers - trained == {cross, *(stem + name for name in ("k_proj", "v_proj", "out_proj"))}
    for name in layers - trained:
        assert not tensors[f"{name}.lora_up.weight"].any()
    assert tensors[f"{cross}.lora_down.weight"].shape == (1, 16 + 24)
