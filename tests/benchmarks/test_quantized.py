"""What the benchmark of few bits says of trainings whose outcome is known, and of a base that is rounded."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from quantized import ARMS, Piece, base_of, error_of, rows_of
from safetensors.torch import load_file

ERRORS = dict.fromkeys(ARMS, 0.01)


def piece(arm: str, seed: int, shown: int) -> Piece:
    style = [number < shown for number in range(20)]
    return Piece("pocket", arm, seed, "", 20, style, style)


def test_each_arm_is_told_beside_bfloat16_of_equal_prompts_and_seeds() -> None:
    shown = {"bfloat16": 18, "int8": 18, "fp8": 18, "nf4": 16}
    rows = {
        row[1]: row for row in rows_of([piece(a, s, n) for a, n in shown.items() for s in (2, 1)], ERRORS)
    }
    assert rows["bfloat16"][2:] == ("1.00%", "90.0%", "90.0%", "", "")
    assert rows["int8"][5:] == ("0.0 % (0.0 to 0.0)", "within 3 points")
    assert rows["nf4"][3] == "80.0%" and rows["nf4"][6] == "FARTHER"


@pytest.mark.parametrize("base", ["pocket", "pocket_flow"])
def test_the_copy_in_bfloat16_is_rounded_and_the_shipped_one_stays(base: str, tmp_path: Path) -> None:
    shipped, copy = base_of(base, "nf4", tmp_path), base_of(base, "bfloat16", tmp_path)
    (file,) = (*shipped.glob("unet/*.safetensors"), *shipped.glob("transformer/*.safetensors"))
    before, after = load_file(file), load_file(copy / file.relative_to(shipped))
    assert {tensor.dtype for tensor in before.values()} == {torch.float16}
    assert all(torch.equal(after[name], before[name].bfloat16()) for name in before)


def test_an_error_is_a_share_of_the_size() -> None:
    assert error_of(torch.full((4,), 1.1), torch.ones(4)) == pytest.approx(0.1)
