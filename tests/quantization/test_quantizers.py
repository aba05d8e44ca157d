"""Every quantiser over a real denoiser: few bits, near answers, PEFT's own layers, and whole runs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny import image_folder, recipe_text
from torch import Tensor, nn

from lora_studio.adapters.inject import inject
from lora_studio.adapters.rules import AdapterOptions
from lora_studio.families.loading import load_base
from lora_studio.quantization import NONE, QUANTIZERS, linear_paths
from lora_studio.recipe.load import load_recipe
from lora_studio.rng import generator
from lora_studio.training.finish import Finished
from lora_studio.training.finish.frozen import is_as_near
from lora_studio.training.machine import Machine
from lora_studio.training.prepare.checks import name_faults
from lora_studio.training.session import train

NAMES = [name for name in QUANTIZERS.names() if name != NONE]
LAYERS = {
    "bnb_int8": "peft.tuners.lora.bnb.Linear8bitLt",
    "bnb_nf4": "peft.tuners.lora.bnb.Linear4bit",
    "torchao_int8": "peft.tuners.lora.torchao.TorchaoLoraLinear",
    "torchao_float8": "peft.tuners.lora.torchao.TorchaoLoraLinear",
}
BITS = {"bnb_int8": 8, "bnb_nf4": 4, "torchao_int8": 8, "torchao_float8": 8}
FAR = {"bnb_int8": 0.02, "bnb_nf4": 0.15, "torchao_int8": 0.02, "torchao_float8": 0.06}
"""An answer's distance from float32's: about 2^-8 a weight, 2^-4 with e4m3's mantissa, and NF4's tenth."""

pytestmark = pytest.mark.filterwarnings("ignore")  # what these libraries say of themselves when imported


@pytest.fixture(params=NAMES)
def name(request: pytest.FixtureRequest) -> str:
    pytest.importorskip("bitsandbytes" if request.param.startswith("bnb") else "torchao")
    return request.param


def answer(layer: nn.Module, width: int) -> Tensor:
    return layer(torch.randn(32, width, generator=generator("input")))


def test_a_quantised_layer_with_a_lora_is_near_the_plain_one_and_learns(name: str, tiny_base: Path) -> None:
    family, plain = load_base(str(tiny_base)), load_base(str(tiny_base))
    denoiser, endings = family.parts["unet"], family.targets["unet"]
    paths = linear_paths(denoiser, endings)
    QUANTIZERS[name](denoiser, paths, torch.float32)
    path = paths[0]
    width = plain.parts["unet"].get_submodule(path).in_features
    options = AdapterOptions("lora", rank=4, alpha=4.0, seed=0)
    for one in (family, plain):
        adapters = inject(one.parts, {"unet": endings}, options, canonical_path=one.canonical_path)
        for layer in adapters.layers:
            layer.tensors["up"].data.normal_(std=0.02, generator=generator(layer.name))
    layer, exact = (one.parts["unet"].get_submodule(path) for one in (family, plain))
    assert f"{type(layer).__module__}.{type(layer).__name__}" == LAYERS[name]
    found, expected = answer(layer, width), answer(exact, width)
    assert (found - expected).norm() < FAR[name] * expected.norm()
    assert not torch.equal(found, expected)
    for one in (found, expected):
        one.square().mean().backward()
    for ours, theirs in zip(
        (p for p in layer.parameters() if p.requires_grad),
        (p for p in exact.parameters() if p.requires_grad),
        strict=True,
    ):
        assert ours.dtype == torch.float32 and ours.grad is not None and theirs.grad is not None
        assert torch.cosine_similarity(ours.grad.flatten(), theirs.grad.flatten(), dim=0) > 0.98


@pytest.mark.parametrize("width", [32, 40, 48, 96, 160])
def test_a_width_that_is_no_whole_number_of_blocks_is_quantised_as_well(name: str, width: int) -> None:
    torch.manual_seed(0)
    plain, model = nn.Linear(width, 64), nn.ModuleDict({"to_q": nn.Linear(width, 64)}).requires_grad_(False)
    with torch.no_grad():
        plain.weight.mul_(torch.randn(64, 1).exp())  # rows of one size would do with each other's scales
    model["to_q"].load_state_dict(plain.state_dict())
    QUANTIZERS[name](model, ["to_q"], torch.float32)
    x, other = torch.randn(32, width, requires_grad=True), torch.randn(32, 64)
    found, expected = model["to_q"](x), plain(x)
    gradients = [torch.autograd.grad((one * other).sum(), x)[0] for one in (found, expected)]
    with torch.no_grad():
        alone = model["to_q"](x)
    for near, exact in ((found, expected), (alone, expected), gradients):
        assert (near - exact).norm() < FAR[name] * exact.norm()


def test_its_weights_take_so_few_bits(name: str) -> None:
    model = nn.ModuleDict({"to_q": nn.Linear(256, 512)}).requires_grad_(False)
    QUANTIZERS[name](model, ["to_q"], torch.float32)
    weight = model["to_q"].weight
    held = [getattr(weight, inner) for inner in ("qdata", "int_data", "data") if hasattr(weight, inner)]
    assert held[0].untyped_storage().nbytes() == 256 * 512 * BITS[name] // 8


def test_eight_bits_are_multiplied_where_the_weight_was_moved() -> None:
    """A move to a GPU gives a parameter other memory and keeps the object, as a copying `fn` does here."""
    pytest.importorskip("bitsandbytes")
    model = nn.ModuleDict({"to_q": nn.Linear(64, 48)}).requires_grad_(False)
    QUANTIZERS["bnb_int8"](model, ["to_q"], torch.float32)
    layer = model["to_q"]
    answers = []
    for _ in range(3):  # before the first forward pass, and after it
        model._apply(lambda tensor: tensor.data.clone())
        assert layer.state.CB is None and layer.state.SCB is None  # no memory is held where it was
        answers.append(answer(layer, 64))
        assert layer.state.CB.data_ptr() == layer.weight.data_ptr()
    assert torch.equal(answers[0], answers[1]) and torch.equal(answers[0], answers[2])


def test_the_scales_of_four_bits_move_in_place() -> None:
    """So they are right for the parameter object that a move keeps, too."""
    pytest.importorskip("bitsandbytes")
    model = nn.ModuleDict({"to_q": nn.Linear(64, 48)}).requires_grad_(False)
    QUANTIZERS["bnb_nf4"](model, ["to_q"], torch.float32)
    kept = model["to_q"].weight
    kept.to("meta")
    held = [kept.quant_state, kept.quant_state.state2]
    found = {name: one for state in held for name, one in vars(state).items() if isinstance(one, Tensor)}
    assert {"absmax", "code", "offset"} <= found.keys()
    assert {one.device.type for one in found.values()} == {"meta"}


def test_four_bits_answer_alike_on_every_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    """bitsandbytes repacks weights for processors with AVX512-BF16, which fails for a width like 48."""
    modules = pytest.importorskip("bitsandbytes.nn.modules")
    answers, held = [], []
    for packs in (False, True):
        monkeypatch.setattr(modules, "has_avx512bf16", lambda packs=packs: packs)
        with torch.random.fork_rng(), torch.no_grad():
            torch.manual_seed(0)
            model = nn.ModuleDict({"to_q": nn.Linear(64, 48)}).requires_grad_(False)
            QUANTIZERS["bnb_nf4"](model, ["to_q"], torch.float32)
            before = model["to_q"].weight.data.clone()
            answers.append(answer(model["to_q"], 64))
        assert torch.equal(model["to_q"].weight.data, before)
        held.append(before)
    assert torch.equal(*held) and torch.equal(*answers)


def test_only_linear_layers_that_adapters_sit_on_are_quantised(tiny_base: Path) -> None:
    family = load_base(str(tiny_base), weights=False)
    unet = family.parts["unet"]
    paths = linear_paths(unet, family.targets["unet"])
    assert paths and all(isinstance(unet.get_submodule(path), nn.Linear) for path in paths)
    assert not [path for path in paths if "embedding" in path or "resnets" in path]
    linear = [name for name, one in unet.named_modules() if isinstance(one, nn.Linear)]
    assert set(paths) == {name for name in linear if ".transformer_blocks." in name}


def test_an_unknown_quantiser_is_refused_with_a_suggestion(tmp_path: Path) -> None:
    path = tmp_path / "tiny.toml"
    path.write_text(recipe_text(tmp_path, "pocket"), "utf-8")
    (fault,) = name_faults(load_recipe(path, changes=("base.quantize=bnb_int4",)))
    assert "unknown quantization 'bnb_int4'; did you mean 'bnb_int8'" in fault


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.slow if "int8" in name else ()) for name in NAMES],
    indirect=True,
)
def test_a_run_on_a_quantised_base_ends_with_a_verified_file(
    name: str, tmp_path: Path, tiny_base: Path
) -> None:
    path = tmp_path / "tiny.toml"
    images = image_folder(tmp_path / "images", count=2)
    path.write_text(recipe_text(images, str(tiny_base), steps=2), "utf-8")
    changes = (f"base.quantize={name}", "data.resolution=32")
    result = train(load_recipe(path, changes=changes), tmp_path / "run")
    assert isinstance(result, Finished) and result.report.ok
    assert result.summary["quantized"] == name
    assert result.report.checks["probe_effect"] > 0


@pytest.mark.parametrize("seed", range(4))
def test_a_large_bias_in_half_precision_makes_no_layer_another(name: str, seed: int) -> None:
    """What is rounded away of an answer is as much as the bias makes it, and is no fault of the weight."""
    layer = nn.Linear(64, 64, dtype=torch.bfloat16).requires_grad_(False)
    layer.weight.copy_(torch.randn(64, 64, generator=generator("weight", seed)) / 10)
    layer.bias.copy_(torch.randn(64, generator=generator("bias", seed)))
    exact, holder = layer.weight.clone(), nn.Sequential(layer)
    QUANTIZERS[name](holder, ["0"], torch.bfloat16)
    machine = Machine(torch.device("cpu"), torch.bfloat16, quantize=name)
    assert is_as_near(holder[0], exact, machine)
    exact[0] += 0.3
    assert not is_as_near(holder[0], exact, machine)
