"""A micro-batch's rows in several passes: the same gradients."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from gradients import loss_and_gradients, shift
from torch import Tensor

from lora_studio.data.batches import Batch
from lora_studio.recipe.load import load_recipe
from lora_studio.runs import Run
from lora_studio.training.events import ignore_events
from lora_studio.training.loop.batch_split import shares
from lora_studio.training.prepare import Session, prepare


@pytest.mark.parametrize("rows", [1, 2, 5, 8])
@pytest.mark.parametrize("parts", [1, 2, 3, 8, 9])
def test_every_row_is_in_one_share_and_they_are_as_equal_as_can_be(rows: int, parts: int) -> None:
    found = shares(slice(2, 2 + rows), parts)
    assert [row for share in found for row in range(20)[share]] == list(range(2, 2 + rows))
    sizes = [share.stop - share.start for share in found]
    assert len(sizes) == min(rows, parts) and max(sizes) - min(sizes) <= 1
    assert sizes == sorted(sizes, reverse=True)


def gradients(session: Session, batch: Batch, passes: int) -> tuple[Tensor, Tensor]:
    session.loop.state.counters.passes = passes
    return loss_and_gradients(session, batch)


@pytest.mark.parametrize("changes", [(), ("adapter.text_encoder=true", "data.max_token_chunks=3")])
def test_passes_change_nothing_but_the_rounding(
    tmp_path: Path, recipe_file: Path, changes: tuple[str, ...]
) -> None:
    more = ("training.batch_size=5", "data.repeats=4", "objective.preservation=0.5", *changes)
    session = prepare(load_recipe(recipe_file, changes=more), Run(tmp_path), ignore_events)
    shift(session.adapters)
    found = (batch for step in range(1, 50) for batch in session.loop.feed.of_step(step))
    batch = next(one for one in found if len(one) >= 3 and 1 <= len(one.preserved) < len(one))
    batch.captions[-1] += ", and far more words than one window can hold" * 4
    whole_loss, whole = gradients(session, batch, 1)
    for passes in (2, 3, 100):
        loss, in_passes = gradients(session, batch, passes)
        torch.testing.assert_close(loss, whole_loss)
        assert (in_passes - whole).norm() < 1e-5 * whole.norm()
