"""What is called valid here, the safetensors library opens, too: headers with one thing wrong in each."""

from __future__ import annotations

import random
import struct
from pathlib import Path

import pytest
from fuzzing import damaged, whole_files
from safetensors import SafetensorError, safe_open

from lora_studio.errors import StudioError
from lora_studio.tensor_file.header import DTYPES, read_header

NUMBERS = ("-0", "-1", "0", "00", "1e0", "2.0", "NaN", "Infinity", "-Infinity", "1E400", "9" * 30, "9" * 5000)
OTHERS = ("null", "true", '"4"', "[]", "{}", "[" * 300 + "]" * 300, '{"a":' * 200 + "1" + "}" * 200)
TEXTS = (r"\ud800", r"\ud83d\ude00", r"\u0000", "\x00", "\x1f", "\x7f", "é", "\ue000", r"\x", "\\")
PUT_IN = (*NUMBERS, *OTHERS, *TEXTS, ",", ":", "{", "}", " ", "\n", "\t", '"', '"x":1,', '"a":"b",', "//")
ENCODINGS = ("utf-16", "utf-16-le", "utf-32", "utf-8-sig", "latin-1", "utf-7")


def rewritten(content: bytes, draw: random.Random) -> bytes:
    """The header's text with one thing wrong, as no writer of JSON makes it."""
    (length,) = struct.unpack("<Q", content[:8])
    text, data = content[8 : 8 + length].decode(), content[8 + length :]
    place = draw.randrange(len(text))
    value = draw.choice([found for found in range(len(text)) if text[found] in '[:,"{'])
    wrong = draw.choice(
        (
            lambda: text[:place] + draw.choice(PUT_IN) + text[place:],
            lambda: text[: value + 1] + draw.choice(PUT_IN) + text[value + 1 :],
            lambda: text[:place] + text[place + draw.randint(1, 3) :],
            lambda: text[:value] + text[value:].replace("0", draw.choice(NUMBERS), 1),
            lambda: draw.choice((" ", "\n", "\0", "\ufeff", "[")) + text,
            lambda: text + draw.choice((" ", "\n", "\0", "x", "{}", "]")),
            lambda: text.replace('"dtype"', f'"x":{draw.choice((*NUMBERS, *OTHERS))},"dtype"', 1),
            lambda: "{" + draw.choice((text[1:-1], '"__metadata__":{"a":"b","a":"c"}')) + "," + text[1:],
        )
    )()
    encoding = draw.choice((*ENCODINGS, *["utf-8"] * 20))
    stored = wrong.encode(encoding, "replace")
    return struct.pack("<Q", len(stored)) + stored + data


def opened(path: Path) -> dict[str, tuple[str, tuple[int, ...]]] | None:
    """By the library; None: it refuses."""
    try:
        with safe_open(path, framework="np") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 - no dict
            return {name: (one.get_dtype(), tuple(one.get_shape())) for name, one in slices.items()}
    except SafetensorError:
        return None


@pytest.mark.parametrize("count", [400, pytest.param(4000, marks=pytest.mark.slow)])
def test_nothing_is_read_that_the_library_refuses_or_reads_otherwise(tmp_path: Path, count: int) -> None:
    sources, path = whole_files(), tmp_path / "file.safetensors"
    ours = theirs = 0
    for number in range(count):
        draw = random.Random(number)
        change = rewritten if number % 4 else damaged
        path.write_bytes(change(draw.choice(sources), draw))
        library = opened(path)
        theirs += library is not None
        try:
            entries = read_header(path).entries
        except StudioError:
            continue
        ours += 1
        assert library == {
            name: (next(code for code, own in DTYPES.items() if own == one.dtype), one.shape)
            for name, one in entries.items()
        }, number
    assert ours > count / 20 and theirs >= ours and count - theirs > count / 3
