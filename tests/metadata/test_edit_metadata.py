"""Metadata shown, changed and taken out; the tensors stay as they were, byte for byte."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from console import run
from safetensors import safe_open

from lora_studio.lora_file.write import write_lora
from lora_studio.metadata.edit import edit
from lora_studio.metadata.write import MAX_BYTES
from lora_studio.tensor_file.header import read_header, tensor_hash

BEFORE = {
    "ss_v2": "False",
    "ss_base_model_version": "sd_v1",
    "ss_network_args": "{}",
    "modelspec.architecture": "stable-diffusion-v1/lora",
    "modelspec.title": "Wood",
    "ss_tag_frequency": '{"a": {"b": 1}}',
    "lora_studio.provenance.root": "ab",
    "lora_adapter_metadata": "{}",
    "format": "pt",
}


def tensor_block(content: bytes) -> bytes:
    """A safetensors file without its header."""
    return content[8 + int.from_bytes(content[:8], "little") :]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "a.safetensors"
    tensors = {"a.lora_up.weight": torch.randn(5, 3), "b.alpha": torch.tensor(2.0)}
    write_lora(
        path,
        tensors,
        dtype="float16",
        describe=lambda block: BEFORE | {"sshs_model_hash": tensor_hash([block])},
    )
    return path


def metadata_of(path: Path) -> dict[str, str]:
    with safe_open(path, "pt") as opened:
        found: dict[str, str] = opened.metadata()
        assert {"a.lora_up.weight", "b.alpha"} == set(opened.keys())
        assert opened.get_tensor("b.alpha") == 2
    return found


def test_setting_changes_the_header_alone(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before, out = file.read_bytes(), tmp_path / "b.safetensors"
    arguments = [
        "--set",
        'modelspec.title=Wood = "cut" é',
        "--set",
        "modelspec.date=2026-01-01",
        "--set",
        "ss_v2=",
    ]
    code, printed, _ = run(["metadata", str(file), *arguments, "-o", str(out)], capsys)
    assert code == 0 and file.read_bytes() == before
    keys = [line.split(" = ")[0].strip() for line in printed.splitlines() if " = " in line]
    assert keys == ["modelspec.date", "modelspec.title"] and "ss_v2" in printed  # what was changed alone
    assert tensor_block(out.read_bytes()) == tensor_block(before)
    was, found = metadata_of(file), metadata_of(out)
    assert found == {k: v for k, v in was.items() if k != "ss_v2"} | {
        "modelspec.title": 'Wood = "cut" é',
        "modelspec.date": "2026-01-01",
    }
    assert found["sshs_model_hash"] == tensor_hash(read_header(out).block())


def test_stripping_in_place_keeps_what_uis_need(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    block = tensor_block(file.read_bytes())
    assert run(["metadata", str(file), "--strip", "--in-place"], capsys)[0] == 0
    found = metadata_of(file)
    gone = {"modelspec.title", "ss_tag_frequency", "lora_studio.provenance.root"}
    assert gone.isdisjoint(found) and BEFORE.keys() - gone <= found.keys() and "sshs_model_hash" in found
    assert tensor_block(file.read_bytes()) == block
    assert [one.name for one in file.parent.iterdir()] == [file.name]


def test_without_a_change_it_is_shown(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    edit(file, file, {"modelspec.author": "a\x1b[2Jb\nc"}, strip=False)
    before = file.read_bytes()
    code, printed, _ = run(["metadata", str(file)], capsys)
    assert code == 0 and "modelspec.title = Wood" in printed and "\x1b" not in printed and "\\x1b" in printed
    _, as_json, _ = run(["metadata", str(file), "--json"], capsys)
    told = json.loads(as_json)
    assert (
        told["metadata"] == metadata_of(file) and told["tensor_hash"] == told["metadata"]["sshs_model_hash"]
    )
    assert file.read_bytes() == before
    file.write_bytes(before[:-1] + bytes([before[-1] ^ 1]))
    assert "the tensors were changed after that" in run(["metadata", str(file)], capsys)[1].replace("\n", " ")


MISTAKES = {
    "nowhere": (["--set", "modelspec.title=a"], "name it with -o"),
    "nothing": (["--in-place"], "there is nothing to change"),
    "both": (["--strip", "--in-place", "-o", "c.safetensors"], "keep one of them"),
    "itself": (["--strip", "-o", "a.safetensors", "--force"], "say --in-place"),
    "there": (["--strip", "-o", "there.safetensors"], "is there already"),
    "typo": (["--set", "modelspec.trigger_phase=a", "--in-place"], "did you mean 'trigger_phrase'"),
    "hash": (["--set", "sshs_model_hash=a", "--in-place"], "cannot be set"),
    "origin": (["--set", "lora_studio.provenance.root=a", "--in-place"], "cannot be set"),
    "form": (["--set", "ss_tag_frequency=a fox", "--in-place"], "must be a JSON object"),
    "name": (["--set", "ss_output_name=a:b", "--in-place"], "no : , or >"),
    "twice": (["--set", "ss_a=1", "--set", "ss_a=2", "--in-place"], "names ss_a twice"),
    "no value": (["--set", "ss_a", "--in-place"], "is not key=value"),
    "gone": (["--set", "ss_a=", "--in-place"], "has no such key"),
    "large": (["--set", f"modelspec.description={'x' * MAX_BYTES}", "--in-place"], f"at most {MAX_BYTES}"),
    "folder": (["--strip", "-o", "."], "is a folder"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_sentence_and_changes_nothing(
    mistake: str, file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(file.parent)
    (file.parent / "there.safetensors").write_bytes(b"mine")
    before = file.read_bytes()
    arguments, words = MISTAKES[mistake]
    code, _, err = run(["metadata", file.name, *arguments], capsys)
    assert code == 2 and words in err.replace("\n", " ") and err.startswith("error: ")
    assert file.read_bytes() == before and (file.parent / "there.safetensors").read_bytes() == b"mine"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is not a safetensors file but empty"),
        (b"\xff" * 8, "is cut short"),
        (b"\x02" + b"\0" * 7 + b"[]", "is not a valid safetensors file"),
        (b"\x08" + b"\0" * 7 + b'{"a": 1}'[:5], "is cut short"),
    ],
)
def test_what_is_no_safetensors_file_is_said(
    content: bytes, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.safetensors").write_bytes(content)
    code, _, err = run(["metadata", str(tmp_path / "a.safetensors")], capsys)
    assert code == 2 and words in err.replace("\n", " ")


def test_metadata_of_a_large_table_can_be_made_smaller(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    tables = {name: json.dumps({"a": {"b" * MAX_BYTES: 1}}) for name in ("ss_tag_frequency", "other")}
    write_lora(path, {"a": torch.ones(1)}, dtype="float16", describe=lambda _: dict(tables))
    assert "other" in edit(path, path, {"ss_tag_frequency": ""}, strip=False)
