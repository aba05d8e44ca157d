"""Our kinds beside PEFT's of the same name, with the same tensors: the same answers and gradients."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from peft import LoHaConfig, LoKrConfig, LoraConfig, OFTConfig, PeftConfig, inject_adapter_in_model
from torch import Tensor, nn

from lora_studio.adapters.inject import inject
from lora_studio.adapters.rules import AdapterOptions

RANK, ALPHA = 4, 6
LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "linear": (lambda: nn.Linear(24, 20), (3, 5, 24)),
    "1x1": (lambda: nn.Conv2d(24, 20, 1), (2, 24, 6, 5)),
    "3x3 stride 2": (lambda: nn.Conv2d(24, 20, 3, stride=2, padding=1), (2, 24, 6, 5)),
}
CONFIGURATIONS: dict[str, PeftConfig] = {
    "locon": LoraConfig(r=RANK, lora_alpha=ALPHA),
    "dora": LoraConfig(r=RANK, lora_alpha=ALPHA, use_dora=True),
    "loha": LoHaConfig(r=RANK, alpha=ALPHA),
    "lokr": LoKrConfig(r=RANK, alpha=ALPHA),
    "lokr of low rank": LoKrConfig(r=2, alpha=3),
    "oft": OFTConfig(r=0, oft_block_size=RANK, use_cayley_neumann=False),
}
OUR_NAMES = {
    **{"lora_A": "down", "lora_B": "up", "lora_magnitude_vector": "magnitude", "oft_R": "skew"},
    **{f"hada_{end}": end for end in ("w1_a", "w1_b", "w2_a", "w2_b")},
    **{f"lokr_{end}": end for end in ("w1", "w2", "w2_a", "w2_b")},
}


def same_layer(layer: str) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(LAYERS[layer][0]()).requires_grad_(False)


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("case", CONFIGURATIONS)
def test_answers_and_gradients_are_pefts(case: str, layer: str) -> None:
    if case == "oft" and layer.startswith("3x3"):
        pytest.skip("PEFT turns overlapping patches and adds them up: no change of the weight does that")
    theirs, kind = same_layer(layer), case.split()[0]
    configuration = CONFIGURATIONS[case]
    configuration.target_modules = ["0"]
    inject_adapter_in_model(configuration, theirs)
    torch.manual_seed(1)
    of_theirs: dict[str, nn.Parameter] = {}
    for name, parameter in theirs.named_parameters():
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn(parameter.shape)
            of_theirs[OUR_NAMES[name.split(".")[1]]] = parameter
    rank, alpha = (2, 3) if case.endswith("rank") else (RANK, RANK if kind == "oft" else ALPHA)
    ours = same_layer(layer)
    options = AdapterOptions(kind, rank=rank, alpha=alpha, seed=0)
    adapters = inject({"m": ours}, {"m": ("0",)}, options, canonical_path=lambda part, path: path)
    of_ours = adapters.layers[0].tensors
    assert of_ours.keys() == of_theirs.keys()
    with torch.no_grad():
        for end, tensor in of_ours.items():
            tensor.copy_(of_theirs[end].reshape(tensor.shape))
    x = torch.randn(LAYERS[layer][1])
    answers: list[Tensor] = []
    for model in (ours, theirs):
        answers.append(model(x))
        answers[-1].square().mean().backward()
    torch.testing.assert_close(*answers, atol=1e-5, rtol=1e-4)
    for end, tensor in of_ours.items():
        gradient, expected = tensor.grad, of_theirs[end].grad
        assert gradient is not None and expected is not None
        torch.testing.assert_close(gradient, expected.reshape(gradient.shape), atol=1e-5, rtol=1e-3)
