"""One LoRA in every spelling there is, read into the same layers; and what no LoRA has, named."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from lora_studio.errors import StudioError
from lora_studio.lora_file.convertible import read_any
from lora_studio.lora_file.lora_file import open_lora
from lora_studio.tools.convert import convert

RANK, ALPHA = 4, 2.0
ATTENTION = "down_blocks.1.attentions.0.transformer_blocks.0.attn2"
TEXT = "text_model.encoder.layers.0"
SHAPES = {  # of an SD1.5 file, and then of an SDXL one
    ("unet", f"{ATTENTION}.to_k"): (640, 768),
    ("unet", f"{ATTENTION}.to_out.0"): (640, 640),
    ("unet", "down_blocks.0.attentions.0.proj_in"): (320, 320, 1, 1),
    ("unet", "up_blocks.3.resnets.0.conv1"): (320, 960, 3, 3),
    ("unet", "up_blocks.0.upsamplers.0.conv"): (1280, 1280, 3, 3),
    ("text_encoder", f"{TEXT}.self_attn.q_proj"): (768, 768),
    ("text_encoder", f"{TEXT}.mlp.fc1"): (3072, 768),
}
SHAPES_XL = {
    ("unet", f"{ATTENTION}.to_k"): (640, 2048),
    ("unet", "down_blocks.1.attentions.0.proj_in"): (640, 640),
    ("unet", "up_blocks.1.upsamplers.0.conv"): (640, 640, 3, 3),
    ("unet", "down_blocks.0.resnets.1.conv2"): (320, 320, 3, 3),
    ("text_encoder", f"{TEXT}.mlp.fc1"): (3072, 768),
    ("text_encoder_2", f"{TEXT}.self_attn.q_proj"): (1280, 1280),
}
ORIGINAL = {
    "down_blocks.1.attentions.0": "input_blocks.4.1",
    "down_blocks.0.attentions.0": "input_blocks.1.1",
    "up_blocks.3.resnets.0.conv1": "output_blocks.9.0.in_layers.2",
    "up_blocks.0.upsamplers.0.conv": "output_blocks.2.1.conv",
    "up_blocks.1.upsamplers.0.conv": "output_blocks.5.2.conv",
    "down_blocks.0.resnets.1.conv2": "input_blocks.2.0.out_layers.3",
}
Place = tuple[str, str]


def factors(shape: tuple[int, ...], seed: int) -> tuple[Tensor, Tensor]:
    torch.manual_seed(seed)
    return torch.randn(RANK, *shape[1:]), torch.randn(shape[0], RANK, *(1 for _ in shape[2:]))


def original(path: str) -> str:
    for ours, theirs in ORIGINAL.items():
        path = path.replace(ours, theirs)
    return path


def kohya(place: Place, prefixes: tuple[str, str, str], rename: Callable[[str], str]) -> str:
    part, path = place
    prefix = prefixes[("unet", "text_encoder", "text_encoder_2").index(part)]
    return prefix + (rename(path) if part == "unet" else path).replace(".", "_")


def same(path: str) -> str:
    return path


def underscored(
    *prefixes: str, rename: Callable[[str], str] = same, down: str = "lora_down", up: str = "lora_up"
) -> Callable[[Place], tuple[str, str, str]]:
    def name(place: Place) -> tuple[str, str, str]:
        stem = kohya(place, prefixes, rename)  # type: ignore[arg-type]
        return f"{stem}.{down}.weight", f"{stem}.{up}.weight", f"{stem}.alpha"

    return name


def dotted(start: str, end: str = "") -> Callable[[Place], tuple[str, str, str]]:
    def name(place: Place) -> tuple[str, str, str]:
        stem = f"{start}{'.'.join(place)}"
        return f"{stem}.lora_A{end}.weight", f"{stem}.lora_B{end}.weight", f"{stem}.alpha"

    return name


def processors(place: Place) -> tuple[str, str, str]:
    """diffusers before PEFT."""
    stem = ".".join(place)
    for last, old in (("q_proj", "to_q"), ("to_k", "to_k"), ("to_out.0", "to_out")):
        if stem.endswith(last):
            old_stem = stem.removesuffix(last).replace("attn2.", "attn2.processor.") + old
            return f"{old_stem}_lora.down.weight", f"{old_stem}_lora.up.weight", f"{stem}.alpha"
    end = "lora_linear_layer" if "mlp" in stem else "lora"
    return f"{stem}.{end}.down.weight", f"{stem}.{end}.up.weight", f"{stem}.alpha"


SPELLINGS = {
    "kohya": underscored("lora_unet_", "lora_te_", ""),
    "te1 on one encoder": underscored("lora_unet_", "lora_te1_", ""),
    "original names": underscored("lora_unet_", "lora_te_", "", rename=original),
    "lora_A in kohya's names": underscored("lora_unet_", "lora_te_", "", down="lora_A", up="lora_B"),
    "peft": dotted(""),
    "peft with the adapter's name": dotted("", ".default"),
    "peft in its own hands": dotted("base_model.model."),
    "processors": processors,
}
SPELLINGS_XL = {
    "kohya": underscored("lora_unet_", "lora_te1_", "lora_te2_", rename=original),
    "diffusers' names": underscored("lora_unet_", "lora_te1_", "lora_te2_"),
    "te on two encoders": underscored("lora_unet_", "lora_te_", "lora_te2_", rename=original),
    "peft": dotted(""),
    "processors": processors,
}


def check(
    shapes: dict[Place, tuple[int, ...]],
    spell: Callable[[Place], tuple[str, str, str]],
    expected: Callable[[Place], tuple[str, str, str]],
    path: Path,
    alpha: Tensor | None,
) -> None:
    tensors = {}
    for number, (place, shape) in enumerate(shapes.items()):
        down, up, name = spell(place)
        tensors[down], tensors[up] = factors(shape, number)
        if alpha is not None:
            tensors[name] = alpha.clone()
    save_file(tensors, path)
    file = read_any(path)
    names = {place: expected(place)[0].partition(".")[0] for place in shapes}
    assert set(file.layers) == set(names.values())
    for number, (place, shape) in enumerate(shapes.items()):
        down, up = factors(shape, number)
        scale = ALPHA / RANK if alpha is not None else 1.0
        wanted = (scale * up.flatten(1) @ down.flatten(1)).view(shape)
        assert torch.allclose(file.delta(names[place]), wanted, rtol=1e-5, atol=1e-5)
        assert file.layers[names[place]].tensors["alpha"].ndim == 0


@pytest.mark.parametrize("alpha", [None, torch.tensor(2), torch.tensor([2.0])], ids=["none", "int64", "[1]"])
@pytest.mark.parametrize("name", SPELLINGS)
def test_a_spelling_is_read(name: str, alpha: Tensor | None, tmp_path: Path) -> None:
    check(SHAPES, SPELLINGS[name], SPELLINGS["kohya"], tmp_path / "x.safetensors", alpha)


@pytest.mark.parametrize("name", SPELLINGS_XL)
def test_a_spelling_of_a_base_with_two_encoders_is_read(name: str, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    check(SHAPES_XL, SPELLINGS_XL[name], SPELLINGS_XL["kohya"], path, torch.tensor(2.0))


def test_names_without_text_model_are_what_they_should_have_been(tmp_path: Path) -> None:
    """As transformers 5's paths give them."""
    down, up = factors((768, 768), 0)
    stem = "lora_te_encoder_layers_0_self_attn_q_proj"
    save_file({f"{stem}.lora_down.weight": down, f"{stem}.lora_up.weight": up}, tmp_path / "x.safetensors")
    assert list(read_any(tmp_path / "x.safetensors").layers) == [stem.replace("te_", "te_text_model_")]


def test_sides_of_a_kernel_of_one_are_those_of_the_layer(tmp_path: Path) -> None:
    """A linear layer written as a convolution, and a convolution written as a linear layer."""
    linear = f"lora_unet_{ATTENTION}.to_k".replace(".", "_")
    convolution = "lora_unet_down_blocks_1_resnets_0_conv_shortcut"
    tensors = {}
    for stem, sides in ((linear, (1, 1)), (convolution, ())):
        down, up = factors((640, 768), 0)
        tensors[f"{stem}.lora_down.weight"] = down.reshape(RANK, 768, *sides)
        tensors[f"{stem}.lora_up.weight"] = up.reshape(640, RANK, *sides)
    save_file(tensors, tmp_path / "x.safetensors")
    file = read_any(tmp_path / "x.safetensors")
    assert file.layers[linear].tensors["lora_down.weight"].shape == (RANK, 768)
    assert file.layers[convolution].tensors["lora_down.weight"].shape == (RANK, 768, 1, 1)


@pytest.mark.parametrize("rslora", [False, True])
def test_alphas_that_diffusers_keeps_in_metadata_count(rslora: bool, tmp_path: Path) -> None:
    down, up = factors((640, 768), 0)
    stem, other = f"unet.{ATTENTION}.to_k", f"unet.{ATTENTION}.to_v"
    tensors = {
        f"{one}.lora_{end}.weight": value.clone()
        for one in (stem, other)
        for end, value in (("A", down), ("B", up))
    }
    said = {"unet.r": RANK, "unet.lora_alpha": 8, "unet.use_rslora": rslora}
    said |= {"unet.alpha_pattern": {f"{ATTENTION}.to_v": 16}}
    path = tmp_path / "x.safetensors"
    save_file(tensors, path, metadata={"lora_adapter_metadata": json.dumps(said)})
    file = read_any(path)
    for one, alpha in ((stem, 8), (other, 16)):
        name = f"lora_{one}".replace(".", "_")
        scale = alpha / (RANK**0.5 if rslora else RANK)
        assert torch.allclose(file.delta(name), scale * up @ down, rtol=1e-5, atol=1e-5)


FAULTS: dict[str, tuple[Callable[[dict[str, Tensor]], object], str]] = {
    "unknown ending": (lambda t: t.update({"lora_unet_mid_block_x.glora_a": torch.ones(1)}), "glora_a"),
    "unknown layer": (
        lambda t: t.update({"lora_unet_double_blocks_0_img.lora_down.weight": torch.ones(1, 1)}),
        "double_blocks",
    ),
    "up is missing": (
        lambda t: t.pop("lora_unet_mid_block_attentions_0_proj_in.lora_up.weight"),
        "lacks its lora_up.weight",
    ),
    "not finite": (lambda t: next(iter(t.values())).fill_(float("inf")), "not finite"),
    "norms alone": (
        lambda t: [t.clear(), t.update({"lora_unet_mid_block_attentions_0_norm.w_norm": torch.ones(8)})],
        "1 change of norms, embeddings, or biases alone, which plain LoRA cannot hold",
    ),
    "twice": (
        lambda t: t.update({"unet.mid_block.attentions.0.proj_in.lora_A.weight": torch.ones(2, 2)}),
        "twice",
    ),
    "two kinds in one layer": (
        lambda t: t.update({"lora_unet_mid_block_attentions_0_proj_in.diff": torch.ones(8, 8)}),
        "beside that",
    ),
    "nothing": (lambda t: t.clear(), "holds nothing"),
    "whole numbers": (
        lambda t: t.update({key: one.to(torch.int8) for key, one in t.items()}),
        r"is not complete \(lora_\w+.weight has dtype int8\)",
    ),
    "two alphas": (
        lambda t: t.update({"lora_unet_mid_block_attentions_0_proj_in.alpha": torch.ones(2)}),
        "alpha has the shape",
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_what_cannot_be_read_is_named(name: str, tmp_path: Path) -> None:
    stem = "lora_unet_mid_block_attentions_0_proj_in"
    tensors = {f"{stem}.lora_down.weight": torch.ones(2, 8), f"{stem}.lora_up.weight": torch.ones(8, 2)}
    FAULTS[name][0](tensors)
    save_file(tensors, tmp_path / "x.safetensors")
    with pytest.raises(StudioError, match=FAULTS[name][1]):
        read_any(tmp_path / "x.safetensors")


def test_a_converted_file_has_the_change_and_keeps_what_is_there(tmp_path: Path) -> None:
    source, out = tmp_path / "x.safetensors", tmp_path / "y.safetensors"
    check(SHAPES, SPELLINGS["processors"], SPELLINGS["kohya"], source, torch.tensor(2.0))
    result = convert(source, "kohya", out=out)
    assert result.layers == len(SHAPES) and not result.cut and result.cast_error < 1e-3
    before, after = read_any(source), open_lora(out)
    for name in before.layers:
        error = (after.delta(name) - before.delta(name)).norm() / before.delta(name).norm()
        assert error < 1e-3
    # a text encoder's projections come together, as A1111 takes them
    assert len(after.layers.keys() - before.layers.keys()) == 3
    with pytest.raises(StudioError, match="is there already"):
        convert(source, "kohya", out=out)
    with pytest.raises(StudioError, match="is for what a run has trained"):
        convert(source, "merged", out=out)
    with pytest.raises(StudioError, match=r"is a folder; give the path of a \.safetensors file"):
        convert(Path(), "kohya")
    again = convert(out, "diffusers", out=tmp_path / "z.safetensors", dtype="float32")
    assert {key.rpartition(".lora_")[0] for key in open_keys(again.path)} >= {".".join(one) for one in SHAPES}


def open_keys(path: Path) -> list[str]:
    from safetensors.torch import load_file

    return list(load_file(path))
