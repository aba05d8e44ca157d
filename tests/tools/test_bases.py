"""LoRA files into whole bases and out of them again, in both layouts and every family."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from console import run
from lora_files import dense, write_random_lora
from original_layout import random_original
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from lora_studio.errors import StudioError
from lora_studio.families.loading import load_base
from lora_studio.lora_file.base_weights import Weights, open_weights
from lora_studio.lora_file.factors import RankLimit, leading
from lora_studio.lora_file.open import Merged, merge_plain, open_plain
from lora_studio.tools.combine import Term
from lora_studio.tools.extract import extract
from lora_studio.tools.merge_into import layer_keys, merge_into

RANK = 3


def lora_for(base: Weights, path: Path, *, every: int = 1) -> Path:
    """Random changes in the layers that training changes, convolutions and text encoders too."""
    family = base.family
    wanted = {}
    for name, key in layer_keys(base).items():
        part = key.partition(".")[0]
        endings = family.targets[part] + family.convolutions.get(part, ())
        if key.removesuffix(".weight").endswith(endings):
            wanted[name] = base.places[key].shape
    chosen = dict(list(wanted.items())[::every])
    return write_random_lora(path, rank=RANK, alpha=2.0, shapes=chosen)


def _changes_of(path: Path) -> dict[str, torch.Tensor]:
    file = open_plain(path)
    return {layer: file.delta(layer).double() for layer in file.layers}


@pytest.mark.parametrize("name", ["sd15", "sd2", "sdxl", "z_image", "flux1"])
def test_a_merged_folder_is_the_base_with_the_changes_and_gives_them_back(
    name: str, base_of: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = base_of(name)
    base = open_weights(str(folder))
    lora = lora_for(base, tmp_path / "a.safetensors", every=3)
    report = merge_into(base, [Term(open_plain(lora), 0.8)], tmp_path / "merged")
    assert report.layers == len(dense(lora))

    found, expected = (load_base(str(one)) for one in (tmp_path / "merged", folder))
    merge_plain(expected, [Merged(lora, 0.8)])
    for part, module in expected.parts.items():
        own = found.parts[part].state_dict()
        for key, tensor in module.state_dict().items():
            assert torch.allclose(own[key], tensor, atol=1e-6), (part, key)

    out = tmp_path / "out.safetensors"
    extracted = extract(
        open_weights(str(tmp_path / "merged")), base, out, RankLimit(rank=RANK), dtype="float32"
    )
    wanted = dense(lora)
    again = dense(out) if name.startswith("sd") else _changes_of(out)  # those have other names, and are fused
    assert not extracted.not_in_file and wanted.keys() <= again.keys()
    for layer, change in wanted.items():
        # float32 keeps a weight of 0.3 to 2e-8
        assert torch.allclose(again[layer].view(change.shape), 0.8 * change, atol=3e-7)
    for layer in again.keys() - wanted.keys():
        assert not again[layer].any(), "only what UIs look for is there besides, as zero"


@pytest.fixture(
    scope="module", params=[*(pytest.param(one, marks=pytest.mark.slow) for one in ("sd15", "sd2")), "sdxl"]
)
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base in the original layout, float16, as UI users have it."""
    path = tmp_path_factory.mktemp("checkpoint") / "base.safetensors"
    _, tensors = random_original(request.param)
    halves = {k: v.half() if v.is_floating_point() else v for k, v in tensors.items()}
    save_file(halves, path, metadata={"modelspec.title": "x", "modelspec.hash_sha256": "0x0"})
    return path


def test_a_single_file_gets_the_changes_in_its_own_layout_and_dtype(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = open_weights(str(checkpoint))
    lora = lora_for(base, tmp_path / "a.safetensors", every=7)
    out = tmp_path / "merged.safetensors"
    before = checkpoint.read_bytes()
    merge_into(base, [Term(open_plain(lora), 1.0)], out)
    assert checkpoint.read_bytes() == before
    code, _, err = run(["merge-into", str(checkpoint), str(lora), "-o", str(tmp_path / "folder")], capsys)
    assert code == 2 and "but a .safetensors file is written" in " ".join(err.split())
    old, new = load_file(checkpoint), load_file(out)
    assert {k: (v.dtype, v.shape) for k, v in old.items()} == {k: (v.dtype, v.shape) for k, v in new.items()}
    with safe_open(out, framework="pt") as file:
        assert file.metadata() == {"modelspec.title": "x", "modelspec.merged_from": "base, a at 1"}

    found, expected = (load_base(str(one)) for one in (out, checkpoint))
    merge_plain(expected, [Merged(lora, 1.0)])
    for part, module in expected.parts.items():
        own = found.parts[part].state_dict()
        for key, tensor in module.state_dict().items():
            off = (own[key] - tensor).abs()
            assert (off <= 1.001 * 2.0**-11 * tensor.abs() + 2.0**-24).all(), (part, key)  # rounded once

    again = tmp_path / "again.safetensors"
    extract(open_weights(str(out)), base, again, RankLimit(rank=RANK), dtype="float32")
    for layer, change in dense(lora).items():
        weight = base.read(layer_keys(base)[layer]).float().abs().max().item() + change.abs().max().item()
        rounding = weight * 2.0**-11  # of each entry; its norm bounds what a cut can keep of it
        error = (dense(again)[layer].view(change.shape) - change).norm().item()
        assert error <= 2 * rounding * change.numel() ** 0.5


def test_what_changed_and_is_not_in_the_file_is_named(tiny_base: Path, tmp_path: Path) -> None:
    """And unchanged layers are not in it."""
    family = load_base(str(tiny_base))
    with torch.no_grad():
        family.parts["unet"].get_parameter("mid_block.attentions.0.norm.weight").add_(0.1)
        family.parts["unet"].get_parameter("conv_in.bias").add_(0.1)
        family.parts["unet"].get_parameter("conv_in.weight").add_(0.1)
        family.parts["vae"].get_parameter("decoder.conv_in.weight").add_(0.1)
        layer = family.layer("unet", "mid_block.attentions.0.transformer_blocks.0.attn2.to_k")
        layer.weight.add_(torch.ones(24, 24))
    family.pipeline().save_pretrained(tmp_path / "tuned")
    tuned, base = open_weights(str(tmp_path / "tuned")), open_weights(str(tiny_base))
    report = extract(tuned, base, tmp_path / "out.safetensors", RankLimit(energy=1.0))
    assert report.not_in_file == {"unet: norms": 1, "unet: biases": 1, "unet: other layers": 1, "vae": 1}
    assert list(report.rank_of.values()) == [1] and report.left_out < 1e-4
    elsewhere = 24 * 0.01 + 16 * 0.01 + 16 * 4 * 9 * 0.01 + 16 * 4 * 9 * 0.01
    assert report.not_in_file_norm == pytest.approx((elsewhere / 24**2) ** 0.5, rel=0.1)
    with pytest.raises(StudioError, match="there is nothing to extract"):
        extract(base, base, tmp_path / "x.safetensors", RankLimit(rank=1))
    assert not (tmp_path / "x.safetensors").exists()


def test_a_base_in_another_dtype_is_compared_in_the_coarser_one(tiny_base: Path, tmp_path: Path) -> None:
    """Its rounding is no learning."""
    shutil.copytree(tiny_base, tmp_path / "half")
    for path in (tmp_path / "half").rglob("*.safetensors"):
        save_file({key: tensor.half() for key, tensor in load_file(path).items()}, path, {"format": "pt"})
    with pytest.raises(StudioError, match="there is nothing to extract"):
        extract(
            open_weights(str(tmp_path / "half")),
            open_weights(str(tiny_base)),
            tmp_path / "x.safetensors",
            RankLimit(rank=1),
        )


def test_bases_and_files_of_other_kinds_are_refused(base_of: Callable[[str], Path], tmp_path: Path) -> None:
    one, other = (open_weights(str(base_of(name))) for name in ("sd15", "sdxl"))
    with pytest.raises(StudioError, match=r"is of the kind sdxl_base_v1-0, .* of sd_v1"):
        extract(other, one, tmp_path / "x.safetensors", RankLimit(rank=1))
    lora = lora_for(other, tmp_path / "a.safetensors")
    with pytest.raises(StudioError, match=r"layers of a\.safetensors are not in this base"):
        merge_into(one, [Term(open_plain(lora), 1.0)], tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


@pytest.mark.parametrize("cut", [RankLimit(rank=5), RankLimit(energy=0.9)])
def test_the_leading_directions_are_those_of_the_whole_svd(cut: RankLimit) -> None:
    """On a spectrum that falls slowly, wide enough that the whole one is not taken."""
    draw = torch.Generator().manual_seed(0)
    left, _ = torch.linalg.qr(torch.randn(300, 300, generator=draw))
    right, _ = torch.linalg.qr(torch.randn(400, 300, generator=draw))
    sizes = torch.arange(1, 301).double() ** -0.7
    change = (left.double() * sizes @ right.double().T).float()
    factors, tail = leading(change, cut, "layer")
    exact = sizes.square()
    rank = cut.rank or int((exact.cumsum(0) < 0.9 * exact.sum()).sum()) + 1
    assert abs(len(factors.down) - rank) <= 0.02 * rank
    error = (change.double() - factors.up @ factors.down).square().sum().item()
    assert error == pytest.approx(tail, rel=1e-4)
    assert error == pytest.approx(exact[len(factors.down) :].sum().item(), rel=2e-3)


def test_a_folder_keeps_what_loading_needs_and_says_what_is_left_out(tiny_base: Path, tmp_path: Path) -> None:
    folder = tmp_path / "base"
    shutil.copytree(tiny_base, folder)
    (folder / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"another copy")
    base = open_weights(str(folder))
    lora = lora_for(base, tmp_path / "a.safetensors", every=20)
    report = merge_into(base, [Term(open_plain(lora), 1.0)], tmp_path / "merged")
    assert report.notes == ["1 file of the base's folder that loading does not need is left out"]
    names = {p.relative_to(folder) for p in folder.rglob("*") if p.is_file()}
    kept = {p.relative_to(tmp_path / "merged") for p in (tmp_path / "merged").rglob("*") if p.is_file()}
    assert names - kept == {Path("unet/diffusion_pytorch_model.bin")}
    index = json.loads((tmp_path / "merged" / "model_index.json").read_text("utf-8"))
    assert index == json.loads((folder / "model_index.json").read_text("utf-8"))
