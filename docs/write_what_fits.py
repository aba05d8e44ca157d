"""Writes docs/reference/what-fits.md: which preset runs in how much GPU memory; takes minutes."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

from lora_studio.quiet import quiet_libraries
from lora_studio.recipe.load import PRESET_FOLDER, load_recipe
from lora_studio.recipe.presets import preset_names, preset_text
from lora_studio.training.planning import GIB
from lora_studio.training.planning.for_card import (
    CONTEXT,
    GAPS,
    WHILE,
    CardPlan,
    plan_for,
    usable_memory,
)

SIZES = (6, 8, 12, 16, 24, 32)  # GiB
EMBEDDED = "pocket_"  # their base is too small for the question


def inputs_hash() -> str:
    """Of the presets that the page is about: another one means that it has to be written again."""
    texts = "\0".join(f"{name}\0{preset_text(name)}" for name in presets())
    return hashlib.sha256(texts.encode()).hexdigest()[:16]


def presets() -> list[str]:
    return [name for name in preset_names() if not name.startswith(EMBEDDED)]


def page() -> Iterator[str]:
    yield f"<!-- written by docs/write_what_fits.py from presets {inputs_hash()} -->"
    yield "# What fits into how much GPU memory"
    yield ""
    yield "Each preset as it is shipped, for a GPU with bfloat16, counted without one by"
    yield "`lora-studio plan RECIPE --for cuda --memory 8`, which also says what to change. In GiB, at most."
    yield f"Usable is the memory without {CONTEXT / GIB:g} GiB for CUDA itself and {GAPS:.0%} for gaps."
    yield "No GPU was there to compare with."
    yield ""
    yield "| preset | training | most | while | " + " | ".join(f"{size} GB" for size in SIZES) + " |"
    yield "|---|---|---|---|" + "---|" * len(SIZES)
    for name in presets():
        yield row(name, plan_for(load_recipe(PRESET_FOLDER / f"{name}.toml"), "cuda", memory_gib=80.0))


def row(name: str, plan: CardPlan) -> str:
    most = plan.fullest
    fits = ["yes" if most.peak <= usable_memory(size * GIB) else "no" for size in SIZES]
    cells = [name, f"{plan.peak('training') / GIB:.1f}", f"{most.peak / GIB:.1f}", WHILE[most.name], *fits]
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    quiet_libraries()
    for line in page():
        print(line, flush=True)
