"""Sheets to look at beside the figures: prompts by strengths, and prompts by checkpoints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from PIL import Image

from lora_studio.evaluate.preview_sheet import sheet_of
from lora_studio.evaluate.previews import as_png
from lora_studio.evaluate.questions import in_groups
from lora_studio.evaluate.result import GROUPS, Question, Variant
from lora_studio.training.evaluating.asked import RunMeasures

ROWS = 8  # of a sheet, at most
WIDEST = 4096  # pixels of a sheet, above which its images are shown smaller
STRENGTHS_GRID, CHECKPOINTS_GRID = "grid/strengths.png", "grid/checkpoints.png"  # in a run's folder


def grid_of(measures: RunMeasures, variants: Mapping[str, Variant | None]) -> bytes:
    """A PNG: a row for each of some prompts of all groups, a column for each variant, by its title.

    All with the first seed; what was learned stays as the last variant has it.
    """
    asked = rows_of(measures.questions(measures.recipe.evaluate.checkpoint_prompts))
    seed = measures.recipe.evaluate.first_seed
    widest = max(1, WIDEST // len(variants))
    columns = {
        title: [_within(measures.artist.draw([(one.prompt, seed)], variant)[0], widest) for one in asked]
        for title, variant in variants.items()
    }
    return as_png(sheet_of([one.prompt for one in asked], columns))


def rows_of(questions: Sequence[Question]) -> list[Question]:
    """As many of every group as `ROWS` have room for, in the order of the groups."""
    groups = [numbers for numbers in in_groups(questions).values() if numbers]
    each = max(1, ROWS // max(1, len(groups)))
    found = [questions[number] for numbers in groups for number in numbers[:each]]
    return sorted(found, key=lambda one: GROUPS.index(one.group))[:ROWS]


def of_strengths(step: int, strengths: Sequence[float]) -> dict[str, Variant | None]:
    """The base, and a checkpoint at each strength."""
    tuned = {f"strength {one:g}": Variant(step, one) for one in sorted(set(strengths))}
    return {"base": None, **tuned}


def of_checkpoints(steps: Sequence[int]) -> dict[str, Variant | None]:
    """The base, and each checkpoint."""
    return {"base": None, **{f"step {step}": Variant(step) for step in sorted(set(steps))}}


def _within(image: Image.Image, side: int) -> Image.Image:
    share = min(1.0, side / image.width)
    return image if share == 1 else image.resize((round(image.width * share), round(image.height * share)))
