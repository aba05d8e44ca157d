"""A header read by hand: the same as the library's on whole files, one sentence on all others."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from lora_studio.errors import StudioError
from lora_studio.tensor_file import header as header_module
from lora_studio.tensor_file.header import DTYPES, read_header

LIMIT = 10_000_000


def file_of(header: object, data: bytes = b"", *, length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(shape: Any = (2,), begin: Any = 0, end: Any = 4, dtype: Any = "F16") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


HOSTILE: dict[str, tuple[bytes, str]] = {
    "seven bytes": (b"1234\xff67", "it has 7 bytes"),
    "longer than the file": (file_of({}, length=500), "it has 10 bytes and should have more than 508"),
    "length of 2^64 - 1": (file_of({}, length=2**64 - 1), "should have more than 18,446,744,073,709,551,623"),
    "too long": (file_of(b" " * (LIMIT + 1)), "10,000,000 are the most"),
    "no JSON": (file_of(b"{'a'}"), "not JSON"),
    "no UTF-8": (file_of(b'{"\xff": 1}'), "not JSON"),
    "UTF-16": (file_of('{"a": 1}'.encode("utf-16")), "does not begin as a table"),
    "a mark in front": (file_of(b"\xef\xbb\xbf{}"), "does not begin as a table"),
    "space in front": (file_of(b" {}"), "does not begin as a table"),
    "deep": (file_of(b'{"a":' * 100_000), "not JSON"),
    "no number": (file_of(b'{"a": NaN}'), "not JSON"),
    "no end": (file_of(b'{"a": -Infinity}'), "not JSON"),
    "minus nothing": (
        file_of(b'{"a":{"dtype":"F16","shape":[2],"data_offsets":[-0,4]}}', b"1234"),
        "not JSON",
    ),
    "a name twice": (file_of(b'{"a":{},"b\\u001b":1,"b\\u001b":2}'), r"its header has 'b\x1b' twice"),
    "metadata twice": (file_of(b'{"__metadata__":{"a":"1","a":"2"}}'), "its header has 'a' twice"),
    "another field": (file_of({"a": entry() | {"x": 1}}, b"1234"), "has not just dtype, shape and place"),
    "many small values": (file_of(b'{"a":[' + b"[]," * 1_000_001 + b"0]}"), "more than 1,000,000 values"),
    "a list": (file_of([]), "does not begin as a table"),
    "metadata of numbers": (file_of({"__metadata__": {"a": 1}}), "metadata is not a table of texts"),
    "metadata of half a letter": (file_of({"__metadata__": {"a": "\ud800"}}), "half a letter"),
    "too many tensors": (
        file_of({f"t{number}": entry((0,), 0, 0) for number in range(20_001)}),
        "20,001 tensors",
    ),
    "a number": (file_of({"a": 1}), "not just dtype"),
    "no shape": (file_of({"a": {"dtype": "F16", "data_offsets": [0, 4]}}), "not just dtype"),
    "three places": (
        file_of({"a": entry() | {"data_offsets": [0, 1, 2]}}),
        "not just dtype",
    ),
    "a long name": (file_of({"a" * 501: entry()}, b"1234"), "a tensor is called 'aaaa"),
    "a name that steers the terminal": (file_of({"a\x1b[2J": entry()}, b"1234"), r"called 'a\x1b[2J'"),
    "unknown dtype": (file_of({"a": entry(dtype="F17")}, b"1234"), "unknown dtype 'F17'"),
    "dtype of another type": (file_of({"a": entry(dtype=["F16"])}, b"1234"), "unknown dtype"),
    "negative shape": (file_of({"a": entry((-2,))}, b"1234"), "not JSON"),
    "true for 1": (file_of({"a": entry((2, True))}, b"1234"), "no number"),
    "shape of text": (file_of({"a": entry("2")}, b"1234"), "no number"),
    "a float for a place": (file_of({"a": entry(end=4.0)}, b"1234"), "no number"),
    "absurdly many dimensions": (file_of({"a": entry((1,) * 9, 0, 2)}, b"12"), "absurd shape"),
    "absurd sides around a 0": (file_of({"a": entry((0, 2**40, 2**40), 0, 0)}), "absurd shape"),
    "shape for other bytes": (file_of({"a": entry((3,))}, b"1234"), "another size"),
    "overflowing shape": (file_of({"a": entry((2**32, 2**32))}, b"1234"), "absurd shape"),
    "backwards": (file_of({"a": entry((2,), 4, 0)}, b"1234"), "another size"),
    "overlap": (file_of({"a": entry(), "b": entry((2,), 2, 6)}, b"123456"), "overlaps"),
    "the same place twice": (file_of({"a": entry(), "b": entry()}, b"1234"), "overlaps"),
    "gap": (file_of({"a": entry(), "b": entry((2,), 6, 10)}, b"1" * 10), "behind a gap"),
    "outside": (file_of({"a": entry((2,), 0, 4)}, b"12"), "and should have"),
    "more behind it": (file_of({"a": entry()}, b"123456"), "and should have"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_file_is_one_sentence(case: str, tmp_path: Path) -> None:
    content, words = HOSTILE[case]
    path = tmp_path / "file.safetensors"
    path.write_bytes(content)
    with pytest.raises(StudioError) as caught:
        read_header(path)
    assert words in str(caught.value)
    assert str(caught.value).startswith(("file.safetensors is not a valid", "file.safetensors is cut"))
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


def test_missing_files_and_folders_are_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(StudioError, match="there is no file"):
        read_header(tmp_path / "none")
    with pytest.raises(StudioError, match="is a folder"):
        read_header(tmp_path)


def test_names_shapes_numbers_and_metadata_are_those_of_the_library(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every dtype, no dimension and a length of 0, and a tensor longer than one piece."""
    tensors = {f"of {name}": torch.ones(2, 3).to(getattr(torch, dtype)) for name, dtype in DTYPES.items()}
    tensors |= {"one number": torch.tensor(2.5), "nothing": torch.empty(0, 4)}
    tensors |= {"long": torch.arange(20.0)}
    monkeypatch.setattr(header_module, "CHUNK_BYTES", 64)
    path = tmp_path / "file.safetensors"
    save_file(tensors, path, metadata={"who": "mé"})
    header = read_header(path)
    assert header.metadata == {"who": "mé"} and header.entries.keys() == tensors.keys()
    with safe_open(path, framework="pt") as file:
        for key in tensors:
            stored = file.get_tensor(key)
            own = header.tensor(key)
            assert (own.dtype, own.shape, header.entries[key].shape) == (
                stored.dtype,
                stored.shape,
                tuple(stored.shape),
            )
            assert torch.equal(own.float(), stored.float())
            assert header.entries[key].dtype == str(stored.dtype).removeprefix("torch.")
            assert torch.equal(torch.tensor(header.array(key).astype("float32")), stored.float())
    pieces = list(header.chunks("long"))
    assert len(pieces) == 2 and b"".join(pieces) == tensors["long"].numpy().tobytes()
    assert list(header.chunks("nothing")) == []


def test_a_file_that_shrinks_while_it_is_read_is_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "file.safetensors"
    save_file({"a": torch.ones(100)}, path)
    header = read_header(path)
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(StudioError, match="has become shorter"):
        header.tensor("a")


@pytest.mark.parametrize("command", ["inspect", "metadata", "verify"])
def test_a_file_alone_is_looked_at_without_torch(command: str, tmp_path: Path) -> None:
    """Which takes longer to import than the file to read; bfloat16, which numpy has not, too."""
    from reference_files import reference_tensors

    tensors = {key: one.bfloat16() for key, one in reference_tensors("SD1", layers="mid_block").items()}
    save_file(tensors, tmp_path / "file.safetensors", metadata={"ss_base_model_version": "sd_v1"})
    script = (
        "import sys; sys.modules['torch'] = None; sys.argv[0] = 'lora-studio'\n"
        "from lora_studio.cli import main; main()"
    )
    arguments = [sys.executable, "-c", script, command, str(tmp_path / "file.safetensors")]
    result = subprocess.run(arguments, capture_output=True, text=True, check=False)
    assert result.returncode == 0 and "sd_v1" in result.stdout, result.stderr
