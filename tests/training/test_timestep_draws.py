"""timesteps.png tells what the loop has really drawn."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from lora_studio.recipe.load import load_recipe
from lora_studio.runs import Run
from lora_studio.training.events import ignore_events
from lora_studio.training.finish import BINS, Finished, count_draws
from lora_studio.training.prepare import prepare

SHAPED = ("objective.timestep_range=[0.2, 0.9]", "objective.timestep_bias=1", "objective.noise_offset=0.1")


@pytest.mark.parametrize("spread", ["stratified", "low_variance", "uniform"])
def test_what_is_counted_is_what_the_loop_draws(spread: str, tmp_path: Path, recipe_file: Path) -> None:
    changes = (
        f"objective.timesteps={spread}",
        *SHAPED,
        "training.gradient_accumulation=2",
        "training.steps=3",
    )
    session = prepare(load_recipe(recipe_file, changes=changes), Run(tmp_path), ignore_events)
    seen: list[torch.Tensor] = []
    denoise = session.family.denoise

    def listen(latents, timestep, *rest):  # type: ignore[no-untyped-def]
        seen.append(timestep)
        return denoise(latents, timestep, *rest)

    session.family.denoise = listen  # type: ignore[method-assign]
    session.loop.run(1)
    session.run.close()
    timesteps = torch.cat(seen)
    counts = torch.bincount(timesteps * BINS // 1000, minlength=BINS).tolist()
    draws = count_draws(session.loop)
    assert list(draws.drawn) == counts and sum(counts) >= 6
    assert timesteps.min() >= 200 and timesteps.max() < 900
    assert draws.wanted[:10] == (0.0,) * 10 and draws.wanted[45:] == (0.0,) * 5
    rises = [b - a for a, b in zip(draws.wanted[10:44], draws.wanted[11:45], strict=True)]
    assert (
        rises == pytest.approx([rises[0]] * 34, rel=1e-3) and rises[0] > 0
    )  # a bias of 1 is a straight line
    assert sum(draws.wanted) == pytest.approx(len(timesteps))


def test_a_finished_run_shows_its_timesteps(finished: Finished) -> None:
    assert (finished.folder / "timesteps.png").read_bytes().startswith(b"\x89PNG")
    facts = json.loads((finished.folder / "timesteps.json").read_text("utf-8"))
    assert 4 <= sum(facts["drawn"]) <= 4 * 2  # four steps; a bucket's remainder makes a smaller batch
    assert facts["wanted"] == pytest.approx([sum(facts["drawn"]) / BINS] * BINS)
