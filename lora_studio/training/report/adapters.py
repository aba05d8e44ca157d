"""What learns, in the plan of a run: how much, what the options of [adapter] do, and what file comes out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from lora_studio.adapters import ADAPTERS
from lora_studio.adapters.adapter_set import AdapterSet
from lora_studio.adapters.rules import scale_of
from lora_studio.lora_file.factors import most_bytes
from lora_studio.recipe import Recipe
from lora_studio.recipe.adapter import AdapterConfig
from lora_studio.text import PlanSection, file_size, plural
from lora_studio.training.optimizers.choose import optimizer_bytes

USUAL_RATE = 1e-5  # of whole layers; arXiv 2208.12242 has 5e-6 for Stable Diffusion; people use 1e-6 to 1e-5
FAST = 5  # times the usual, above which there is a note


def adapters_section(recipe: Recipe, adapters: AdapterSet) -> PlanSection:
    """How many parameters learn and where, and what is worth knowing about the choice."""
    layers, tokens, notes = len(adapters.layers), len(recipe.tokens), adapter_notes(recipe, adapters)
    where = [plural(layers, "layer")] if layers or not tokens else []
    where += [plural(tokens, "new token")] if tokens else []
    trainable = f"{adapters.num_parameters:,} parameters in {' and '.join(where)}"
    rows = [("trainable", trainable), *(("", note) for note in notes)]
    data = {"num_parameters": adapters.num_parameters, "num_layers": layers, "num_tokens": tokens}
    return PlanSection(rows, data | {"adapter_notes": notes})


def adapter_notes(recipe: Recipe, adapters: AdapterSet) -> tuple[str, ...]:
    """Sentences; none for an adapter with the default options."""
    if not adapters.layers:
        return tuple(_tokens(adapters))
    if adapters.trains_layers:
        return tuple(_full_notes(recipe, adapters))
    notes = (*adapters.notes, *_step_size(recipe), *_groups(adapters), *_file(recipe, adapters))
    return (*notes, *_tokens(adapters))


def _step_size(recipe: Recipe) -> Iterator[str]:
    """How the scale of the update acts on the learning rate, unless all is at its default.

    Adam moves every number by the rate, whatever the gradient's size. So a scale on a product of n trained
    tensors acts as its n-th root on each: LyCORIS, arXiv 2309.14859, appendix, for n = 2.
    """
    config, rate, fields = recipe.adapter, recipe.training.learning_rate, AdapterConfig.model_fields
    if all(getattr(config, name) == fields[name].default for name in ("kind", "rank", "alpha", "rslora")):
        return
    divisor = f"sqrt({config.rank})" if config.rslora else f"{config.rank}"
    scale = scale_of(config.alpha, config.rank, sqrt_rank=config.rslora)
    scaled = f"{config.kind}: the update is scaled by {config.alpha:g} / {divisor} = {scale:.3g}"
    if abs(scale - 1) < 1e-6:
        yield f"{scaled}, so learning rates are as at any rank with alpha = rank"
    else:
        now = rate * float(scale ** (1 / ADAPTERS[config.kind].degree))
        learns = f"a learning rate of {rate:g} learns about as {now:.2g} does at a scale of 1"
        yield f"{scaled}, so with Adam {learns}; {rate * rate / now:.2g} would make up for it"


def _groups(adapters: AdapterSet) -> Iterator[str]:
    layers = adapters.layers
    ways = Counter((one.part, one.rank, one.scale, one.learning_rate, one.last_step) for one in layers)
    if len({way[1:] for way in ways}) < 2 and not any(way[4] for way in ways):
        return
    for (part, rank, scale, rate, last), count in ways.items():
        yield f"{part}: {plural(count, 'layer')} of rank {rank}, scale {scale:.3g}{_own(rate, last)}"


def _own(rate: float | None, last_step: int | None) -> str:
    own = "" if rate is None else f", learning rate {rate:g}"
    return own + ("" if last_step is None else f", until step {last_step}")


def _file(recipe: Recipe, adapters: AdapterSet) -> Iterator[str]:
    """If it is not the trained tensors themselves."""
    if all(layer.tensors.keys() == {"down", "up"} and not layer.constants for layer in adapters.layers):
        return
    exact = all(layer.factors() is not None for layer in adapters.layers)
    how = "of more ranks" if exact else "by singular values, as exact as its numbers"
    size = file_size(most_bytes(adapters, recipe.export.dtype))
    file = f"the file has it as plain LoRA {how}, which every UI loads"
    yield f"{file}: at most {size}, and verify says how exact it is"


def _tokens(adapters: AdapterSet) -> Iterator[str]:
    for word in dict.fromkeys(token.word for token in adapters.tokens):
        of_word = [token for token in adapters.tokens if token.word == word]
        first, parts = of_word[0], " and ".join(token.part for token in of_word)
        own = f"{plural(len(first.rows), 'vector')} in {parts}{_own(first.learning_rate, first.last_step)}"
        yield f"new token {word!r}: {own}; its file is {word}.safetensors"


def _full_notes(recipe: Recipe, adapters: AdapterSet) -> Iterator[str]:
    ways = Counter((one.part, one.learning_rate, one.last_step) for one in adapters.layers)
    for (part, rate, last), count in ways.items():
        yield f"{part}: {plural(count, 'layer')} trained themselves{_own(rate, last)}"
    yield _full_memory(recipe, adapters)
    rate = recipe.training.learning_rate
    if rate > FAST * USUAL_RATE and recipe.training.optimizer != "prodigy":
        usual = f"Stable Diffusion's own layers are trained with 1e-6 to {USUAL_RATE:g}"
        yield f"a learning rate of {rate:g} is one for adapters; {usual}"
    result = f"a whole base, a folder in {recipe.export.dtype} that diffusers loads"
    yield f"the result is {result}; the base itself stays as it is"


def _full_memory(recipe: Recipe, adapters: AdapterSet) -> str:
    weights = file_size(sum(tensor.nbytes for tensor in adapters.named_parameters().values()))
    states = f"{file_size(optimizer_bytes(recipe.training, adapters))} for {recipe.training.optimizer}"
    kept = file_size(sum(own.nbytes for layer in adapters.layers for own in layer.originals.values()))
    near = adapters.options.keep_base_on_device
    where = "on the device, because every step reads it" if near else "in main memory"
    held = f"{weights} of weights in float32, as much of gradients, and {states}"
    place = f"what the base has in their place, {kept}, stays {where}"
    return f"{adapters.num_parameters:,} numbers are trained: {held}; {place}"
