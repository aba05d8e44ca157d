"""SDXL at its published size on a pretended GPU: what a run takes at most in each phase."""

from __future__ import annotations

from pathlib import Path

import pytest
import stub
from peaks import outcome_of, recipe_of

from lora_studio.training.planning.for_card import plan_for
from lora_studio.training.planning.simulation import (
    ENCODING_CAPTIONS,
    ENCODING_IMAGES,
    PREVIEWS,
    TRAINING,
    VALIDATION,
    VERIFYING,
)

GIB = 2**30
PHASES = {  # of the plan: of the pretended run
    ENCODING_IMAGES: "images",
    ENCODING_CAPTIONS: "captions",
    TRAINING: "training",
    VALIDATION: "validation",
    PREVIEWS: "previews",
    VERIFYING: "probe",
}
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


@pytest.mark.parametrize("checkpointing", [False, True], ids=["plain", "checkpointing"])
@pytest.mark.parametrize("base", ["SD1.5", "SDXL"])
def test_the_plan_for_a_card_says_what_the_run_takes(tmp_path: Path, base: str, checkpointing: bool) -> None:
    options = ["--checkpointing"] if checkpointing else []
    peaks = {name: one["peak"] for name, one in outcome_of([base, *options])["phases"].items()}
    recipe = recipe_of(base, tmp_path, checkpointing=checkpointing)
    planned = {one.name: one.peak for one in plan_for(recipe, "cuda", memory_gib=80).phases}
    assert planned.keys() == PHASES.keys()
    for phase, name in PHASES.items():
        assert planned[phase] == pytest.approx(peaks[name], rel=0.03), phase
