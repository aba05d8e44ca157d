"""Published bases at their published sizes, from what the package knows of them: no file, random weights.

Within FakeTensorMode or on the meta device they take no memory; on a GPU they are made where they are used.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any, Literal

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from lora_studio.families import FAMILIES
from lora_studio.families.base import Conditioning, ModelFamily
from lora_studio.families.loading.single_file import part_as_configured
from lora_studio.families.original.configurations import Configuration, tokenizers_for
from lora_studio.families.original.published import PLACES, PUBLISHED, published_configurations

NARROW, GROUPS = 32, 8  # channels of a narrow twin's layers, and groups of its norms
Build = Literal["published", "narrow", "tiny"]
TINY_SIDE = 128  # pixels: with fewer, attention at the lowest level would have one place to look at


def published_at(resolution: int) -> str:
    """The hub's id of the first published base that was trained at this many pixels a side."""
    return next(name for name, one in PUBLISHED.items() if one.kind.sides[one.prediction] == resolution)


def narrow(values: Mapping[str, Any]) -> Configuration:
    """A denoiser's configuration with as many layers, each so narrow that computing costs next to nothing."""
    levels = len(values["block_out_channels"])
    found = dict(values) | {
        "block_out_channels": (NARROW,) * levels,
        "attention_head_dim": 1,
        "cross_attention_dim": NARROW,
        "norm_num_groups": GROUPS,
    }
    if values["addition_embed_type"]:
        ids = 6 * NARROW
        found |= {"addition_time_embed_dim": NARROW, "projection_class_embeddings_input_dim": NARROW + ids}
    return found


def tiny(found: Mapping[str, Configuration], denoiser: str) -> dict[str, Configuration]:
    """A whole base's configurations with as few layers as can be, and TINY_SIDE for its native side."""
    made: dict[str, Configuration] = {name: dict(values) for name, values in found.items()}
    encoders = [name for name in found if name.startswith("text_encoder")]
    for name in encoders:
        made[name] |= {"hidden_size": NARROW, "intermediate_size": 2 * NARROW, "projection_dim": NARROW}
        made[name] |= {"num_hidden_layers": 2, "num_attention_heads": 1}
    made["vae"] |= {"block_out_channels": (8,) * 4, "layers_per_block": 1, "norm_num_groups": 4}
    made["vae"]["sample_size"] = TINY_SIDE
    wanted = {
        "cross_attention_dim": NARROW * len(encoders),
        "layers_per_block": 1,
        "sample_size": TINY_SIDE // 8,
    }
    depths = {"transformer_layers_per_block": 1} if "transformer_layers_per_block" in found[denoiser] else {}
    made[denoiser] = narrow(found[denoiser]) | wanted | depths
    return made


def published(
    model: str,
    *,
    dtype: torch.dtype = torch.float32,
    size: Build = "published",
    made: Sequence[str] | None = None,
) -> ModelFamily:
    """The base with this id in `dtype`, where torch makes tensors just now; narrow: its denoiser is.

    `made`: the parts that are; the others have shapes alone. The VAE is float32, as the trainer has it.
    """
    found = published_configurations(PUBLISHED[model])
    chosen = next(FAMILIES[one] for one in FAMILIES.names() if FAMILIES[one].recognises(found))
    if size == "narrow":
        found[chosen.denoiser] = narrow(found[chosen.denoiser])
    elif size == "tiny":
        found = tiny(found, chosen.denoiser)
    parts: dict[str, nn.Module] = {}
    for name in (one for one in chosen.needs if one != "scheduler" and not one.startswith("tokenizer")):
        default = torch.get_default_dtype()
        torch.set_default_dtype(torch.float32 if name == "vae" else dtype)
        try:
            with nullcontext() if made is None or name in made else torch.device("meta"):
                parts[name] = part_as_configured(name, found[name])
        finally:
            torch.set_default_dtype(default)
    tokenizers = tokenizers_for(PUBLISHED[model].kind, found)
    return chosen(parts, tokenizers, source="", scheduler=found["scheduler"])


def conditioning_for(family: ModelFamily, batch: int) -> Conditioning:
    """As the family's text encoders would give it, of zeros in the denoiser's dtype."""
    denoiser: Any = family.parts[family.denoiser]
    config, dtype = denoiser.config, next(denoiser.parameters()).dtype
    found = {"text": torch.zeros(batch, PLACES, config.cross_attention_dim, dtype=dtype)}
    if config.addition_embed_type:
        pooled = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
        found["pooled"] = torch.zeros(batch, pooled, dtype=dtype)
    return found


@contextmanager
def fake_tensors() -> Iterator[None]:
    """Within it tensors have shapes alone, and modules that are cast keep their parameters' identity.

    torch refuses to swap a parameter that is weakly referenced, which every fake tensor is.
    """
    library: Any = torch.utils
    before = library.weakref
    library.weakref = SimpleNamespace(**vars(weakref) | {"getweakrefs": lambda tensor: []})
    try:
        with FakeTensorMode(allow_non_fake_inputs=True):
            yield
    finally:
        library.weakref = before
