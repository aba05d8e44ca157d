"""What full fine-tuning trains, and what that costs, put into words before it starts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from lora_studio.adapters.adapter_set import AdapterSet
from lora_studio.recipe import Recipe
from lora_studio.training.optimizer_memory import optimizer_bytes

USUAL_RATE = 1e-5  # arXiv 2208.12242 has 5e-6 for Stable Diffusion; people use 1e-6 to 1e-5
FAST = 5  # times the usual, from which on it is said


def full_notes(recipe: Recipe, adapters: AdapterSet) -> Iterator[str]:
    """Which tensors of which part, the memory they cost, and what comes out."""
    ways = Counter((one.part, one.learning_rate, one.last_step) for one in adapters.layers)
    for (part, rate, last), count in ways.items():
        own = "" if rate is None else f", learning rate {rate:g}"
        until = "" if last is None else f", until step {last}"
        yield f"{part}: {count} layers are trained themselves{own}{until}"
    yield _memory(recipe, adapters)
    rate = recipe.training.learning_rate
    if rate > FAST * USUAL_RATE and recipe.training.optimizer != "prodigy":
        yield (
            f"a learning rate of {rate:g} is one for adapters; Stable Diffusion's own layers are "
            f"trained with 1e-6 to {USUAL_RATE:g}"
        )
    yield (
        f"it ends as a whole base, a folder in {recipe.export.dtype} that diffusers loads; the base itself "
        "stays as it is"
    )


def _memory(recipe: Recipe, adapters: AdapterSet) -> str:
    tensors = adapters.named_parameters().values()
    weights = sum(one.nbytes for one in tensors) / 1e9
    states = optimizer_bytes(recipe, adapters) / 1e9
    kept = sum(own.nbytes for layer in adapters.layers for own in layer.originals.values()) / 1e9
    where = "on the device, because every step asks it" if adapters.options.base_at_hand else "in main memory"
    return (
        f"{adapters.num_parameters:,} numbers are trained: {weights:.3g} GB of weights in float32, as much "
        f"of gradients, and {states:.3g} GB for {recipe.training.optimizer}; what the base has in their "
        f"place, {kept:.3g} GB, stays {where}"
    )
