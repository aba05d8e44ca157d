"""Long captions in several windows, against references written here and transformers alone.

Users' pain 34: captions were truncated at 77 tokens without notice, and trainers read longer ones otherwise
than web UIs do (OneTrainer#430, sd-scripts#1877).
"""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from tiny import SD15_TEXT
from transformers import CLIPTextModel, CLIPTokenizer

from lora_studio.families.base import ModelFamily
from lora_studio.families.loading import load_base
from lora_studio.families.text_chunks import clip_ids, join_windows, split_tokens

COMMA = -1


def as_web_uis_do(ids: list[int], size: int) -> list[list[int]]:
    """A1111's rule, token by token: at a full chunk, what follows a comma at most 20 tokens back moves on."""
    done: list[list[int]] = []
    chunk: list[int] = []
    comma_at: int | None = None
    for token in ids:
        if token == COMMA:
            comma_at = len(chunk)
        elif len(chunk) == size and comma_at is not None and size - comma_at <= 20:
            done.append(chunk[: comma_at + 1])
            chunk, comma_at = chunk[comma_at + 1 :], None
        if len(chunk) == size:
            done.append(chunk)
            chunk, comma_at = [], None
        chunk.append(token)
    return [*done, chunk]


@pytest.mark.parametrize("size", [75, 30])
@pytest.mark.parametrize("commas", [0.0, 0.02, 0.1, 0.4, 1.0])
def test_chunks_break_where_a_web_ui_breaks_them(size: int, commas: float) -> None:
    draw = random.Random(size)
    for length in [0, 1, size - 1, size, size + 1, 2 * size, *(draw.randrange(5 * size) for _ in range(200))]:
        ids = [COMMA if draw.random() < commas else number for number in range(length)]
        chunks, lost = split_tokens(ids, size=size, max_chunks=99, comma=COMMA)
        assert chunks == as_web_uis_do(ids, size) and not lost


def test_the_places_of_commas_that_count() -> None:
    def lengths(*commas: int, most: int = 9) -> list[int]:
        ids = [COMMA if place in commas else place for place in range(100)]
        return [len(chunk) for chunk in split_tokens(ids, size=75, max_chunks=most, comma=COMMA)[0]]

    assert lengths() == [75, 25]
    assert lengths(54) == [75, 25]  # 21 tokens before the end: too far back
    assert lengths(55) == [56, 44]
    assert lengths(60, 70) == [71, 29]
    assert lengths(74) == [75, 25]
    assert lengths(60, 75) == [75, 25]  # a comma itself is not moved
    assert lengths(60, most=1) == [75]  # nothing comes after it, so it is filled up
    assert lengths(60, most=2) == [61, 39]


def test_what_does_not_fit_is_left_over() -> None:
    ids = list(range(70))
    assert split_tokens(ids, size=30, max_chunks=2, comma=None) == ([ids[:30], ids[30:60]], ids[60:])


@pytest.fixture(scope="module")
def family(tiny_base: Path) -> ModelFamily:
    return load_base(str(tiny_base))


CAPTIONS = ["", "a ball, zwx style", "ball " * 30, "moon " * 31, ", ".join(["a red star"] * 40)]


def test_one_window_is_what_transformers_makes_of_a_caption(family: ModelFamily) -> None:
    tokenizer = family.tokenizers["tokenizer"]
    expected = tokenizer(CAPTIONS, padding="max_length", truncation=True, return_tensors="pt").input_ids
    assert torch.equal(clip_ids(tokenizer, CAPTIONS, max_chunks=1)[:, 0], expected)


def test_a_long_caption_is_its_windows_read_one_by_one(family: ModelFamily, tiny_base: Path) -> None:
    tokenizer: CLIPTokenizer = CLIPTokenizer.from_pretrained(tiny_base / "tokenizer")
    encoder = CLIPTextModel.from_pretrained(tiny_base / "text_encoder", dtype=torch.float32)
    words = (
        ["ball"] * 18 + ["moon,"] + ["star"] * 20
    )  # 20 tokens with the comma, then 20: the break is between
    first, second = " ".join(words[:19]), " ".join(words[19:])
    windows = tokenizer([first, second], padding="max_length", return_tensors="pt").input_ids
    assert windows.shape == (2, 32)  # 30 places and two marks
    family.max_chunks = 3
    with torch.no_grad():
        expected = torch.cat([encoder(window[None]).last_hidden_state for window in windows], dim=1)
        found = family.encode_text([" ".join(words)])["text"]
    assert found.shape == (1, 64, SD15_TEXT)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


def test_shorter_captions_beside_a_long_one_get_empty_windows(family: ModelFamily) -> None:
    family.max_chunks = 3
    long, short = "ball " * 70, "a moon"
    with torch.no_grad():
        both = family.encode_text([short, long])["text"]
        alone = {caption: family.encode_text([caption]) for caption in (short, long, "")}
        beside = family.encode_text([short], like=[long])["text"]
    assert [alone[caption]["text"].shape[1] for caption in (short, long, "")] == [32, 96, 32]
    joined = join_windows([alone[short], alone[long]], empty=alone[""])["text"]
    torch.testing.assert_close(both, joined, atol=1e-5, rtol=1e-4)
    assert torch.equal(joined[0, 32:64], alone[""]["text"][0]) and torch.equal(
        joined[0, 64:], joined[0, 32:64]
    )
    torch.testing.assert_close(beside, joined[:1], atol=1e-5, rtol=1e-4)


def test_what_has_no_length_is_joined_as_it_is() -> None:
    rows = [{"text": torch.rand(1, 4, 2), "pooled": torch.rand(1, 5)} for _ in range(3)]
    joined = join_windows(rows, empty=rows[0])
    assert torch.equal(joined["pooled"], torch.cat([row["pooled"] for row in rows]))
    assert joined["text"].shape == (3, 4, 2)
