"""One of several files that are one model together is told from a whole one, and is no whole LoRA."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from lora_files import dense, relative, write_random_lora
from reference_files import metadata, reference_tensors
from safetensors.torch import save_file
from typer.testing import CliRunner

from lora_studio.cli import app
from lora_studio.errors import StudioError
from lora_studio.lora_file.open import read_plain
from lora_studio.tensor_file.shards import shard_of
from lora_studio.tools.inspect import inspect_file
from lora_studio.verify import verify

NUMBERED = ("x-00001-of-00002.safetensors", "x-00002-of-00002.safetensors")
LISTED = ("one.safetensors", "other.safetensors")
BLOCK = "lora_unet_down_blocks_1_attentions_0_"


def halves(folder: Path, names: tuple[str, str]) -> tuple[Path, Path]:
    """Of a LoRA of SD1's size, split between two layers; an index names those that do not say it."""
    tensors = reference_tensors("SD1", layers=BLOCK)
    layers = sorted({key.partition(".")[0] for key in tensors})
    parts, files = [], {}
    for name, own in zip(names, (layers[:5], layers[5:]), strict=True):
        part = {key: one for key, one in tensors.items() if key.partition(".")[0] in own}
        save_file(part, folder / name, metadata=metadata("SD1"))
        files |= dict.fromkeys(part, name)
        parts.append(folder / name)
    if names is LISTED:
        (folder / "x.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": files}))
    return parts[0], parts[1]


@pytest.mark.parametrize("names", [NUMBERED, LISTED], ids=["numbered", "listed"])
def test_half_a_lora_is_not_whole(names: tuple[str, str], tmp_path: Path) -> None:
    for path, other in (halves(tmp_path, names), halves(tmp_path, names)[::-1]):
        report = verify(path)
        assert not report.ok and "one of two files" in report.faults[0] and other.name in report.faults[0]
        assert not any(one.loads == "completely" for one in report.uis)
        facts = inspect_file(path)
        assert "one of two files" in facts.notes[0]
        assert not any(one.loads == "completely" for one in facts.uis)


@pytest.mark.parametrize("names", [NUMBERED, LISTED], ids=["numbered", "listed"])
def test_tools_that_write_refuse_it_and_all_of_them_make_one_file(
    names: tuple[str, str], tmp_path: Path
) -> None:
    path, other = halves(tmp_path, names)
    whole = write_random_lora(tmp_path / "whole.safetensors", shapes={f"{BLOCK}proj_in": (640, 640, 1, 1)})
    out = tmp_path / "out" / "x.safetensors"
    out.parent.mkdir()
    calls = [
        ["convert", path, "--to", "kohya", "-o", out],
        ["resize", path, "--rank", 1, "-o", out],
        ["combine", path, whole, "-o", out],
        ["compare", path, whole],
        ["merge-into", "pocket", path, "-o", out.with_suffix("")],
        ["extract", path, "pocket", "--rank", 1, "-o", out],
        ["sample", path, "--base", "pocket", "--prompt", "a robot"],
    ]
    for call in calls:
        result = CliRunner().invoke(app, [str(word) for word in call])
        said = str(result.exception)
        assert isinstance(result.exception, StudioError), call
        assert "one of two files" in said or "not a base" in said, said
        assert list(out.parent.iterdir()) == [], call
    with pytest.raises(StudioError, match="one of two files"):
        read_plain(path, "adapter.init_from")
    done = CliRunner().invoke(app, ["combine", str(path), str(other), "-o", str(out)])
    assert done.exit_code == 0, done.output
    wanted = dense(path) | dense(other)
    assert dense(out).keys() == wanted.keys()
    assert all(relative(dense(out)[name], one) < 1e-3 for name, one in wanted.items())
    assert verify(out).ok


@pytest.mark.parametrize(
    "name", ["x-00001-of-00001.safetensors", "x-000002.safetensors", "x-3-of-2.safetensors", "x.safetensors"]
)
def test_a_whole_file_is_no_shard(name: str, tmp_path: Path) -> None:
    assert shard_of(tmp_path / name, ["a"]) is None


@pytest.mark.parametrize(
    "text",
    [
        '{"weight_map": {"a": "x.safetensors"}}',
        '{"weight_map": {"a": "gone.safetensors"}}',  # all that it lists has been put into the file
        '{"weight_map": {"b": "other.safetensors"}}',
        *('{"weight_map": [1]}', '{"weight_map": {"a": 3}}', "[" * 100_000, "\x80", "", "[]", "null"),
    ],
)
def test_an_index_of_what_is_in_the_file_or_that_is_none_tells_nothing(text: str, tmp_path: Path) -> None:
    own = "y" if "other" in text else "x"
    (tmp_path / f"{own}.safetensors.index.json").write_text(text, "latin-1")
    assert shard_of(tmp_path / "x.safetensors", ["a"]) is None


def test_of_very_many_files_a_few_are_named(tmp_path: Path) -> None:
    shard = shard_of(tmp_path / "x-1-of-900000.safetensors", ["a"])
    assert shard is not None and len(str(shard)) < 400 and "900,000 files" in str(shard)
