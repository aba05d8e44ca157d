"""A resized file is the best one of its rank, and whole at full rank."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from lora_files import dense, relative, write_random_lora
from safetensors.torch import load_file

from lora_studio.lora_file.factors import RankLimit
from lora_studio.lora_file.open import open_plain
from lora_studio.tools.combine import resize


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_random_lora(tmp_path / "a.safetensors", rank=9, alpha=3.0)


@pytest.mark.parametrize("rank", [9, 64])
def test_at_full_rank_it_is_the_same_change(source: Path, rank: int) -> None:
    out = source.with_name("out.safetensors")
    report = resize(open_plain(source), out, RankLimit(rank=rank), dtype="float32")
    assert report.left_out < 1e-9 and report.ranks == (9, 9)
    for name, change in dense(source).items():
        assert relative(dense(out)[name], change) < 1e-6


@pytest.mark.parametrize("rank", [1, 4])
def test_it_is_the_best_of_its_rank(source: Path, rank: int) -> None:
    out = source.with_name("out.safetensors")
    resize(open_plain(source), out, RankLimit(rank=rank), dtype="float32")
    for name, change in dense(source).items():
        left, sizes, right = torch.linalg.svd(change.flatten(1), full_matrices=False)
        best = left[:, :rank] * sizes[:rank] @ right[:rank]
        assert relative(dense(out)[name].flatten(1), best) < 1e-6


def test_to_a_share_of_the_energy_each_layer_has_its_own_rank(tmp_path: Path) -> None:
    source = write_random_lora(
        tmp_path / "a.safetensors", rank=30, shapes={"lora_x": (50, 12), "lora_y": (50, 90)}
    )
    out = tmp_path / "out.safetensors"
    report = resize(open_plain(source), out, RankLimit(energy=0.9), dtype="float32")
    tensors = load_file(out)
    for name, change in dense(source).items():
        energy = torch.linalg.svdvals(change).square()
        needed = int((energy.cumsum(0) < 0.9 * energy.sum()).sum()) + 1
        assert len(tensors[f"{name}.lora_down.weight"]) == needed == report.rank_of[name]
    assert report.rank_of["lora_x"] < report.rank_of["lora_y"]
    lost = [(dense(out)[n] - c).square().sum() / c.square().sum() for n, c in dense(source).items()]
    assert report.worst == pytest.approx(max(lost).sqrt().item(), rel=1e-4)
