"""What a base's weights are known by: computed as ever, and remembered while its files are what they were."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from lora_studio.families.base import ModelFamily
from lora_studio.families.fingerprints import MEMORY
from lora_studio.families.loading import load_base

BaseOf = Callable[[str], Path]
MARK = "ab" * 32  # in place of a remembered fingerprint: whoever gives it back has looked it up
PART, WEIGHTS = "text_encoder", "text_encoder/model.safetensors"


def by_formula(part: nn.Module) -> str:
    """As every version has computed it, so that caches and the records of finished files stay good."""
    whole = hashlib.sha256(type(part).__name__.encode())
    shift = getattr(part.config, "shift_factor", None)  # no VAE of the first version's bases has one
    whole.update(f"{getattr(part.config, 'scaling_factor', '')}{f' - {shift}' if shift else ''}".encode())
    for name, tensor in sorted(part.state_dict().items()):
        whole.update(name.encode())
        whole.update(tensor.float().numpy().tobytes())
    return whole.hexdigest()


@pytest.fixture
def memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LORA_STUDIO_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / MEMORY


@pytest.fixture
def folder(base_of: BaseOf, tmp_path: Path) -> Path:
    """A base that may be changed."""
    return Path(shutil.copytree(base_of("sd15"), tmp_path / "base"))


def mark(memory: Path) -> None:
    """Put the mark in the place of every remembered fingerprint."""
    stored = json.loads(memory.read_text("utf-8"))
    stored["parts"] = dict.fromkeys(stored["parts"], MARK)
    memory.write_text(json.dumps(stored), "utf-8")


def remembered(folder: Path, memory: Path) -> ModelFamily:
    """The base whose first part is remembered, with the mark for its fingerprint."""
    family = load_base(str(folder))
    assert family.fingerprint(PART) == by_formula(family.parts[PART])
    mark(memory)
    assert family.fingerprint(PART) == MARK
    return family


def other_weights(path: Path) -> bytes:
    """A file of the same size with one other number."""
    tensors = load_file(path)
    next(iter(tensors.values())).view(-1)[3] += 1
    changed = path.with_name("other")
    save_file(tensors, changed, metadata={"format": "pt"})
    content = changed.read_bytes()
    changed.unlink()
    assert len(content) == path.stat().st_size and content != path.read_bytes()
    return content


@pytest.mark.parametrize("name", ["sd15", "sd2", "sd2 v", "sdxl"])  # larger ones go by their files
def test_it_is_the_formulas_for_every_part_before_and_after_it_is_remembered(
    name: str, base_of: BaseOf, memory: Path
) -> None:
    for _ in range(2):
        family = load_base(str(base_of(name)))
        for part, module in family.parts.items():
            assert family.fingerprint(part) == by_formula(module)
    assert len(json.loads(memory.read_text("utf-8"))["parts"]) == len(family.parts)


def test_a_part_whose_files_are_as_before_is_looked_up(folder: Path, memory: Path) -> None:
    remembered(folder, memory)
    before = memory.read_bytes()
    assert load_base(str(folder)).fingerprint(PART) == MARK
    assert memory.read_bytes() == before


def test_a_copy_of_the_files_is_known_by_its_bytes(folder: Path, memory: Path, tmp_path: Path) -> None:
    remembered(folder, memory)
    copy = shutil.copytree(folder, tmp_path / "copy", copy_function=shutil.copyfile)
    assert load_base(str(copy)).fingerprint(PART) == MARK


def test_a_part_with_another_scale_is_another(folder: Path, memory: Path) -> None:
    family = load_base(str(folder))
    family.fingerprint("vae")
    mark(memory)
    config = folder / "vae/config.json"
    config.write_text(json.dumps(json.loads(config.read_text("utf-8")) | {"scaling_factor": 0.5}), "utf-8")
    family = load_base(str(folder))
    assert family.fingerprint("vae") == by_formula(family.parts["vae"])


@pytest.mark.parametrize("how", ["in place", "replaced"])
def test_an_edit_that_keeps_size_and_time_is_noticed(how: str, folder: Path, memory: Path) -> None:
    """The inode is another, or the time at which the file's status changed, which nobody can set."""
    remembered(folder, memory)
    path = folder / WEIGHTS
    before, content = path.stat(), other_weights(path)
    if how == "replaced":
        path.rename(folder / "kept")
    path.write_bytes(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    family = load_base(str(folder))
    assert family.fingerprint(PART) == by_formula(family.parts[PART])
    assert load_base(str(folder)).fingerprint(PART) == by_formula(family.parts[PART])


def test_a_file_that_changes_after_it_was_loaded_says_nothing_of_what_was_loaded(
    folder: Path, memory: Path
) -> None:
    family = load_base(str(folder))
    module = family.parts[PART]
    module.load_state_dict({key: one.clone() for key, one in module.state_dict().items()}, assign=True)
    loaded, path = by_formula(module), folder / WEIGHTS
    content = other_weights(path)
    path.unlink()
    path.write_bytes(content)
    assert family.fingerprint(PART) == loaded
    fresh = load_base(str(folder))
    assert fresh.fingerprint(PART) == by_formula(fresh.parts[PART]) != loaded


def test_weights_that_were_changed_in_memory_are_not_taken_for_the_files(folder: Path, memory: Path) -> None:
    family = remembered(folder, memory)
    before = memory.read_bytes()
    with torch.no_grad():
        for parameter in family.parts[PART].parameters():
            parameter.add_(1)
    assert family.fingerprint(PART) == by_formula(family.parts[PART])
    assert memory.read_bytes() == before


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff\x00",
        b"[]",
        b"null",
        b'{"files": {}}',
        b'{"files": {"a": [1]}, "parts": {}}',
        b'{"files": {"a": [["x"], "00"]}, "parts": {}}',
        b'{"files": {}, "parts": {"0": "1"}}',
        b'{"files": [], "parts": []}',
        b"[" * 100_000,
    ],
)
def test_a_damaged_memory_counts_as_empty_and_is_mended(content: bytes, folder: Path, memory: Path) -> None:
    memory.parent.mkdir()
    memory.write_bytes(content)
    family = load_base(str(folder))
    assert family.fingerprint(PART) == by_formula(family.parts[PART])
    assert len(json.loads(memory.read_text("utf-8"))["parts"]) == 1


def test_a_cache_folder_that_cannot_be_written_to_costs_time_alone(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LORA_STUDIO_CACHE", str(tmp_path / "file"))
    family = load_base(str(folder))
    assert family.fingerprint(PART) == by_formula(family.parts[PART])


@pytest.mark.parametrize("from_file", [False, True])
def test_another_vae_is_known_by_its_own_files(
    from_file: bool, folder: Path, memory: Path, tmp_path: Path
) -> None:
    other = Path(shutil.copytree(folder / "vae", tmp_path / "vae"))
    path = other / "diffusion_pytorch_model.safetensors"
    path.write_bytes(other_weights(path))
    for _ in range(2):
        family = load_base(str(folder), vae=str(path if from_file else other))
        assert family.fingerprint("vae") == by_formula(family.parts["vae"])
        assert load_base(str(folder)).fingerprint("vae") != family.fingerprint("vae")
