"""Files put together are what the dense changes say, whatever their ranks, alphas, dtypes and strengths."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from lora_files import SHAPES, dense, relative, write_random_lora
from safetensors import safe_open
from safetensors.torch import load_file, save, save_file

from lora_studio.adapters.layer import Factors
from lora_studio.errors import StudioError
from lora_studio.lora_file.factors import RankLimit
from lora_studio.lora_file.open import open_plain
from lora_studio.tools.combine import BlockWeight, CombineReport, Term, combine
from lora_studio.tools.methods import MergeOptions, dare, joint_basis, project, ties

LINEAR, NARROW, WIDE = SHAPES


@pytest.fixture
def pair(tmp_path: Path) -> list[Path]:
    """Other ranks, alphas and dtypes; a layer that only the second one has."""
    some = {name: shape for name, shape in SHAPES.items() if name != NARROW}
    first = write_random_lora(tmp_path / "a.safetensors", rank=4, alpha=2.0, shapes=some, seed=1)
    options = {"rank": 7, "alpha": None, "dtype": torch.float16, "seed": 2}
    return [first, write_random_lora(tmp_path / "b.safetensors", **options)]


def put_together(
    files: list[Path], strengths: tuple[float, ...], method: str = "concat", **options: object
) -> tuple[Path, CombineReport]:
    out = files[0].with_name("out.safetensors")
    terms = [Term(open_plain(path), one) for path, one in zip(files, strengths, strict=True)]
    return out, combine(terms, out, method=method, **{"dtype": "float32", **options})


def exact_sum(files: list[Path], strengths: tuple[float, ...]) -> dict[str, torch.Tensor]:
    total: dict[str, torch.Tensor] = {}
    for path, strength in zip(files, strengths, strict=True):
        for name, change in dense(path).items():
            total[name] = total.get(name, 0) + strength * change
    return total


@pytest.mark.parametrize("strengths", [(1.0, 1.0), (0.8, -0.6), (-2.0, 1e-3)])
def test_concat_is_the_exact_sum(pair: list[Path], strengths: tuple[float, float]) -> None:
    out, report = put_together(pair, strengths)
    found, wanted = dense(out), exact_sum(pair, strengths)
    assert found.keys() == wanted.keys() == SHAPES.keys()
    for name, change in wanted.items():
        assert found[name].shape == SHAPES[name]
        assert relative(found[name], change) < 1e-6
    assert (report.ranks, report.left_out) == ((7, 11), 0)
    assert len({tensor.item() for key, tensor in load_file(out).items() if key.endswith("alpha")}) == 1


def test_concat_of_three_files_and_of_a_file_with_its_opposite(pair: list[Path]) -> None:
    third = write_random_lora(pair[0].with_name("c.safetensors"), rank=2, dtype=torch.bfloat16, seed=3)
    out, _ = put_together([*pair, third], (1, 1, 1))
    for name, change in exact_sum([*pair, third], (1, 1, 1)).items():
        assert relative(dense(out)[name], change) < 1e-6
    with pytest.raises(StudioError, match="every layer of the result would be zero"):
        put_together([pair[1], pair[1]], (1, -1), method="svd", options=MergeOptions(RankLimit(energy=1.0)))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_the_casting_error_is_the_one_in_the_file(pair: list[Path], dtype: str) -> None:
    out, report = put_together(pair, (1, 1), dtype=dtype)
    found, wanted = dense(out), exact_sum(pair, (1, 1))
    error = sum((found[n] - w).square().sum().item() for n, w in wanted.items()) ** 0.5
    size = sum(w.square().sum().item() for w in wanted.values()) ** 0.5
    assert report.cast_error == pytest.approx(error / size, rel=1e-3)
    assert 1e-6 < report.cast_error < 5e-3


@pytest.mark.parametrize("scale", [1e-7, 1e4])
def test_very_small_and_large_factors_keep_their_digits_in_float16(scale: float, tmp_path: Path) -> None:
    """`up` at a scale that float16 has not got, as after few steps, and `down` at its opposite."""
    source = write_random_lora(tmp_path / "a.safetensors", rank=4)
    tensors = load_file(source)
    for key in tensors:
        if key.endswith("up.weight"):
            tensors[key] *= scale
        elif key.endswith("down.weight"):
            tensors[key] /= scale
    save_file(tensors, source)
    out, report = put_together([source, source], (1, 0.5), dtype="float16")
    assert report.cast_error < 1e-3
    assert relative(dense(out)[LINEAR], 1.5 * dense(source)[LINEAR]) < 1e-3


@pytest.mark.parametrize("rank", [1, 3, 6, 11])
def test_svd_is_off_by_the_tail_of_the_dense_spectrum(pair: list[Path], rank: int) -> None:
    out, report = put_together(pair, (0.8, -0.6), "svd", options=MergeOptions(RankLimit(rank=rank)))
    wanted, tail, size = exact_sum(pair, (0.8, -0.6)), 0.0, 0.0
    for name, change in wanted.items():
        sizes = torch.linalg.svdvals(change.flatten(1))
        expected = sizes[rank:].square().sum().item()
        tail, size = tail + expected, size + sizes.square().sum().item()
        error = (dense(out)[name] - change).norm().item()
        assert error == pytest.approx(expected**0.5, rel=1e-5, abs=1e-6 * change.norm().item())
    assert report.left_out == pytest.approx((tail / size) ** 0.5, rel=1e-5, abs=1e-7)


def test_svd_to_a_share_of_the_energy_has_the_fewest_ranks_that_have_it(pair: list[Path]) -> None:
    out, _ = put_together(pair, (1, 1), "svd", options=MergeOptions(RankLimit(energy=0.8)))
    tensors = load_file(out)
    for name, change in exact_sum(pair, (1, 1)).items():
        energy = torch.linalg.svdvals(change.flatten(1)).square()
        shares = energy.cumsum(0) / energy.sum()
        assert len(tensors[f"{name}.lora_down.weight"]) == int((shares < 0.8).sum()) + 1


def random_parts(*ranks: int) -> dict[int, Factors]:
    draw = torch.Generator().manual_seed(5)
    shapes = [((rank, 30), (20, rank)) for rank in ranks]
    return {
        number: Factors(*(torch.randn(shape, generator=draw).double() for shape in pair))
        for number, pair in enumerate(shapes)
    }


def product(factors: Factors) -> torch.Tensor:
    return factors.up @ factors.down


def test_the_joint_basis_is_that_of_a_dense_svd_of_the_changes_side_by_side() -> None:
    parts = random_parts(3, 2)
    basis, entries = joint_basis(parts)
    assert torch.allclose(basis.T @ basis, torch.eye(5).double(), atol=1e-10)
    left, _, _ = torch.linalg.svd(torch.cat([product(one) for one in parts.values()], dim=1))
    assert torch.allclose((basis.T @ left[:, :5]).abs().flip(0), torch.eye(5).double(), atol=1e-8)
    for number, one in parts.items():
        assert torch.allclose(basis @ entries[number], product(one), atol=1e-10)


def test_ties_is_the_papers_three_steps_written_out() -> None:
    parts = random_parts(3, 2)
    basis, entries = joint_basis(parts)
    trimmed = []
    for one in entries.values():
        order = one.abs().flatten().argsort(descending=True)[: round(0.3 * one.numel())]
        mask = torch.zeros(one.numel()).index_fill(0, order, 1.0).view(one.shape)
        trimmed.append(one * mask)
    expected = torch.zeros_like(trimmed[0])
    for i in range(expected.shape[0]):
        for j in range(expected.shape[1]):
            values = [one[i, j].item() for one in trimmed]
            elected = [v for v in values if v * sum(values) > 0]
            expected[i, j] = sum(elected) / len(elected) if elected else 0.0
    assert torch.allclose(product(ties(parts, MergeOptions(density=0.3), "x")), basis @ expected, atol=1e-10)


def test_ties_does_not_depend_on_the_factors_or_the_order() -> None:
    parts = random_parts(3, 2)
    turn = torch.randn(3, 3, generator=torch.Generator().manual_seed(1)).double()
    other = {0: parts[1], 1: Factors(turn @ parts[0].down, parts[0].up @ turn.inverse())}
    one, two = (product(ties(p, MergeOptions(), "x")) for p in (parts, other))
    assert torch.allclose(one, two, atol=1e-9)


def test_dare_is_keyed_and_its_mean_is_the_sum() -> None:
    parts = random_parts(3, 2)
    exact = sum(product(one) for one in parts.values())
    draws = [product(dare(parts, MergeOptions(density=0.5, seed=seed), "x")) for seed in range(400)]
    assert torch.equal(draws[3], product(dare(parts, MergeOptions(density=0.5, seed=3), "x")))
    assert not torch.allclose(draws[0], product(dare(parts, MergeOptions(density=0.5), "y")))
    # the noise's energy is that of the entries at a density of a half; sqrt(400) less of it in the mean
    assert relative(draws[0], exact) == pytest.approx(1, abs=0.4)
    assert relative(torch.stack(draws).mean(0), exact) < 0.1


def test_project_keeps_the_first_and_takes_its_spaces_out_of_the_others() -> None:
    parts = random_parts(3, 2)
    rest = product(project(parts, MergeOptions(), "x")) - product(parts[0])
    left, _, right = torch.linalg.svd(product(parts[0]))
    expected = left[:, 3:] @ left[:, 3:].T @ product(parts[1]) @ right[3:].T @ right[3:]
    assert torch.allclose(rest, expected, atol=1e-10) and relative(expected, product(parts[1])) > 0.1
    nothing = {0: Factors(parts[0].down, torch.zeros_like(parts[0].up)), 1: parts[1]}
    assert torch.allclose(product(project(nothing, MergeOptions(), "x")), product(parts[1]))


def test_block_weights_act_on_the_layers_that_their_patterns_fit(pair: list[Path]) -> None:
    blocks = [BlockWeight("*resnets*", 0.5), BlockWeight("*conv1", 0.25, file=2)]
    out, _ = put_together(pair, (1, 1), blocks=blocks)
    first, second = dense(pair[0]), dense(pair[1])
    assert relative(dense(out)[WIDE], 0.5 * first[WIDE] + 0.25 * second[WIDE]) < 1e-6
    assert relative(dense(out)[LINEAR], first[LINEAR] + second[LINEAR]) < 1e-6
    with pytest.raises(StudioError, match=r"'\*nowhere\*' fits no layer"):
        put_together(pair, (1, 1), blocks=[BlockWeight("*nowhere*", 0.5)])


def test_the_file_says_what_it_is_and_nothing_of_where_it_was_made(tmp_path: Path) -> None:
    facts = {"ss_base_model_version": "sd_v1", "ss_v2": "False", "ss_seed": "1"}
    for name, trigger in (("a", "zwx style"), ("b", "vkq robot")):
        said = facts | {"modelspec.trigger_phrase": trigger, "modelspec.title": f"my {name}"}
        write_random_lora(tmp_path / f"{name}.safetensors", metadata=said)
    out, _ = put_together([tmp_path / "a.safetensors", tmp_path / "b.safetensors"], (1, 0.5))
    with safe_open(out, framework="pt") as file:
        metadata = file.metadata()
    assert metadata["ss_base_model_version"] == "sd_v1" and "ss_seed" not in metadata
    assert (metadata["ss_network_dim"], metadata["ss_network_alpha"]) == ("8", "8")
    assert metadata["modelspec.trigger_phrase"] == "zwx style, vkq robot"
    assert metadata["modelspec.merged_from"] == "my a, my b"
    assert str(tmp_path).encode() not in out.read_bytes()


def test_the_hashes_are_those_of_everything_behind_the_header(tmp_path: Path) -> None:
    import hashlib

    wide = {LINEAR: (2000, 2000)}  # above 1 MiB, where the legacy hash looks
    source = write_random_lora(tmp_path / "a.safetensors", rank=64, shapes=wide)
    out, _ = put_together([source, source], (1, 1))
    content = out.read_bytes()
    block = content[8 + int.from_bytes(content[:8], "little") :]
    with safe_open(out, framework="pt") as file:
        metadata = file.metadata()
    assert metadata["sshs_model_hash"] == hashlib.sha256(block).hexdigest()
    alone = save(load_file(out), metadata={k: v for k, v in metadata.items() if k.startswith("ss_")})
    assert metadata["sshs_legacy_hash"] == hashlib.sha256(alone[0x100000:0x110000]).hexdigest()[:8]


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ({LINEAR: (24, 44)}, "different kinds of bases"),
        ({LINEAR.replace("mid_block", "middle"): (24, 64)}, "reads text 40 and 64 wide"),
    ],
)
def test_files_for_other_bases_are_refused_by_name(
    other: dict[str, tuple[int, ...]], words: str, tmp_path: Path
) -> None:
    first = write_random_lora(tmp_path / "a.safetensors", metadata={"ss_base_model_version": "sd_v1"})
    second = write_random_lora(
        tmp_path / "b.safetensors", shapes=other, metadata={"ss_base_model_version": "sdxl_base_v1-0"}
    )
    with pytest.raises(StudioError, match=words) as error:
        put_together([first, second], (1, 1))
    assert "a.safetensors (sd_v1) and b.safetensors (sdxl_base_v1-0)" in str(error.value)


@pytest.mark.parametrize(
    ("tensor", "words"),
    [
        (f"{LINEAR}.dora_scale", "lora-studio convert a.safetensors --to kohya"),
        (f"{LINEAR}.hada_w1_a", "hada_w1_a"),
        (f"{LINEAR}_2.lora_up.weight", "1 of 4 layers without a tensor"),
    ],
)
def test_what_cannot_be_plain_lora_is_refused_with_advice(tensor: str, words: str, tmp_path: Path) -> None:
    path = write_random_lora(tmp_path / "a.safetensors")
    save_file(load_file(path) | {tensor: torch.ones(2, 2)}, path)
    with pytest.raises(StudioError, match=words):
        open_plain(path)


def test_an_alpha_of_0_and_numbers_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    path = write_random_lora(tmp_path / "a.safetensors", alpha=0.0)
    with pytest.raises(StudioError, match="most UIs take that as switched off and kohya as the rank"):
        open_plain(path)
    write_random_lora(path)
    tensors = load_file(path)
    tensors[f"{WIDE}.lora_up.weight"][0, 0] = float("nan")
    save_file(tensors, path)
    with pytest.raises(StudioError, match=f"{WIDE} holds numbers that are not finite"):
        put_together([path, path], (1, 1))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.safetensors"]
