"""Files that are not what their name says: every place that opens one says what it is instead."""

from __future__ import annotations

import gzip
import io
import json
import lzma
import struct
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save
from tiny import POCKET_FOLDER

from lora_studio.errors import StudioError
from lora_studio.families.loading import load_base
from lora_studio.families.loading.vae import load_vae
from lora_studio.lora_file.base_weights import open_weights
from lora_studio.lora_file.convertible import read_any
from lora_studio.lora_file.open import open_plain, read_plain
from lora_studio.metadata.edit import edit
from lora_studio.tensor_file.instead import what_instead
from lora_studio.tools.inspect import inspect_file
from lora_studio.verify import verify

WHOLE = save({"lora_unet_mid_block_resnets_0_conv1.alpha": torch.ones(200)})
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:" + "0" * 64 + "\nsize 1343456\n"


def packed(write: Callable[[io.BytesIO], object]) -> bytes:
    stored = io.BytesIO()
    write(stored)
    return stored.getvalue()


def zipped(stored: io.BytesIO) -> None:
    with zipfile.ZipFile(stored, "w") as file:
        file.writestr("lora.safetensors", WHOLE)


def in_tar(stored: io.BytesIO) -> None:
    with tarfile.open(fileobj=stored, mode="w") as file:
        member = tarfile.TarInfo("lora.safetensors")
        member.size = len(WHOLE)
        file.addfile(member, io.BytesIO(WHOLE))


def pickled(**how: object) -> bytes:
    return packed(lambda stored: torch.save({"a": torch.ones(3)}, stored, **how))  # type: ignore[arg-type]


INSTEAD = {
    "page": (b"\n<!DOCTYPE html><html><body>Unauthorized</body></html>" * 40, "a web page"),
    "page of another kind": (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "a web page"),
    "pointer": (POINTER.encode(), "the pointer of one in Git LFS, which has 1,343,456 bytes"),
    "torch": (pickled(), "a pickle of torch"),
    "torch before zips": (pickled(_use_new_zipfile_serialization=False), "a pickle of torch"),
    "zip": (packed(zipped), "a zip archive"),
    "zip of nothing": (b"PK\x03\x04" + bytes(2000), "a zip archive"),
    "tar": (packed(in_tar), "a tar archive"),
    "gzip": (gzip.compress(WHOLE), "packed with gzip"),
    "xz": (lzma.compress(WHOLE), "packed with xz"),
    "gguf": (b"GGUF" + struct.pack("<IQQ", 3, 12, 4) + bytes(64), "a GGUF file"),
    "image": (packed(lambda stored: Image.new("RGB", (9, 9)).save(stored, "PNG")), "an image"),
    "webp": (packed(lambda stored: Image.new("RGB", (9, 9)).save(stored, "WEBP")), "an image"),
    "an answer": (json.dumps({"error": "Invalid username or password."}).encode(), "text in JSON"),
    "words": ("Zugriff verweigert, später noch einmal.\r\n".encode() * 50, "a text"),
    "zeros": (bytes(5000), "zeros"),
    "empty": (b"", "empty"),
    "cut short": (WHOLE[:-300], "is cut short: it has"),
    "cut in its header": (WHOLE[:60], "is cut short: it has 60 bytes and should have more than"),
}
OPENED_BY: dict[str, Callable[[Path], object]] = {
    "inspect": inspect_file,
    "combine, resize, compare, merge-into": open_plain,
    "convert": read_any,
    "base.loras": lambda path: read_plain(path, "base.loras[0].file"),
    "metadata": lambda path: edit(path, path.with_name("out.safetensors"), {}, strip=True),
    "base.model": lambda path: load_base(str(path)),
    "base.vae": lambda path: load_vae(str(path), load_base("pocket").parts["vae"]),  # type: ignore[arg-type]
    "extract": lambda path: open_weights(str(path)),
}


@pytest.mark.parametrize(("content", "words"), INSTEAD.values(), ids=INSTEAD)
def test_verify_says_what_a_file_is_instead(content: bytes, words: str, tmp_path: Path) -> None:
    path = tmp_path / "lora.safetensors"
    path.write_bytes(content)
    (fault,) = verify(path).faults
    assert words in fault and fault.startswith("lora.safetensors is ") and "\n" not in fault, fault


@pytest.mark.parametrize("place", OPENED_BY)
def test_so_does_whatever_opens_one(place: str, tmp_path: Path) -> None:
    path = tmp_path / "lora.safetensors"
    for content, words in (INSTEAD["page"], INSTEAD["pointer"], INSTEAD["gguf"], INSTEAD["cut short"]):
        path.write_bytes(content)
        with pytest.raises(StudioError) as caught:
            OPENED_BY[place](path)
        assert words in str(caught.value) and "\n" not in str(caught.value)


def test_so_does_a_folders_part(tmp_path: Path) -> None:
    """As after `git clone` without Git LFS: every file of weights is a pointer."""
    for source in POCKET_FOLDER.rglob("*"):
        if source.is_file():
            copy = tmp_path / source.relative_to(POCKET_FOLDER)
            copy.parent.mkdir(exist_ok=True)
            copy.write_bytes(POINTER.encode() if source.suffix == ".safetensors" else source.read_bytes())
    with pytest.raises(StudioError, match=r"part \w+ of the base .* the pointer of one in Git LFS"):
        load_base(str(tmp_path))


def test_a_headers_length_is_not_taken_for_something_else() -> None:
    """640 bytes begin as a pickle does; 0x5A4D as a program."""
    for length in (0x0280, 0x5A4D, 0x8B1F):
        assert what_instead(struct.pack("<Q", length) + b'{"a"') == ""
    assert what_instead(WHOLE[:512]) == ""
