"""A change that float16 rounds away: said from 5 % of it on, refused where nothing is left."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from console import run
from lora_files import dense, relative, write_random_lora
from safetensors.torch import load_file, save_file

from lora_studio.errors import StudioError
from lora_studio.families.loading import load_base
from lora_studio.lora_file.base_weights import open_weights
from lora_studio.lora_file.factors import RankLimit, in_range
from lora_studio.lora_file.open import open_plain
from lora_studio.tools.combine import resize
from lora_studio.tools.convert import convert
from lora_studio.tools.merge_into import layer_keys

SMALL, TINY = 2e-6, 1e-8  # of numbers of about 0.1: a tenth of the change is lost, and all of it
WRITERS = {
    "resize": "resize A --rank 2",
    "convert": "convert A --to kohya",
    "convert to diffusers": "convert A --to diffusers",
    "combine": "combine A B:0.5",
    "combine by svd": "combine A B:0.5 --method svd --rank 3",
}


def scaled(path: Path, factor: float, *, seed: int = 0) -> Path:
    """A random file, all numbers of its factors multiplied."""
    tensors = load_file(write_random_lora(path, alpha=4.0, seed=seed))
    save_file({key: one if key.endswith("alpha") else one * factor for key, one in tensors.items()}, path)
    return path


def asked(line: str, *more: str) -> list[str]:
    files = {"A": "a.safetensors", "B": "b.safetensors", "B:0.5": "b.safetensors:0.5"}
    return [*(files.get(word, word) for word in line.split()), *more]


@pytest.mark.parametrize("line", WRITERS.values(), ids=WRITERS)
def test_every_tool_says_what_float16_takes(line: str, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    out = tmp_path / "x.safetensors"
    for factor, wrong in ((1.0, ""), (SMALL, "float16 rounds away"), (TINY, "nothing of them would be left")):
        for seed, name in enumerate("ab"):
            scaled(tmp_path / f"{name}.safetensors", factor, seed=seed)
        code, said, err = run(asked(line, "-o", "x.safetensors"), capsys)
        said = " ".join((said + err).split())
        assert code == (2 if factor == TINY else 0) and out.exists() == (factor != TINY), said
        assert (wrong in said and "give --dtype float32" in said) if wrong else "warning" not in said
        assert ("warning" in said) == (factor == SMALL)
        out.unlink(missing_ok=True)
    code, said, _ = run(asked(line, "-o", "x.safetensors", "--dtype", "float32", "--json"), capsys)
    assert code == 0 and json.loads(said)["warnings"] == []
    assert all(change.any() for change in load_file(out).values())


def test_the_share_is_that_of_the_file(tmp_path: Path, monkeypatch, capsys) -> None:
    """Measured on what was written."""
    monkeypatch.chdir(tmp_path)
    file = scaled(tmp_path / "a.safetensors", SMALL)
    for line in ("resize A --rank 4", "convert A --to kohya"):
        assert run(asked(line, "-o", "x.safetensors", "--force"), capsys)[0] == 0
        exact, made = dense(file), dense(tmp_path / "x.safetensors")
        squares = [((made[name] - exact[name]).norm() ** 2, exact[name].norm() ** 2) for name in exact]
        share = (sum(one for one, _ in squares) / sum(one for _, one in squares)) ** 0.5
        _, said, _ = run(asked(line, "-o", "x.safetensors", "--force", "--json"), capsys)
        (warning,) = json.loads(said)["warnings"]
        assert f"float16 rounds away {share:.0%} of the change's norm" in warning and share > 0.05


def unbalanced(path: Path, down: float, up: float) -> Path:
    """In the first rank so, in the second the other way round."""
    tensors = load_file(write_random_lora(path, alpha=4.0))
    for key, one in tensors.items():
        if "alpha" not in key:
            rows, here, there = (one.transpose(0, 1), up, down) if "up" in key else (one, down, up)
            rows[0] *= here
            rows[1] *= there
    save_file(tensors, path)
    return path


@pytest.mark.parametrize("target", ["kohya", "diffusers"])
def test_unbalanced_factors_are_balanced(target: str, tmp_path: Path, capsys) -> None:
    """float16 has neither of the two sizes."""
    for down, up in ((1e-7, 1e7), (1e7, 1e-7), (1e-6, 1.0), (1e5, 1e4)):
        file, out = unbalanced(tmp_path / "a.safetensors", down, up), tmp_path / "x.safetensors"
        ask = ["convert", str(file), "--to", target, "-o", str(out), "--force"]
        code, said, err = run(ask, capsys)
        assert (code, err) == (0, "") and "warning" not in said
        made, exact = open_plain(out), dense(file)
        assert max(relative(made.delta(name).double(), exact[name]) for name in exact) < 1e-3
    unbalanced(file, 1e7, 1e7)
    code, _, err = run(ask, capsys)
    assert code == 1 and "do not fit into float16" in err and "give --dtype float32" in err


def test_factors_of_a_kronecker_product_are_scaled_as_wholes() -> None:
    w1, w2 = torch.ones(2, 2) * 1e7, torch.ones(2, 2) * 1e-7
    a, b = in_range(w1, w2, alike=True)
    assert torch.equal(torch.kron(a, b), torch.kron(w1, w2)) and a.max() < 4 and b.max() < 4


@pytest.mark.parametrize("alpha", [1e-9, 1e9, -1e-9])
def test_an_alpha_that_float16_has_not_goes_into_the_factors(alpha: float, tmp_path: Path, capsys) -> None:
    file, factor = tmp_path / "a.safetensors", abs(alpha) ** -0.5
    tensors = load_file(write_random_lora(file, alpha=alpha))
    save_file({key: one if "alpha" in key else one * factor for key, one in tensors.items()}, file)
    assert run(["convert", str(file), "--to", "kohya", "-o", str(tmp_path / "k.safetensors")], capsys)[0] == 0
    made, exact = dense(tmp_path / "k.safetensors"), dense(file)
    assert max(relative(made[name], exact[name]) for name in exact) < 1e-3


def test_an_alpha_of_nothing_is_one_sentence(tmp_path: Path, capsys) -> None:
    file = write_random_lora(tmp_path / "a.safetensors", alpha=0.0)
    code, _, err = run(["convert", str(file), "--to", "kohya"], capsys)
    assert code == 2 and "has an alpha of 0" in err


@pytest.fixture
def half_base(tiny_base: Path, tmp_path: Path) -> Path:
    shutil.copytree(tiny_base, tmp_path / "half")
    for path in (tmp_path / "half").rglob("*.safetensors"):
        save_file({key: one.half() for key, one in load_file(path).items()}, path, {"format": "pt"})
    return tmp_path / "half"


def test_merging_says_what_the_bases_dtype_takes(half_base: Path, tmp_path: Path, capsys) -> None:
    base = open_weights(str(half_base))
    names = [name for name in layer_keys(base) if "attn2_to_k" in name]
    shapes = {name: base.places[layer_keys(base)[name]].shape for name in names}
    lora, out = write_random_lora(tmp_path / "a.safetensors", shapes=shapes), tmp_path / "merged"
    ask = ["merge-into", str(half_base), f"{lora}:0.004", "-o", str(out)]
    code, said, _ = run(ask, capsys)
    assert code == 0 and "warning the base's dtype rounds away" in " ".join(said.split())
    shutil.rmtree(out)
    lost = [*ask[:2], f"{lora}:0.000001", *ask[3:]]
    code, _, err = run(lost, capsys)
    assert code == 2 and "nothing of them would be left; give --dtype float32" in err and not out.exists()
    code, said, _ = run([*ask, "--dtype", "float32"], capsys)
    assert code == 0 and "warning" not in said
    before, after = load_base(str(half_base)), load_base(str(out))
    for name, change in dense(lora).items():
        part, path = layer_keys(base)[name].removesuffix(".weight").split(".", 1)
        made = after.layer(part, path).weight.double() - before.layer(part, path).weight.double()
        assert relative(made, 0.004 * change.view(made.shape)) < 1e-3
    stored = {one.dtype for path in out.rglob("*.safetensors") for one in load_file(path).values()}
    assert torch.float16 not in stored and torch.float32 in stored


def test_extracting_says_it_too(tiny_base: Path, tmp_path: Path, capsys) -> None:
    """The difference of a layer that was zero before; and the bases go by the names that were given."""
    key = "mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight"
    for name, size in (("zero", 0.0), ("small", 1e-13), ("tiny", 1e-20)):
        shutil.copytree(tiny_base, tmp_path / name)
        (path,) = (tmp_path / name / "unet").glob("*.safetensors")
        tensors = load_file(path)
        tensors[key] = torch.randn(tensors[key].shape) * size
        save_file(tensors, path, {"format": "pt"})
    out = tmp_path / "x.safetensors"

    def extract(tuned: str, *more: str) -> tuple[int, str, str]:
        bases = [str(tmp_path / tuned), str(tmp_path / "zero")]
        return run(["extract", *bases, "--rank", "24", "-o", str(out), "--force", *more], capsys)

    code, said, _ = extract("small")
    assert code == 0 and "warning float16 rounds away" in " ".join(said.split())
    code, said, _ = extract("small", "--dtype", "float32")
    assert code == 0 and "warning" not in said
    out.unlink()
    code, _, err = extract("tiny")
    assert code == 2 and "nothing of them would be left" in err and not out.exists()
    code, _, err = run(["extract", "pocket", "pocket", "--rank", "2", "-o", str(out)], capsys)
    assert code == 2 and "pocket and pocket have the same weights" in err


def test_a_file_of_zeros_is_not_written_again(tmp_path: Path) -> None:
    """Which verify would call invalid; combine has always refused it."""
    source, out = write_random_lora(tmp_path / "a.safetensors"), tmp_path / "b.safetensors"
    save_file(
        {key: torch.zeros_like(one) if "up" in key else one for key, one in load_file(source).items()}, source
    )
    for write in (
        lambda: convert(source, "kohya", out=out),
        lambda: resize(open_plain(source), out, RankLimit(rank=2)),
    ):
        with pytest.raises(StudioError, match="would be zero"):
            write()
        assert not out.exists()


def test_factors_that_do_not_fit_together_are_one_sentence(tmp_path: Path) -> None:
    source = write_random_lora(tmp_path / "a.safetensors", alpha=None)
    tensors = load_file(source)
    key = next(one for one in tensors if one.endswith("lora_up.weight"))
    save_file(tensors | {key: tensors[key][:, :1].contiguous()}, source)
    with pytest.raises(StudioError, match="do not fit together"):
        convert(source, "kohya", out=tmp_path / "b.safetensors")
