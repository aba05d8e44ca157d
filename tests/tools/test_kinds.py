"""LyCORIS' kinds as they are read from a file, against what LyCORIS itself makes of the same layer."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from lora_studio.lora_file.convertible import read_places

STEM = {"linear": "lora_unet_mid_block_attentions_0_proj_in", "conv": "lora_unet_mid_block_resnets_0_conv1"}
KINDS: dict[str, tuple[str, dict[str, object]]] = {
    "locon": ("LoConModule", {}),
    "locon with a middle": ("LoConModule", {"use_tucker": True}),
    "dora by outputs": ("LoConModule", {"weight_decompose": True, "wd_on_out": True}),
    "dora by inputs": ("LoConModule", {"weight_decompose": True, "wd_on_out": False}),
    "loha": ("LohaModule", {}),
    "loha tucker": ("LohaModule", {"use_tucker": True}),
    "lokr": ("LokrModule", {}),
    "lokr tucker": ("LokrModule", {"use_tucker": True}),
    "lokr of four": ("LokrModule", {"decompose_both": True, "lora_dim": 1}),
    "lokr whole": ("LokrModule", {"lora_dim": 64}),
    "oft": ("DiagOFTModule", {"constraint": 0}),
    "oft bound": ("DiagOFTModule", {"constraint": 0.01}),
    "oft rescaled": ("DiagOFTModule", {"constraint": 0, "rescaled": True}),
    "full": ("FullModule", {}),
    "glora": ("GLoRAModule", {}),
}


@pytest.mark.parametrize("layer", STEM)
@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_is_the_change_that_lycoris_makes_of_it(kind: str, layer: str, tmp_path: Path) -> None:
    """As the module answers: LyCORIS 4.1's merged weights have LoHa's scale twice."""
    modules = pytest.importorskip("lycoris.modules")
    torch.manual_seed(0)
    frozen = nn.Linear(12, 18, bias=False) if layer == "linear" else nn.Conv2d(12, 18, 3, bias=False)
    name, options = KINDS[kind]
    options = {"lora_dim": 2, "alpha": 1.0} | options
    module = getattr(modules, name)(STEM[layer], frozen, 1.0, **options)
    with torch.no_grad():
        for one in module.parameters():
            one += 0.3 * torch.randn(one.shape)
    weight, inputs = frozen.weight.detach().clone(), torch.randn(3, 12, *((5, 5) if layer == "conv" else ()))
    base = frozen(inputs)
    module.apply_to()
    tensors = module.custom_state_dict() or module.state_dict()
    state = {f"{STEM[layer]}.{end}": one.detach().clone().contiguous() for end, one in tensors.items()}
    save_file(state, tmp_path / "x.safetensors")
    (read,) = read_places(tmp_path / "x.safetensors").layers.values()
    change = read.delta(weight).reshape(weight.shape)
    ours = (nn.functional.linear if layer == "linear" else nn.functional.conv2d)(inputs, weight + change)
    assert (frozen(inputs) - ours).norm() < 1e-4 * (ours - base).norm()
    plain = read.plain(weight)  # cut at most as `cut_plain` cuts
    product = plain.scale * plain.up.flatten(1).float() @ plain.down.flatten(1).float()
    assert (product - change.flatten(1)).norm() < 6e-4 * change.norm()
