"""Pickles that are no base, or bear another name: read by torch's restricted reader, or one sentence."""

from __future__ import annotations

import pickle
import zipfile
from pathlib import Path

import pytest
import torch

from lora_studio.errors import BaseModelError
from lora_studio.families.loading.single_file import SingleFileOptions, open_single_file
from lora_studio.families.original.checkpoint import open_checkpoint

MADE_UP = {
    "takes from an empty stack": b"\x80\x02R.",
    "an unknown memory": b"\x80\x02h\x07.",
    "no end": b"\x80\x02",
}


def refusal(path: Path) -> str:
    with pytest.raises(BaseModelError) as caught:
        open_single_file(path, SingleFileOptions(allow_pickle=True)).load()
    assert "\n" not in str(caught.value) and path.name in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("content", MADE_UP.values(), ids=MADE_UP)
def test_made_up_instructions_are_one_sentence(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "base.ckpt"
    path.write_bytes(content)
    assert "is cut short or damaged" in refusal(path)


def test_a_zip_with_a_foreign_pickle_is_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "base.safetensors"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("archive/data.pkl", pickle.dumps({"a": 1}, 2))
        file.writestr("archive/version", "3")
    assert "without a single tensor" in refusal(path)


def test_a_table_that_holds_itself_is_one_sentence(tmp_path: Path) -> None:
    endless: dict[str, object] = {}
    endless["state_dict"] = endless
    torch.save(endless, tmp_path / "base.ckpt")
    assert "without a single tensor" in refusal(tmp_path / "base.ckpt")


def test_a_pickle_by_the_name_of_safetensors_is_read_where_that_is_allowed(tmp_path: Path) -> None:
    path, tensors = tmp_path / "base.safetensors", {"a": torch.ones(2, 3), "b": torch.zeros(4).half()}
    torch.save({"state_dict": tensors}, path)
    found = open_checkpoint(path, allow_pickle=True)
    assert found.shapes == {"a": (2, 3), "b": (4,)}
    with found.values() as value:
        assert all(torch.equal(value(name), one) for name, one in tensors.items())
    with pytest.raises(BaseModelError, match="is a pickle file, which can hold code"):
        open_checkpoint(path)
