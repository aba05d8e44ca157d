"""`lora-studio compare`: what two LoRA files would do to each other, from their factors, and in images."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from lora_studio.errors import StudioError
from lora_studio.lora_file.factors import Decomposition, decompose, energy, inner
from lora_studio.lora_file.lora_file import LoraFile, base_layers
from lora_studio.lora_file.open import check_same_family, unfit_layers, unknown_layers
from lora_studio.tools import Report
from lora_studio.tools.combine import Term

if TYPE_CHECKING:
    from PIL import Image

    from lora_studio.families.base import ModelFamily

MAIN = 0.9  # the share of a change's energy that its main directions have
# Between what the pocket base's subject and style files have, which go together (cosine 0.01, overlap 0.15 to
# 0.28), and files that learned the same thing twice (0.19 or more, 0.35 or more).
COMPETES = 0.1  # |cosine| of all changes together
CROWDED = 0.3  # overlap of what both read, above chance
DOMINATES = 3.0  # times the norm of the other: as much as UIs' strengths are usually changed by
_COMMON = frozenset(["a", "an", "and", "by", "for", "in", "of", "on", "style", "the", "with"])


@dataclass(frozen=True)
class LayerComparison:
    """Two changes of one weight; norms with the strengths in them."""

    name: str
    norms: tuple[float, float]
    cosine: float  # of the two as vectors, -1..1; 0 where one does nothing
    reads: float  # overlap above chance of what they read; 0: as by chance
    writes: float  # of what they write


@dataclass(frozen=True)
class Comparison(Report):
    """What `compare` found. `shared` are the layers that both change."""

    files: tuple[str, str]
    norms: tuple[float, float]
    cosine: float
    reads: float  # means over the shared layers, weighted with both norms
    writes: float
    shared: list[LayerComparison]
    alone: tuple[int, int]  # layers that only one changes
    triggers: tuple[str, str]
    clashing_words: list[str]
    verdict: str  # "combine", "compete" or "one dominates"
    reasons: list[str]
    notes: list[str] = field(default_factory=list)


def compare(one: Term, other: Term) -> Comparison:
    """Both files layer by layer. Raises StudioError if they are for different kinds of bases."""
    files = (one.file, other.file)
    notes = check_same_family(files)
    shared, alone, energies, dot = [], [0, 0], [0.0, 0.0], 0.0
    for number, (term, against) in enumerate(((one, other), (other, one))):
        for name in term.file.layers.keys() - against.file.layers.keys():
            alone[number] += 1
            energies[number] += energy(term.file.factors(name, term.strength))
    for name in one.file.layers:
        if name not in other.file.layers:
            continue
        layer, product = _compare_layer(name, one, other)
        shared.append(layer)
        dot += product
        energies = [total + norm**2 for total, norm in zip(energies, layer.norms, strict=True)]
    norms = (math.sqrt(energies[0]), math.sqrt(energies[1]))
    if not all(norms):
        raise StudioError(f"{files[norms.index(0.0)].name} changes nothing: every layer of it is zero.")
    cosine = dot / (norms[0] * norms[1])
    weights = [math.prod(layer.norms) for layer in shared]
    reads, writes = (
        _mean([getattr(layer, what) for layer in shared], weights) for what in ("reads", "writes")
    )
    names, triggers = (files[0].name, files[1].name), (files[0].trigger, files[1].trigger)
    found = (names, norms, cosine, reads, writes, shared, (alone[0], alone[1]), triggers)
    return Comparison(*found, clashing_words(files), *judge(norms, cosine, reads), notes)


def judge(norms: tuple[float, float], cosine: float, reads: float) -> tuple[str, list[str]]:
    """The verdict, and the figures it rests on beside their thresholds, in sentences."""
    ratio = max(norms) / min(norms)
    reasons = [
        f"the larger change is {ratio:.1f} times the smaller (one dominates from {DOMINATES:g})",
        f"cosine {cosine:+.3f} (they compete from ±{COMPETES:g})",
        f"overlap of what they read {reads:.0%} above chance (they compete from {CROWDED:.0%})",
    ]
    if ratio >= DOMINATES:
        return "one dominates", reasons
    return ("compete" if abs(cosine) >= COMPETES or reads >= CROWDED else "combine"), reasons


def clashing_words(files: Sequence[LoraFile]) -> list[str]:
    """Words that call both, in the order of the first file's trigger."""
    words = [re.findall(r"\w+", file.trigger.lower()) for file in files]
    return [word for word in words[0] if word in words[1] and word not in _COMMON]


def _compare_layer(name: str, one: Term, other: Term) -> tuple[LayerComparison, float]:
    """A layer that both have, and the product of the two changes."""
    a, b = (term.file.factors(name, term.strength) for term in (one, other))
    norms = (math.sqrt(energy(a)), math.sqrt(energy(b)))
    if not all(norms):
        return LayerComparison(name, norms, 0.0, 0.0, 0.0), 0.0
    product = inner(a, b)
    first, second = decompose(a), decompose(b)
    cosine = max(-1.0, min(1.0, product / (norms[0] * norms[1])))
    # Turned, what they write stands where what they read was.
    turned = (Decomposition(x.right.T, x.sizes, x.left.T) for x in (first, second))
    return LayerComparison(name, norms, cosine, _overlap(first, second), _overlap(*turned)), product


def _overlap(one: Decomposition, other: Decomposition) -> float:
    """How much of each one's energy reads what the other mainly reads, above chance.

    With P [in, k] the main directions of A: |B P|^2 / |B|^2, of which k / in is chance: what a random
    subspace of that size has of any matrix. (share - chance) / (1 - chance), and the mean of both ways; 0 is
    chance, and of a file with itself it is a little above `MAIN`.
    """
    both = []
    for subject, against in ((one, other), (other, one)):
        main = against.leading(MAIN).right
        chance = len(main) / main.shape[1]
        scaled = subject.sizes[:, None] * subject.right
        share = ((scaled @ main.T).square().sum() / scaled.square().sum()).item()
        both.append((share - chance) / (1 - chance) if chance < 1 else 0.0)
    return sum(both) / 2


def _mean(values: Sequence[float], weights: Sequence[float]) -> float:
    total = sum(weights)
    return (
        sum(value * weight for value, weight in zip(values, weights, strict=True)) / total if total else 0.0
    )


STEPS, GUIDANCE = 25, 4.0


def compare_images(
    base: str, terms: Sequence[Term], prompts: Sequence[str], *, seed: int, steps: int = STEPS
) -> Image.Image:
    """A sheet with a row a prompt, and a column each for the base, the first file, the second, and both.

    Raises StudioError if a file does not fit the base.
    """
    from lora_studio.evaluate.preview_sheet import sheet_of
    from lora_studio.evaluate.previews import render
    from lora_studio.families.loading import load_base
    from lora_studio.recipe.training import SamplesConfig

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
    if "" in triggers:
        silent = terms[triggers.index("")].file.name
        raise StudioError(f"{silent} does not say which words call it; give --prompt, as often as you like.")
    return [*triggers, ", ".join(triggers)]


@contextmanager
def merged(family: ModelFamily, terms: Sequence[Term]) -> Iterator[None]:
    """Within it the files' changes are in the base's weights."""
    from lora_studio.adapters.adapter_set import put_back

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
