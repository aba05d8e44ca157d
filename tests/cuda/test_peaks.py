"""SDXL at its published size on a pretended GPU: what a run takes at most in each phase."""

from __future__ import annotations

import pytest
import stub
from peaks import outcome_of

GIB = 2**30
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(stub.why_not()), reason=f"no GPU is pretended: {stub.why_not()}"),
]


def test_sdxl_with_checkpointing_takes_what_a_card_of_eight_gigabytes_has() -> None:
    outcome = outcome_of(["SDXL", "--checkpointing", "--prompts", "4"])
    assert outcome["fault"] == "" and outcome["blocking"] == {}
    peak = {name: one["peak"] / GIB for name, one in outcome["phases"].items()}
    assert peak["training"] <= 6.1  # 4.9 of them the base and the adapters, 0.3 the optimizer
    assert peak["previews"] <= peak["training"] + 2  # one image at a time, however many prompts
    assert peak["images"] - outcome["phases"]["images"]["before"] / GIB <= 3  # beside the VAE's weights


def test_sdxl_without_checkpointing_takes_what_a_card_of_twelve_gigabytes_has() -> None:
    outcome = outcome_of(["SDXL"])
    assert outcome["fault"] == "" and outcome["blocking"] == {}
    assert outcome["phases"]["training"]["peak"] / GIB <= 11.2
