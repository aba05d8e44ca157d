"""Sizes, durations and counts in words, and text from elsewhere on one line."""

from __future__ import annotations

from datetime import timedelta

import pytest
from rich.filesize import decimal

from lora_studio.text import duration, file_size, memory_size, plural, shown


@pytest.mark.parametrize("num_bytes", [0, 1, 999, 1_000, 1_249, 999_949, 12_345_678, 999_000_000])
def test_file_sizes_are_those_that_another_library_words(num_bytes: int) -> None:
    """rich counts in powers of 1000, too, and writes kB and "1 byte"."""
    words = decimal(num_bytes).replace("kB", "KB").replace("1 byte", "1 bytes").replace("bytess", "bytes")
    assert file_size(num_bytes) == words


def test_gigabytes_have_two_digits_and_memory_counts_in_powers_of_1024() -> None:
    assert file_size(1.5e9) == "1.50 GB" and memory_size(1.5 * 2**30) == "1.50 GiB"
    assert memory_size(3 * 2**19) == "1.5 MiB" and memory_size(2**11) == "2.0 KiB"
    assert memory_size(1023) == "1023 bytes"


@pytest.mark.parametrize("seconds", [0, 1.4, 59.4, 60, 3599, 3600, 7_530, 100_000])
def test_durations_leave_out_what_is_zero_in_front(seconds: float) -> None:
    hours, minutes, rest = map(int, str(timedelta(seconds=round(seconds) % 86_400)).split(":"))
    hours += round(seconds) // 86_400 * 24
    expected = f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"
    assert duration(seconds) == expected


def test_one_is_singular() -> None:
    assert [plural(count) for count in (0, 1, 2)] == ["0 images", "1 image", "2 images"]
    assert plural(1, "new token") == "1 new token"


def test_what_steers_a_terminal_is_spelled_out_and_long_text_is_cut() -> None:
    assert shown("a\x1b[31m\n\udcff.png") == r"a\x1b[31m\n\udcff.png"
    assert shown("x" * 1500, limit=4) == "xxxx ... (1,500 letters)"
