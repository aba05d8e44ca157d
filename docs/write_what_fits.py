"""Writes docs/reference/what-fits.md: which base trains in how much GPU memory, and which preset does it.

Simulates what docs/reference/what-fits.json does not have yet, a minute of one core each, and keeps it there
at once, so that it can be stopped at any time; `--again` takes nothing from there.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from lora_studio.evaluate.previews import drawn_together
from lora_studio.files import write_atomically
from lora_studio.quiet import paused_collector, quiet_libraries
from lora_studio.recipe import Recipe
from lora_studio.recipe.load import PRESET_FOLDER, load_recipe
from lora_studio.recipe.presets import preset_names, preset_text
from lora_studio.training.planning import GIB
from lora_studio.training.planning.card_changes import base_dtype
from lora_studio.training.planning.counting import Work
from lora_studio.training.planning.for_card import CONTEXT, GAPS, WHILE, bus_seconds, usable_memory
from lora_studio.training.planning.offloading import BUS_GBS, Offloading
from lora_studio.training.planning.simulation import TRAINING, Phase, Simulation, simulate
from lora_studio.training.planning.simulation.images import shapes_of
from lora_studio.training.planning.simulation.session import base_without_weights

FOUND = Path(__file__).parent / "reference" / "what-fits.json"
PAGE = FOUND.with_suffix(".md")
SIZES = (6, 8, 12, 16, 24, 32)  # GiB
EMBEDDED = "pocket_"  # their base is too small for the question
BITS = {"none": "bf16", "bnb_nf4": "nf4"}


class Base(NamedTuple):
    """A base of a family and size, trained as a preset does."""

    title: str
    preset: str
    model: str = ""  # instead of the preset's


BASES = (
    Base("Z-Image", "z_image_style"),
    Base("FLUX.2 klein 9B", "flux2_klein_style", "black-forest-labs/FLUX.2-klein-base-9B"),
    Base("FLUX.1 dev", "flux1_style"),
    Base("FLUX.2 klein 4B", "flux2_klein_style"),
    Base("Krea 2", "krea2_style"),
    Base("Qwen-Image", "qwen_image_style"),
    Base("Anima", "anima_style"),
    Base("FLUX.2 dev", "flux2_klein_style", "black-forest-labs/FLUX.2-dev"),
    Base("Chroma", "chroma_style"),
    Base("SD3.5 large", "sd35_style", "stabilityai/stable-diffusion-3.5-large"),
    Base("SD3.5 medium", "sd35_style"),
    Base("Lumina-Image 2", "lumina2_style"),
    Base("SDXL", "sdxl_style"),
)


def presets() -> list[str]:
    return [name for name in preset_names() if not name.startswith(EMBEDDED)]


def inputs_hash() -> str:
    """Of the presets that the page is about: another one means that it has to be written again."""
    texts = "\0".join(f"{name}\0{preset_text(name)}" for name in presets())
    return hashlib.sha256(texts.encode()).hexdigest()[:16]


def preset(name: str) -> Recipe:
    return load_recipe(PRESET_FOLDER / f"{name}.toml")


def of_base(base: Base, quantize: str) -> Recipe:
    """The preset's recipe on this base, in these bits."""
    recipe = preset(base.preset)
    changes = {"quantize": quantize} | ({"model": base.model} if base.model else {})
    return recipe.model_copy(update={"base": recipe.base.model_copy(update=changes)})


def key(recipe: Recipe) -> str:
    """The same for recipes that take the same memory: with other words, or for more steps.

    Of what is not as by default, so that a new option changes none.
    """
    values = recipe.model_dump(mode="json", exclude={"name", "tokens"}, exclude_defaults=True)
    for section, names in WORDS.items():
        values[section] = {one: of for one, of in values.get(section, {}).items() if one not in names}
    values["base"] |= {"dtype": str(base_dtype(recipe, torch.bfloat16))}
    if recipe.base.training_adapter is not None:
        values["base"]["training_adapter"] = recipe.base.training_adapter.name  # wherever the recipe lies
    values["tokens"] = len(recipe.tokens)
    values["shown"] = min(len(recipe.samples.prompts), drawn_together(recipe.data.resolution))
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


WORDS: Mapping[str, Sequence[str]] = {
    "data": ("trigger", "class_words", "instance_prompt", "images", "flip", "latent_memory_gb"),
    "training": ("steps", "warmup_steps", "checkpoint_every", "learning_rate", "seed"),
    "samples": ("prompts", "every"),
    "machine": ("offload_blocks",),  # is arithmetic
}


@paused_collector()
def simulated(recipe: Recipe) -> dict[str, Any]:
    """Bytes of every phase and block, with all of the base on the device, and no training adapter: its file
    is not here, and small.
    """
    machine = recipe.machine.model_copy(update={"offload_blocks": 0})
    base = recipe.base.model_copy(update={"training_adapter": None})
    recipe = recipe.model_copy(update={"machine": machine, "base": base})
    family = base_without_weights(recipe)
    found = simulate(recipe, family, base_dtype(recipe, torch.bfloat16), shapes_of(recipe, family))
    phases = [
        {"name": one.name, "weights": dict(one.weights), "other": one.peak - sum(one.weights.values())}
        for one in found.phases
    ]
    blocks = {part: list(one.sizes) for part, one in found.blocks.items()}
    return {"phases": phases, "denoiser": found.denoiser, "blocks": blocks}


def read(values: Mapping[str, Any]) -> Simulation:
    phases = tuple(Phase(one["name"], one["weights"], {}, one["other"]) for one in values["phases"])
    blocks = {part: Offloading(sizes, 0) for part, sizes in values["blocks"].items()}
    return Simulation(phases, Work(), values["denoiser"], blocks)


def page(found: Mapping[str, Any]) -> Iterator[str]:
    """Its lines, from what was simulated; rows of which nothing was are left out."""
    yield f"<!-- written by docs/write_what_fits.py from presets {inputs_hash()} -->"
    yield "# What fits into how much GPU memory"
    yield ""
    yield "Counted without a GPU, for one with bfloat16, by `lora-studio plan RECIPE --for cuda --memory 8`,"
    yield f"which also says what to change. Usable is the memory without {CONTEXT / GIB:g} GiB for CUDA"
    yield f"itself and {GAPS:.0%} for gaps. No GPU was there to compare with."
    yield ""
    yield from bases_table(found)
    yield ""
    yield from presets_table(found)


def bases_table(found: Mapping[str, Any]) -> Iterator[str]:
    rates = " or ".join(f"{one:g}" for one in BUS_GBS)
    yield "## Each base"
    yield ""
    yield "One image of the base's size at a time, LoRA of rank 16, checkpointing, all phases of a run, with"
    yield '`machine.offload_blocks = "auto"`: *yes* if all of it fits, else how many of its blocks wait in'
    yield "[main memory](../memory.md#blocks-in-main-memory), and what copying them takes in a step, at"
    yield f"{rates} GB/s, beside the computing: a step takes as long as the longer of the two. *Text* is so"
    yield "many blocks of the text encoder, which takes time once, while captions are encoded."
    yield ""
    yield "| base | bits | largest | " + " | ".join(f"{size} GB" for size in SIZES) + " |"
    yield "|---|---|---|" + "---|" * len(SIZES)
    for base in BASES:
        for quantize, bits in BITS.items():
            if (values := found.get(key(of_base(base, quantize)))) is not None and values["blocks"]:
                whole = read(values)
                cells = [on_card(whole, size) for size in SIZES]
                yield f"| {' | '.join([base.title, bits, f'{whole.fullest.peak / GIB:.1f}', *cells])} |"


def on_card(whole: Simulation, size: int) -> str:
    """How it fits there, in a few words."""
    usable = usable_memory(size * GIB)
    fitted = whole.fitting(usable)
    if fitted.fullest.peak > usable:
        return "no"
    words = []
    for part, one in sorted(fitted.blocks.items(), key=lambda pair: pair[0] == whole.denoiser):
        if one.blocks and part == whole.denoiser:
            time = str(bus_seconds(one.copied(1))).replace(" to ", "–")
            words.append(f"{one.blocks} of {len(one.sizes)}: {time}")
        elif one.blocks:
            words.append(f"text {one.blocks} of {len(one.sizes)}")
    return ", ".join(words) or "yes"


def presets_table(found: Mapping[str, Any]) -> Iterator[str]:
    yield "## Each preset"
    yield ""
    yield "As it is shipped, in GiB, with nothing in main memory; *auto*: it fits with the blocks that"
    yield '`machine.offload_blocks = "auto"` of that preset puts there.'
    yield ""
    yield "| preset | training | most | while | " + " | ".join(f"{size} GB" for size in SIZES) + " |"
    yield "|---|---|---|---|" + "---|" * len(SIZES)
    for name in presets():
        if (values := found.get(key(recipe := preset(name)))) is not None:
            yield preset_row(name, read(values), offloads=recipe.machine.offload_blocks == "auto")


def preset_row(name: str, whole: Simulation, *, offloads: bool) -> str:
    most = whole.fullest
    training = next(one.peak for one in whole.phases if one.name == TRAINING)
    cells = [name, f"{training / GIB:.1f}", f"{most.peak / GIB:.1f}", WHILE[most.name]]
    for size in SIZES:
        usable = usable_memory(size * GIB)
        waits = offloads and whole.fitting(usable).fullest.peak <= usable
        cells.append("yes" if most.peak <= usable else "auto" if waits else "no")
    return f"| {' | '.join(cells)} |"


def wanted() -> Iterator[Recipe]:
    """What the page is about, what is asked most first."""
    yield from (of_base(base, quantize) for quantize in reversed(BITS) for base in BASES)
    yield from (preset(name) for name in presets())


def main() -> None:
    found = {} if "--again" in sys.argv else json.loads(FOUND.read_text("utf-8"))
    recipes = {key(recipe): recipe for recipe in wanted()}
    found = {one: values for one, values in found.items() if one in recipes}
    for one, recipe in recipes.items():
        if not found.get(one, {}).get("blocks"):
            print(recipe.base.model, recipe.base.quantize, recipe.name, flush=True)
            found[one] = simulated(recipe)
        write_atomically(FOUND, (json.dumps(found, sort_keys=True) + "\n").encode())
    write_atomically(PAGE, ("\n".join(page(found)) + "\n").encode())


if __name__ == "__main__":
    quiet_libraries()
    main()
