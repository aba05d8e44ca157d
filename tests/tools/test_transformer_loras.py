"""The tools on finished files of transformer families: whatever the spelling, they compute single layers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from lora_mutator import KINDS
from safetensors.torch import load_file, save_file
from transformer_loras import assert_same_change, read_peft, some_layers, write_diffusers

from lora_studio.errors import StudioError
from lora_studio.families.loading import load_base
from lora_studio.lora_file.base_weights import open_weights
from lora_studio.lora_file.convertible import read_plain_layers
from lora_studio.lora_file.factors import RankLimit
from lora_studio.lora_file.lora_file import open_lora
from lora_studio.lora_file.open import open_plain, open_together, read_plain
from lora_studio.tools.combine import Term, combine, resize
from lora_studio.tools.compare import compare
from lora_studio.tools.convert import convert
from lora_studio.tools.extract import extract
from lora_studio.tools.merge_into import merge_into
from lora_studio.verify import verify

BaseOf = Callable[[str], Path]


def in_diffusers(path: Path, folder: Path):
    convert(path, "diffusers", out=folder / "back.safetensors", dtype="float32", force=True)
    return read_peft(load_file(folder / "back.safetensors"))


@pytest.mark.parametrize("base", ["flux1", "z_image", "sd35_medium", "krea2"])
def test_two_spellings_are_combined_compared_and_resized(base: str, tmp_path: Path) -> None:
    one, other = (some_layers(base, layers=r"attn\.|layers.0.attention", seed=seed) for seed in (1, 2))
    paths = [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
    convert(write_diffusers(tmp_path / "x.safetensors", one), "sd_scripts", out=paths[0], dtype="float32")
    convert(write_diffusers(tmp_path / "y.safetensors", other), "comfy", out=paths[1], dtype="float32")
    terms = [Term(file, strength) for file, strength in zip(open_together(paths), (0.5, 2.0), strict=True)]
    combine(terms, tmp_path / "sum.safetensors", method="concat", dtype="float32")
    expected = {
        path: (
            torch.cat([one[path][0], other[path][0]]),
            torch.cat([0.5 * one[path][1], 2 * other[path][1]], 1),
        )
        for path in one
    }
    assert_same_change(in_diffusers(tmp_path / "sum.safetensors", tmp_path), expected, rounding=1e-5)
    assert verify(tmp_path / "sum.safetensors").ok
    found = compare(*terms)
    assert {layer.name for layer in found.shared} >= {f"transformer.{path}" for path in one}
    assert {layer.name for layer in found.shared if any(layer.norms)} <= {
        f"transformer.{path}" for path in one
    }
    resize(
        open_plain(tmp_path / "sum.safetensors"),
        tmp_path / "small.safetensors",
        RankLimit(rank=2),
        dtype="float32",
    )
    path, (down, up) = next(iter(expected.items()))
    (columns, above), (rows, beside) = torch.linalg.qr(up.double()), torch.linalg.qr(down.double().T)
    left, sizes, right = torch.linalg.svd(above @ beside.T)
    best = {path: (right[:2] @ rows.T, columns @ left[:, :2] * sizes[:2])}
    found = in_diffusers(tmp_path / "small.safetensors", tmp_path)
    assert_same_change({path: found[path]}, best, rounding=1e-5)


@pytest.mark.parametrize("others", ["qwen_image", "sd35_large", "z_image"])
def test_files_of_different_families_are_not_put_together(others: str, tmp_path: Path) -> None:
    """FLUX.1's and Qwen-Image's layers share names and sizes."""
    write_diffusers(tmp_path / "a.safetensors", some_layers("flux1"))
    write_diffusers(tmp_path / "b.safetensors", some_layers(others))
    terms = [Term(file, 1.0) for file in open_together([tmp_path / f"{name}.safetensors" for name in "ab"])]
    with pytest.raises(StudioError, match=r"different kinds of bases: the layers are one of FLUX\.1 in one"):
        combine(terms, tmp_path / "c.safetensors", method="concat")


@pytest.mark.parametrize("name", ["z_image", "flux1", "sd3"])
def test_a_file_merged_into_a_base_and_extracted_again_is_the_same(
    name: str, base_of: BaseOf, tmp_path: Path
) -> None:
    base, draw = open_weights(str(base_of(name))), torch.Generator().manual_seed(0)
    family = base.family
    factors = {}
    for path, module in family.parts["transformer"].named_modules():
        if path.endswith((".to_q", ".to_k", ".to_v", ".proj_mlp", ".to_out.0")):
            out, columns = module.weight.shape
            factors[path] = (torch.randn(2, columns, generator=draw), torch.randn(out, 2, generator=draw))
    file = write_diffusers(tmp_path / "a.safetensors", factors)
    convert(file, "kohya", out=tmp_path / "b.safetensors", dtype="float32", base=str(base_of(name)))
    (opened,) = open_together([tmp_path / "b.safetensors"])
    merge_into(base, [Term(opened, 0.5)], tmp_path / "merged")
    tuned = load_base(str(tmp_path / "merged")).parts["transformer"].state_dict()
    before = load_base(str(base_of(name))).parts["transformer"].state_dict()
    changed = {key for key in tuned if not torch.equal(tuned[key], before[key])}
    assert changed == {f"{path}.weight" for path in factors}
    for path, (down, up) in factors.items():
        made = tuned[f"{path}.weight"] - before[f"{path}.weight"]
        assert torch.allclose(made, 0.5 * up @ down, atol=1e-5)
    extract(
        open_weights(str(tmp_path / "merged")),
        base,
        tmp_path / "again.safetensors",
        RankLimit(rank=2),
        dtype="float32",
    )
    expected = {path: (down, 0.5 * up) for path, (down, up) in factors.items()}
    assert_same_change(in_diffusers(tmp_path / "again.safetensors", tmp_path), expected, rounding=1e-4)
    assert verify(tmp_path / "again.safetensors", base=str(base_of(name))).ok


@pytest.mark.parametrize(
    "kind",
    ["loha", "loha with a core", "lokr", "lokr of whole factors", "lokr of four factors", "full", "mid"],
)
def test_fused_layers_of_other_kinds_are_taken_apart(kind: str, tmp_path: Path) -> None:
    """Rows of the whole change, whatever it is a product of."""
    torch.manual_seed(0)
    stem = "lora_unet_double_blocks_0_img_attn_qkv"
    tensors = {f"{stem}.{end}": one for end, one in KINDS[kind]((192, 64)).items() if end != "diff_b"}
    save_file(tensors, tmp_path / "a.safetensors")
    whole = open_lora(tmp_path / "a.safetensors").layers[stem].delta().flatten(1)
    layers = read_plain_layers(tmp_path / "a.safetensors").layers
    for place, one in layers.items():
        at = "qkv".index(place.path[-1]) * 64
        made = one.scale * one.up.flatten(1) @ one.down.flatten(1)
        assert (made - whole[at : at + 64]).norm() < 1e-3 * whole.norm(), place
    assert len(layers) == 3


@pytest.mark.parametrize(
    ("kind", "why"), [("oft", "has OFT of several"), ("dora of inputs", "has a magnitude along")]
)
def test_what_cannot_be_taken_apart_is_refused(kind: str, why: str, tmp_path: Path) -> None:
    stem = "lora_unet_single_blocks_0_linear1"
    save_file(
        {f"{stem}.{end}": one for end, one in KINDS[kind]((448, 64)).items()}, tmp_path / "a.safetensors"
    )
    with pytest.raises(StudioError, match=f"{stem} {why}"):
        open_plain(tmp_path / "a.safetensors")


def test_a_fused_weight_of_other_rows_is_refused(tmp_path: Path) -> None:
    """Keys and values are neither as wide as queries nor, as in Lumina-Image 2, of fewer whole heads."""
    stem = "lora_unet_layers_0_attention_qkv"
    save_file(
        {f"{stem}.{end}": one for end, one in KINDS["lora"]((130, 64)).items()}, tmp_path / "a.safetensors"
    )
    with pytest.raises(StudioError, match="not that of 3 layers in one; it is for another kind of base"):
        open_plain(tmp_path / "a.safetensors")


def test_a_recipe_takes_files_of_any_spelling(tmp_path: Path) -> None:
    factors = some_layers("z_image", layers="attention")
    write_diffusers(tmp_path / "a.safetensors", factors)
    for target in ("kohya", "comfy", "sd_scripts"):
        convert(tmp_path / "a.safetensors", target, out=tmp_path / f"{target}.safetensors")
        file = read_plain(tmp_path / f"{target}.safetensors", "base.loras[0].file")
        assert file.layers.keys() == {f"transformer.{path}" for path in factors}
