"""The same prompts and seeds through the base, each of two LoRA files, and both."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from PIL import Image

from lora_studio.adapters.adapter_set import put_back
from lora_studio.errors import StudioError
from lora_studio.evaluate.previews import render, sheet_of
from lora_studio.families.base import ModelFamily
from lora_studio.families.loading import load_base
from lora_studio.lora_file.lora_file import base_layers
from lora_studio.lora_file.open import unfit_layers, unknown_layers
from lora_studio.recipe.output import SamplesConfig
from lora_studio.tools.combine import Term

STEPS, GUIDANCE = 25, 4.0


def compare_images(
    base: str, terms: Sequence[Term], prompts: Sequence[str], *, seed: int, steps: int = STEPS
) -> Image.Image:
    """A sheet with a row a prompt, and a column each for the base, the first file, the second, and both.

    Raises StudioError if a file does not fit the base.
    """
    family = load_base(base)
    samples = SamplesConfig(prompts=tuple(prompts), seed=seed, steps=steps, guidance=GUIDANCE)
    columns = {"base": render(family, samples, side=family.native_side)}
    for title, chosen in (*((term.file.path.stem, [term]) for term in terms), ("both", terms)):
        with merged(family, chosen):
            name = f"{len(columns)}: {title}" if title != "both" else title
            columns[name] = render(family, samples, side=family.native_side)
    return sheet_of(prompts, columns)


def prompts_for(terms: Sequence[Term]) -> list[str]:
    """Each file's trigger, and both together. Raises StudioError if a file does not say what calls it."""
    triggers = [term.file.trigger for term in terms]
    if not all(triggers):
        silent = terms[triggers.index("")].file.name
        raise StudioError(f"{silent} does not say which words call it; give --prompt, as often as you like.")
    return [*triggers, ", ".join(triggers)]


@contextmanager
def merged(family: ModelFamily, terms: Sequence[Term]) -> Iterator[None]:
    """Within it the files' changes are in the base's weights."""
    layers = base_layers(family)
    shapes = {name: layer.weight.shape for name, layer in layers.items()}
    for term in terms:
        if fault := unknown_layers(term.file, layers) or unfit_layers(term.file, shapes):
            raise StudioError(fault)
    with put_back([layers[name].weight for name in {name for term in terms for name in term.file.layers}]):
        for term in terms:
            for name in term.file.layers:
                weight, factors = layers[name].weight, term.file.factors(name, term.strength)
                change = factors.up @ factors.down
                weight.data.add_(change.view(weight.shape).to(weight))
        yield
