"""What the options of [adapter] do, put into words before it starts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from lora_studio.adapters import ADAPTERS
from lora_studio.adapters.adapter_set import AdapterSet
from lora_studio.adapters.rules import scale_of
from lora_studio.lora_file.plain import most_bytes
from lora_studio.recipe import Recipe
from lora_studio.recipe.adapter import AdapterConfig
from lora_studio.training.optimizers.choose import optimizer_bytes
from lora_studio.training.prepare.adapters import trains_layers


def adapter_notes(recipe: Recipe, adapters: AdapterSet) -> tuple[str, ...]:
    """Sentences; none for an adapter as it comes."""
    if not adapters.layers:
        return tuple(_tokens(adapters))
    if trains_layers(recipe):
        return tuple(full_notes(recipe, adapters))
    notes = (*adapters.notes, *_step_size(recipe), *_groups(adapters), *_file(recipe, adapters))
    return (*notes, *_tokens(adapters))


def effective_rate(config: AdapterConfig, rate: float) -> float:
    """The learning rate that learns as fast with a scale of 1.

    Adam moves every number by the rate, whatever the gradient's size. So a scale on a product of n trained
    tensors acts as its n-th root on each: LyCORIS, arXiv 2309.14859, appendix, for n = 2.
    """
    return rate * float(_scale(config) ** (1 / ADAPTERS[config.kind].degree))


def _scale(config: AdapterConfig) -> float:
    return scale_of(config.alpha, config.rank, sqrt_rank=config.rslora)


def _step_size(recipe: Recipe) -> Iterator[str]:
    """Only where something is not as it comes."""
    config, rate = recipe.adapter, recipe.training.learning_rate
    fields = AdapterConfig.model_fields
    if all(getattr(config, name) == fields[name].default for name in ("kind", "rank", "alpha", "rslora")):
        return
    divisor = f"sqrt({config.rank})" if config.rslora else f"{config.rank}"
    scale = _scale(config)
    said = f"{config.kind}: the update is scaled by {config.alpha:g} / {divisor} = {scale:.3g}"
    if abs(scale - 1) < 1e-6:
        yield f"{said}, so learning rates are as at any rank with alpha = rank"
    else:
        now = effective_rate(config, rate)
        yield (
            f"{said}, so with Adam a learning rate of {rate:g} learns about as {now:.2g} does at a scale of "
            f"1; {rate * rate / now:.2g} would make up for it"
        )


def _groups(adapters: AdapterSet) -> Iterator[str]:
    """Layers that are trained in different ways, counted."""
    ways = Counter(
        (one.part, one.rank, one.scale, one.learning_rate, one.last_step) for one in adapters.layers
    )
    if len({way[1:] for way in ways}) < 2 and not any(way[4] for way in ways):
        return
    for (part, rank, scale, rate, last), count in ways.items():
        own = "" if rate is None else f", learning rate {rate:g}"
        until = "" if last is None else f", until step {last}"
        yield f"{part}: {count} layers of rank {rank}, scale {scale:.3g}{own}{until}"


def _file(recipe: Recipe, adapters: AdapterSet) -> Iterator[str]:
    """If it is not the trained tensors themselves."""
    if all(layer.tensors.keys() == {"down", "up"} and not layer.constants for layer in adapters.layers):
        return
    exact = all(layer.factors() is not None for layer in adapters.layers)
    how = "of more ranks" if exact else "by singular values, as exact as its numbers"
    most = most_bytes(adapters, recipe.export.dtype) / 1e6
    yield (
        f"the file has it as plain LoRA {how}, which every UI loads: at most {most:,.1f} MB, and "
        "verify says how exact it is"
    )


def _tokens(adapters: AdapterSet) -> Iterator[str]:
    """Each new one: where it lies, how large it is and how it learns."""
    for word in dict.fromkeys(token.word for token in adapters.tokens):
        parts = [token for token in adapters.tokens if token.word == word]
        count = len(parts[0].rows)
        vectors = "1 vector" if count == 1 else f"{count} vectors"
        until = "" if parts[0].last_step is None else f", until step {parts[0].last_step}"
        yield (
            f"new token {word!r}: {vectors} in {' and '.join(token.part for token in parts)}, "
            f"learning rate {parts[0].learning_rate:g}{until}; its file is {word}.safetensors"
        )


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
    where = (
        "on the device, because every step asks it"
        if adapters.options.keep_base_on_device
        else "in main memory"
    )
    return (
        f"{adapters.num_parameters:,} numbers are trained: {weights:.3g} GB of weights in float32, as much "
        f"of gradients, and {states:.3g} GB for {recipe.training.optimizer}; what the base has in their "
        f"place, {kept:.3g} GB, stays {where}"
    )
