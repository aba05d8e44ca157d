"""What each UI does with files of transformer families: the table of what their own code did, row by row."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformer_loras import some_layers, write_diffusers

from lora_studio.tools.convert import convert
from lora_studio.verify import VerifyReport, verify

Tensors = dict[str, Tensor]


def _without_alpha(tensors: Tensors) -> Tensors:
    return {key: one for key, one in tensors.items() if not key.endswith("alpha")}


def _with_alpha(tensors: Tensors) -> Tensors:
    stems = {key.rpartition(".lora_")[0] for key in tensors}
    return tensors | {f"{stem}.alpha": torch.tensor(1.0) for stem in stems}


def _down(tensors: Tensors) -> Tensors:
    return {
        key.replace("lora_A", "lora_down").replace("lora_B", "lora_up"): one for key, one in tensors.items()
    }


def _behind(prefix: str) -> Callable[[Tensors], Tensors]:
    def spell(tensors: Tensors) -> Tensors:
        found = {}
        for key, one in tensors.items():
            stem, _, end = key.removeprefix("transformer.").rpartition(".lora_")
            found[f"{prefix}{stem.replace('.', '_') if prefix.endswith('_') else stem}.lora_{end}"] = one
        return found

    return spell


# How the dossier of the UIs names a file -> what `convert` writes, and what is done to that.
Spelled = tuple[str, list[Callable[[Tensors], Tensors]]]
FILES: dict[str, Spelled] = {
    "lora_unet_<o>": ("sd_scripts", []),
    "transformer.<d>": ("diffusers", []),
    "diffusion_model.<o>": ("comfy", []),
    "diffusion_model.<o> + alpha": ("comfy", [_with_alpha]),
    "diffusion_model.<o> down + alpha": ("comfy", [_with_alpha, _down]),
    "transformer.<d> + alpha": ("diffusers", [_with_alpha]),
    "lora_transformer_<d>": ("diffusers", [_down, _behind("lora_transformer_"), _with_alpha]),
    "lora_unet_<d>": ("diffusers", [_down, _behind("lora_unet_"), _with_alpha]),
    "diffusion_model.<d>": ("diffusers", [_behind("diffusion_model.")]),
    "diffusion_model.<d> down + alpha": ("diffusers", [_behind("diffusion_model."), _down, _with_alpha]),
}
# ComfyUI, diffusers, InvokeAI, stable-diffusion.cpp; "-": no such family there
ALL, PART, NONE, ERROR, NO = "completely", "partly", "not at all", "not at all", "no base for it"
WRONG = PART
ROWS: list[tuple[str, str, tuple[str, str, str, str]]] = [
    ("flux1", "lora_unet_<o>", (ALL, ALL, ALL, ALL)),
    ("flux1", "transformer.<d>", (ALL, ALL, ALL, ALL)),
    ("flux1", "diffusion_model.<o>", (ALL, NONE, ALL, ALL)),
    ("flux1", "diffusion_model.<o> down + alpha", (ALL, ALL, ERROR, ALL)),
    ("flux1", "lora_transformer_<d>", (ALL, ERROR, ERROR, NONE)),
    ("flux1", "transformer.<d> + alpha", (ALL, WRONG, ERROR, ALL)),
    ("flux1", "lora_unet_<d>", (NONE, ERROR, ERROR, ALL)),
    ("chroma", "lora_unet_<o>", (ALL, ALL, NO, ALL)),
    ("chroma", "diffusion_model.<o>", (ALL, NONE, NO, ALL)),
    ("flux2_klein_4b", "lora_unet_<o>", (ALL, ALL, ALL, ALL)),
    ("flux2_klein_4b", "diffusion_model.<o>", (ALL, ALL, ALL, ALL)),
    ("flux2_klein_4b", "transformer.<d>", (ALL, ALL, ALL, PART)),
    ("flux2_klein_4b", "diffusion_model.<o> + alpha", (ALL, ERROR, ERROR, ALL)),
    ("flux2_klein_4b", "diffusion_model.<o> down + alpha", (ALL, NONE, ERROR, ALL)),
    ("flux2_klein_4b", "diffusion_model.<d>", (NONE, ALL, ERROR, PART)),
    ("sd35_medium", "transformer.<d>", (ALL, ALL, NO, ALL)),
    ("sd35_medium", "lora_unet_<o>", (ALL, NONE, NO, NONE)),
    ("sd35_medium", "diffusion_model.<o>", (ALL, NONE, NO, ALL)),
    ("sd35_medium", "diffusion_model.<o> + alpha", (ALL, NONE, NO, ALL)),
    ("z_image", "diffusion_model.<d>", (ALL, ALL, ALL, ALL)),
    ("z_image", "diffusion_model.<d> down + alpha", (ALL, ALL, ALL, ALL)),
    ("z_image", "transformer.<d>", (ALL, ALL, ALL, ALL)),
    ("z_image", "lora_unet_<d>", (PART, ALL, NONE, PART)),
    ("z_image", "diffusion_model.<o>", (ALL, PART, PART, ALL)),
    ("qwen_image", "lora_unet_<d>", (ALL, ALL, ALL, ALL)),
    ("qwen_image", "transformer.<d>", (ALL, ALL, ALL, ALL)),
    ("qwen_image", "diffusion_model.<d>", (ALL, ALL, NONE, ALL)),
    ("qwen_image", "transformer.<d> + alpha", (ALL, NONE, ALL, ALL)),
    ("krea2", "diffusion_model.<o>", (ALL, ALL, ALL, ALL)),
    ("krea2", "transformer.<d>", (ALL, ALL, ALL, ALL)),
    ("krea2", "lora_unet_<o>", (ALL, NONE, ALL, PART)),
    ("krea2", "diffusion_model.<o> + alpha", (ALL, ERROR, ALL, ALL)),
    ("anima", "diffusion_model.<o>", (ALL, ALL, ALL, ALL)),
    ("anima", "lora_unet_<o>", (ALL, NONE, ALL, ALL)),
    ("anima", "transformer.<d>", (NONE, ALL, NONE, NONE)),
]
VERSIONS = {"flux1": "flux1", "chroma": "chroma"}
COLUMNS = ("ComfyUI", "diffusers", "InvokeAI", "stable-diffusion.cpp")


def judged(path: Path) -> Mapping[str, str]:
    return {one.ui: one.loads for one in verify(path).uis}


def spelled(base: str, file: str, folder: Path) -> Path:
    target, changes = FILES[file]
    source = write_diffusers(
        folder / "a.safetensors", some_layers(base), ss_base_model_version=VERSIONS.get(base, "")
    )
    convert(source, target, out=folder / "b.safetensors", dtype="float32", force=True)
    tensors = load_file(folder / "b.safetensors")
    for change in changes:
        tensors = change(tensors)
    save_file(tensors, folder / "c.safetensors", metadata={"ss_base_model_version": VERSIONS.get(base, "")})
    return folder / "c.safetensors"


@pytest.mark.parametrize(("base", "file", "expected"), ROWS, ids=[f"{base} {file}" for base, file, _ in ROWS])
def test_a_row_of_the_table(base: str, file: str, expected: tuple[str, ...], tmp_path: Path) -> None:
    found = judged(spelled(base, file, tmp_path))
    assert tuple(found[ui] for ui in COLUMNS) == expected
    assert found["A1111"] == NO


PARTIAL: list[tuple[str, str, str, dict[str, str]]] = [
    ("flux1", "diffusers", r"attn\.", {"stable-diffusion.cpp": PART, "InvokeAI": ALL}),
    ("flux1", "diffusers", r"to_[qv]$|add_[qv]_proj", {"stable-diffusion.cpp": NONE, "InvokeAI": ALL}),
    ("flux1", "diffusers", r"^single_.*|to_[qkv]$", {"InvokeAI": ERROR}),
    ("z_image", "diffusers", r"to_[qv]$", {"stable-diffusion.cpp": NONE, "ComfyUI": ALL}),
    ("sd35_medium", "diffusers", r"to_[qv]$", {"stable-diffusion.cpp": NONE, "diffusers": ALL}),
    ("flux2_klein_4b", "comfy", r"attn\.", {"InvokeAI": NONE, "ComfyUI": ALL}),
    ("flux2_klein_9b", "comfy", r"attn\.", {"InvokeAI": ALL}),
    ("krea2", "comfy", r"^transformer_blocks.*to_[qkv]$", {"InvokeAI": NONE, "ComfyUI": ALL}),
    ("krea2", "comfy", r"^transformer_blocks.*to_(q|gate)$", {"InvokeAI": ALL}),
    ("krea2", "diffusers", r"^transformer_blocks", {"InvokeAI": NONE}),
]


@pytest.mark.parametrize(("base", "target", "layers", "expected"), PARTIAL)
def test_partial_files_are_judged_as_the_uis_did(
    base: str, target: str, layers: str, expected: dict[str, str], tmp_path: Path
) -> None:
    """Written without what our writer adds."""
    write_diffusers(tmp_path / "a.safetensors", some_layers(base))
    convert(tmp_path / "a.safetensors", target, out=tmp_path / "whole.safetensors", dtype="float32")
    write_diffusers(tmp_path / "b.safetensors", some_layers(base, layers=layers))
    convert(tmp_path / "b.safetensors", target, out=tmp_path / "c.safetensors", dtype="float32")
    tensors = load_file(tmp_path / "c.safetensors")
    ups = {key for key, one in tensors.items() if "lora_B" in key and not one.any()}
    kept = {k: one for k, one in tensors.items() if k not in ups and k.replace("lora_A", "lora_B") not in ups}
    save_file(kept, tmp_path / "d.safetensors")
    found = judged(tmp_path / "d.safetensors")
    assert {ui: found[ui] for ui in expected} == expected


@pytest.mark.parametrize(
    ("base", "target", "layers"), [(base, target, layers) for base, target, layers, _ in PARTIAL]
)
def test_what_is_written_of_part_of_the_layers_loads_where_the_whole_does(
    base: str, target: str, layers: str, tmp_path: Path
) -> None:
    """Zeros stand for the layers that a UI looks for."""
    write_diffusers(tmp_path / "a.safetensors", some_layers(base))
    write_diffusers(tmp_path / "b.safetensors", some_layers(base, layers=layers))
    for name in "ab":
        convert(tmp_path / f"{name}.safetensors", target, out=tmp_path / f"{name}_out.safetensors")
    whole, part = (judged(tmp_path / f"{name}_out.safetensors") for name in "ab")
    assert part == whole


def test_an_alpha_beside_lora_a_is_said(tmp_path: Path) -> None:
    report: VerifyReport = verify(spelled("flux1", "transformer.<d> + alpha", tmp_path))
    (diffusers,) = [one for one in report.uis if one.ui == "diffusers"]
    assert diffusers.reasons[0].consequence.startswith("wrong strength, as it ignores the alpha")


def test_damaged_layers_of_a_fused_file_are_named(tmp_path: Path) -> None:
    path = spelled("flux1", "lora_unet_<o>", tmp_path)
    tensors = load_file(path)
    key = "lora_unet_single_blocks_0_linear1.lora_up.weight"
    tensors[key][0, 0] = float("nan")
    save_file(tensors, path)
    assert any(
        "lora_unet_single_blocks_0_linear1: it is not finite" in fault for fault in verify(path).faults
    )
    del tensors[key]
    save_file(tensors, path)
    assert any("lora_up.weight is missing" in fault for fault in verify(path).faults)
    tensors[key] = torch.ones(3 * 3072, 8)
    save_file(tensors, path)
    assert any(
        "shapes that do not fit FLUX.1" in one.reasons[0].what
        for one in verify(path).uis
        if one.ui == "ComfyUI"
    )
