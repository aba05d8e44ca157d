"""Captions of a large text encoder, in bytes: on the disk, and on the device."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from lora_studio.data import conditioning
from lora_studio.data.cache.encode import TextCache
from lora_studio.data.conditioning import CaptionSet, prepare_texts
from lora_studio.families.loading import load_base

HEADER = 400  # bytes of a file beside its numbers, at most
CAPTIONS = ["a red ball", "a blue cat on a very large and long green meadow", "a dog and a house by a lake"]


@pytest.mark.parametrize("kind", ["qwen_image", "z_image"])
def test_a_captions_file_has_its_own_tokens_in_half_precision_and_other_runs_take_it(
    kind: str, base_of: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    family = load_base(str(base_of(kind)), dtype=torch.bfloat16)
    tokens = {one: family.encode_text([one])["text"].shape[1:] for one in CAPTIONS}
    assert len(set(tokens.values())) == 3
    known = CaptionSet({one: set() for one in ["", *CAPTIONS]}, complete=True)
    own = [2 * number * width + number for number, width in tokens.values()]  # and a mask
    monkeypatch.setattr(conditioning, "TEXT_BYTES", sum(own[:2]))
    cache = TextCache(tmp_path, kind)
    texts = prepare_texts(cache, known, family)
    assert cache.encoded == 4 and 0 < texts.num_bytes <= conditioning.TEXT_BYTES
    sizes = sorted(path.stat().st_size for path in tmp_path.iterdir())[-3:]
    assert [0 < size - wanted < HEADER for size, wanted in zip(sizes, sorted(own), strict=True)] == [True] * 3
    for one in CAPTIONS:
        assert torch.equal(texts.batch([one])["text"], family.encode_text([one])["text"])
    again = TextCache(tmp_path, kind)
    prepare_texts(again, known, family)
    assert again.encoded == 0
