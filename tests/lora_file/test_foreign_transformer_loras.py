"""LoRA files of transformer families as other tools write them, against what diffusers makes of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import diffusers
import pytest
import torch
from diffusers.loaders.single_file_utils import (
    convert_sd3_transformer_checkpoint_to_diffusers,
    convert_z_image_transformer_checkpoint_to_diffusers,
)
from published_transformers import reference
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformer_loras import Factors, assert_same_change, read_peft, some_layers, write_diffusers

from lora_studio.lora_file.convertible import read_plain_layers
from lora_studio.lora_file.open import open_plain
from lora_studio.tools.convert import convert
from lora_studio.tools.inspect import inspect_file
from lora_studio.verify import verify

PIPELINES = {
    "flux1_kohya": "FluxPipeline",
    "flux2_klein_4b_kohya": "Flux2KleinPipeline",
    "flux2_dev_kohya": "Flux2Pipeline",
    "qwen_image_kohya": "QwenImagePipeline",
    "krea2_diffusion_model": "Krea2Pipeline",
}


def from_list(spelling: str, *, rank: int = 3) -> dict[str, Tensor]:
    """Random tensors of the first blocks of a list; a fused layer's are not block-diagonal."""
    draw, found = torch.Generator().manual_seed(0), {}
    for key, shape in reference(spelling).items():
        if not any(f"{mark}0{mark}" in key for mark in "._"):
            continue
        sides = [rank if side in (4, 12, 16) else side for side in shape]
        found[key] = torch.randn(sides, generator=draw) * 0.1 if sides else torch.tensor(2.0)
    return found


def as_read(path: Path) -> Factors:
    """What our reader makes of a file: diffusers' path -> factors."""
    layers = read_plain_layers(path).layers
    return {place.path: (one.down, one.up * one.scale) for place, one in layers.items()}


@pytest.mark.parametrize("spelling", PIPELINES)
def test_fused_layers_of_other_trainers_are_read_as_diffusers_reads_them(
    spelling: str, tmp_path: Path
) -> None:
    """Trained as one layer, so that its rows share what they read."""
    tensors = from_list(spelling)
    save_file(tensors, tmp_path / "a.safetensors")
    found = read_peft(getattr(diffusers, PIPELINES[spelling]).lora_state_dict(dict(tensors)))
    assert len(found) > 8
    assert_same_change(as_read(tmp_path / "a.safetensors"), found)


def original_layers(*names: tuple[str, int, int]) -> dict[str, tuple[Tensor, Tensor]]:
    draw = torch.Generator().manual_seed(0)
    return {
        name: (torch.randn(3, columns, generator=draw), torch.randn(rows, 3, generator=draw))
        for name, rows, columns in names
    }


SD3_LAYERS = original_layers(
    *((f"joint_blocks.{n}.x_block.attn.qkv", 96, 32) for n in (0, 1)),
    *((f"joint_blocks.{n}.context_block.attn.qkv", 96, 32) for n in (0, 1)),
    *((f"joint_blocks.{n}.x_block.attn.proj", 32, 32) for n in (0, 1)),
    ("joint_blocks.0.context_block.attn.proj", 32, 32),
    ("joint_blocks.0.x_block.attn2.qkv", 96, 32),
    ("joint_blocks.0.x_block.attn2.proj", 32, 32),
    *(
        (f"joint_blocks.{n}.x_block.mlp.fc{layer}", *shape)
        for n in (0, 1)
        for layer, shape in ((1, (128, 32)), (2, (32, 128)))
    ),
    *(
        (f"joint_blocks.0.context_block.mlp.fc{layer}", *shape)
        for layer, shape in ((1, (128, 32)), (2, (32, 128)))
    ),
)
Z_IMAGE_LAYERS = original_layers(
    *(
        (f"{where}.0.{layer}", *shape)
        for where in ("layers", "noise_refiner", "context_refiner")
        for layer, shape in {
            **{"attention.qkv": (96, 32), "attention.out": (32, 32), "feed_forward.w1": (80, 32)},
            **{"feed_forward.w2": (32, 80), "feed_forward.w3": (80, 32)},
        }.items()
    ),
)


def sd3_changes(changes: dict[str, Tensor]) -> dict[str, Tensor]:
    rest = {
        **{name: torch.zeros(1) for name in ("x_embedder.proj.weight", "x_embedder.proj.bias", "pos_embed")},
        **{
            f"{name}.{end}": torch.zeros(2)
            for name in (
                "t_embedder.mlp.0",
                "t_embedder.mlp.2",
                "y_embedder.mlp.0",
                "y_embedder.mlp.2",
                "context_embedder",
                "final_layer.linear",
                "final_layer.adaLN_modulation.1",
            )
            for end in ("weight", "bias")
        },
    }
    whole: dict[str, Tensor] = {}
    for n in (0, 1):
        for side in ("x_block", "context_block"):
            whole |= {
                f"joint_blocks.{n}.{side}.adaLN_modulation.1.{end}": torch.zeros(2)
                for end in ("weight", "bias")
            }
            for layer in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2", "attn2.qkv", "attn2.proj"):
                whole |= {
                    f"joint_blocks.{n}.{side}.{layer}.{end}": torch.zeros(3) for end in ("weight", "bias")
                }
    whole = {key: one for key, one in whole.items() if "attn2" not in key or "joint_blocks.0.x_block" in key}
    return convert_sd3_transformer_checkpoint_to_diffusers(rest | whole | changes)


@pytest.mark.parametrize(
    ("layers", "through"),
    [(SD3_LAYERS, sd3_changes), (Z_IMAGE_LAYERS, convert_z_image_transformer_checkpoint_to_diffusers)],
    ids=["sd3", "z_image"],
)
@pytest.mark.parametrize("prefix", ["lora_unet_", "diffusion_model."])
def test_fused_layers_are_the_rows_that_diffusers_makes_of_the_checkpoint(
    prefix: str, layers: Factors, through: Callable[[dict[str, Tensor]], dict[str, Tensor]], tmp_path: Path
) -> None:
    """Where its LoRA loader reads no fused layers: the change as if it were the checkpoint itself."""
    tensors = {}
    for name, (down, up) in layers.items():
        stem = prefix + (name.replace(".", "_") if prefix.endswith("_") else name)
        tensors |= {
            f"{stem}.lora_down.weight": down,
            f"{stem}.lora_up.weight": up,
            f"{stem}.alpha": torch.tensor(1.5),
        }
    save_file(tensors, tmp_path / "a.safetensors")
    expected = through({f"{name}.weight": 0.5 * up @ down for name, (down, up) in layers.items()})
    found = as_read(tmp_path / "a.safetensors")
    known = {key.removesuffix(".weight"): one for key, one in expected.items() if one.ndim == 2 and one.any()}
    assert found.keys() == known.keys()
    for path, (down, up) in found.items():
        assert torch.allclose(up @ down, known[path], atol=1e-6), path


LETTERS = {
    "A and B": ("lora_A.weight", "lora_B.weight"),
    "down and up": ("lora_down.weight", "lora_up.weight"),
    "dots": ("lora.down.weight", "lora.up.weight"),
    "adapters by name": ("lora_A.default.weight", "lora_B.default.weight"),
}
PREFIXES = ("transformer.", "diffusion_model.", "", "base_model.model.", "model.diffusion_model.")
KOHYAS = ("lora_unet_", "lora_transformer_", "lycoris_")


CASES = [("flux1", prefix, letters) for prefix in (*PREFIXES, *KOHYAS) for letters in LETTERS] + [
    (base, prefix, "A and B" if prefix in PREFIXES else "down and up")
    for base in ("sd3_medium", "z_image", "qwen_image", "krea2")
    for prefix in (*PREFIXES, *KOHYAS)
]


@pytest.mark.parametrize(("base", "prefix", "letters"), CASES)
def test_single_layers_are_read_behind_every_prefix(
    base: str, prefix: str, letters: str, tmp_path: Path
) -> None:
    alpha = None if letters == "A and B" else 1.0
    factors, tensors = some_layers(base, layers=r"attn|attention|single_|text_fusion"), {}
    down, up = LETTERS[letters]
    for path, (a, b) in factors.items():
        stem = prefix + (path.replace(".", "_") if prefix.endswith("_") else path)
        tensors |= {f"{stem}.{down}": a, f"{stem}.{up}": b}
        tensors |= {} if alpha is None else {f"{stem}.alpha": torch.tensor(alpha)}
    save_file(tensors, tmp_path / "a.safetensors")
    scale = 1.0 if alpha is None else alpha / 2
    expected = {path: (a, b * scale) for path, (a, b) in factors.items()}
    assert_same_change(as_read(tmp_path / "a.safetensors"), expected)
    opened = open_plain(tmp_path / "a.safetensors")
    assert opened.layers.keys() == {f"transformer.{path}" for path in factors}
    facts = inspect_file(tmp_path / "a.safetensors")
    assert facts.kind == "lora" and facts.layers == {"transformer": len(factors)}
    assert verify(tmp_path / "a.safetensors").faults == [] or prefix not in (
        "transformer.",
        "diffusion_model.",
    )


def test_an_alpha_that_is_said_apart_counts(tmp_path: Path) -> None:
    """As diffusers' `save_lora_weights` writes it into the metadata."""
    factors = some_layers("z_image", layers="to_q")
    said = {
        "transformer.r": 2,
        "transformer.lora_alpha": 8,
        "transformer.alpha_pattern": {"layers.0.attention.to_q": 4},
    }
    path = write_diffusers(tmp_path / "a.safetensors", factors, lora_adapter_metadata=json.dumps(said))
    expected = {
        name: (a, b * (2.0 if name == "layers.0.attention.to_q" else 4.0)) for name, (a, b) in factors.items()
    }
    assert_same_change(as_read(path), expected)
    opened = open_plain(path)
    for name, (a, b) in expected.items():
        assert torch.allclose(opened.delta(f"transformer.{name}"), b @ a, atol=1e-5)


def test_a_text_encoder_beside_the_transformer_is_kept(tmp_path: Path) -> None:
    tensors = from_list("flux1_kohya")
    stem = "lora_te1_text_model_encoder_layers_0_self_attn_q_proj"
    tensors |= {
        f"{stem}.lora_down.weight": torch.randn(2, 768),
        f"{stem}.lora_up.weight": torch.randn(768, 2),
        f"{stem}.alpha": torch.tensor(2.0),
    }
    save_file(tensors, tmp_path / "a.safetensors")
    for target in ("diffusers", "comfy", "kohya"):
        convert(tmp_path / "a.safetensors", target, out=tmp_path / f"{target}.safetensors", dtype="float32")
        again = read_plain_layers(tmp_path / f"{target}.safetensors").layers
        (place,) = [place for place in again if place.part == "text_encoder"]
        assert place.path == "text_model.encoder.layers.0.self_attn.q_proj"
        assert torch.equal(again[place].down, tensors[f"{stem}.lora_down.weight"])
    assert f"{stem}.lora_up.weight" in load_file(tmp_path / "kohya.safetensors")
