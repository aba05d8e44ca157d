"""What is the matter with a file, in the rows of the table of UIs."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator

from lora_studio.families.layer_names import (
    OTHER_DENOISER,
    OTHER_PREFIX,
    OUTSIDE,
    OWN,
    PUBLISHED,
    PublishedBase,
    PublishedLayer,
    reads_text,
)
from lora_studio.lora_file.kinds.lora import MID
from lora_studio.lora_file.layer import KOHYA, LETTERED, PEFT, LoraLayer
from lora_studio.lora_file.lora_file import LoraFile
from lora_studio.lora_file.open import fits
from lora_studio.tensor_file.header import Header
from lora_studio.verify.uis import Base, UiFinding

_ATTENTION = re.compile(r"(.*_self_attn_)(q|k|v|out)_proj")
_MODULE_PATH = re.compile(r"lora_te\d?_(encoder_layers|final_layer_norm)_.*")
_TRIED = ("lora", "loha", "lokr")  # kinds whose files were given to the loaders
MANY = 12  # unknown keys from which on some loaders refuse a file
LONG_HEADER = 1 << 20


def findings(file: LoraFile, base: Base, *, numbers: bool = True) -> list[UiFinding]:
    """Every row that is true of a LoRA file; without `numbers`, none of those that all of it is read for."""
    if not file.layers:
        return [UiFinding("nothing", file.extras)]
    found = {
        "not_finite": file.not_finite if numbers else [],
        "zero": file.zero if numbers and len(file.zero) == len(file.layers) else [],
        **_of_names(file, base),
        **_of_tensors(file, base),
    }
    rows = [UiFinding(row, names) for row, names in found.items() if names]
    return [*rows, *_of_encoders(file, base), *_of_file(file, base)]


def is_embedding(header: Header) -> bool:
    """Whether its tensors are called as those of a learned token are, for any base."""
    known = {key for layout in PUBLISHED for key in layout.vectors}
    return bool(header.entries) and header.entries.keys() <= known


def embedding_findings(header: Header) -> list[UiFinding]:
    unknown = [UiFinding("embedding_keys", list(header.entries))] if embedded_in(header) is None else []
    return [UiFinding("embedding_untried"), *unknown]


def embedded_in(header: Header) -> PublishedBase | None:
    """The published base that has encoders of its keys and widths."""
    widths = {key: one.shape[1] for key, one in header.entries.items() if len(one.shape) == 2}
    return next((layout for layout in PUBLISHED if layout.vectors == widths), None)


def _of_names(file: LoraFile, base: Base) -> dict[str, list[str]]:
    layers, places = file.layers, base.places
    unknown = [name for name in layers if name not in places]
    by_path = [name for name in unknown if _MODULE_PATH.fullmatch(name)]
    peft = [name for name in layers if layers[name].spelling == PEFT]
    kohya = {name: places[name].how for name in layers if name in places and name not in peft}
    other_names = [name for name, how in kohya.items() if how == OTHER_DENOISER]
    other_prefix = [name for name, how in kohya.items() if how == OTHER_PREFIX]
    keys = [key for name in unknown for key in layers[name].keys] + file.extras
    found = {
        "unknown_name": [name for name in unknown if name not in by_path],
        "module_path": by_path,
        "many_unknown": keys if len(keys) > MANY else [],
        "peft" if len(peft) == len(layers) else "peft_among": peft,
        "lettered": [name for name in layers if layers[name].spelling == LETTERED],
        "outside": [name for name, how in kohya.items() if how == OUTSIDE],
    }
    if base.has("two_encoders"):
        found["other_prefix_of_two"] = other_prefix
    else:
        found["other_prefix"] = other_prefix
        found["other_prefix_joined"] = [name for name in other_prefix if _is_joined(places[name])]
    if base.layout is not None and base.layout.original:
        own = any(how == OWN and places[name].encoder is None for name, how in kohya.items())
        found["mixed_names"] = other_names if own else []
        found["diffusers_upsampler"] = [name for name in other_names if "upsamplers" in name]
    else:
        found["original_names"] = other_names
    return found


def _of_tensors(file: LoraFile, base: Base) -> dict[str, list[str]]:
    """Layers by what is unusual in their tensors, but for the numbers of those that are large."""
    layers, alphas = file.layers, file.alphas
    with_factors = {name: one for name, one in layers.items() if one.kind.name in _TRIED}
    own = {name: one for name, one in with_factors.items() if one.spelling == KOHYA}
    flat = {n: one for n, one in with_factors.items() if "alpha" in one.entries and one.spelling != PEFT}
    kinds = {name: one.kind.name for name, one in layers.items()}
    lokr = [name for name, kind in kinds.items() if kind == "lokr"]
    dora = {name: one for name, one in layers.items() if "dora_scale" in one.entries}
    along_inputs = {name for name, one in dora.items() if one.shapes["dora_scale"][:1] == (1,)}
    return {
        "incomplete": [name for name, one in layers.items() if one.missing],
        "unfit": [name for name, one in layers.items() if _is_unfit(one, base)],
        "no_alpha": [name for name, one in own.items() if "alpha" not in one.entries and not one.missing],
        "alpha_shape": [name for name, one in flat.items() if one.shapes["alpha"]],
        "alpha_zero": [name for name in flat if alphas.get(name) == 0],
        "dimensions": [name for name, one in layers.items() if _is_of_other_dimensions(one, base)],
        "peft_alpha": [n for n, a in alphas.items() if layers[n].spelling == PEFT and a != layers[n].rank],
        "loha_lokr": [name for name, kind in kinds.items() if kind in ("loha", "lokr")],
        "lokr_unidentified": lokr if base.has("lokr_unidentified") else [],
        "dora_inputs": [name for name in dora if name in along_inputs],
        "dora_outputs": [name for name in dora if name not in along_inputs],
        "untried": [n for n, one in layers.items() if n not in with_factors or MID in one.entries],
    }


def _of_encoders(file: LoraFile, base: Base) -> Iterator[UiFinding]:
    kohya = [name for name, one in file.layers.items() if name in base.places and one.spelling != PEFT]
    inside = {name: found[1] for name in kohya if (found := _ATTENTION.fullmatch(name))}
    counts = Counter(inside.values())
    partial = [name for name, stem in inside.items() if counts[stem] < 4]
    if partial:
        yield UiFinding("part_of_attention", partial)
    if joined := [name for name in partial if _is_joined(base.places[name])]:
        yield UiFinding("part_of_joined", joined)
    if base.has("attention_unused") and (unused := [n for n in inside if not n.endswith("out_proj")]):
        yield UiFinding("attention_unused", unused)
    denoiser = [name for name in kohya if base.places[name].encoder is None]
    if kohya and not denoiser and base.has("encoder_alone"):
        yield UiFinding("encoder_alone", kohya)
    if denoiser and not any(map(reads_text, denoiser)):
        yield UiFinding("no_cross", denoiser)


def _of_file(file: LoraFile, base: Base) -> Iterator[UiFinding]:
    if file.extras:
        yield UiFinding("extra", file.extras)
    if file.bundled:
        yield UiFinding("bundled", file.bundled)
    has_alphas = any("alpha" in one.entries for one in file.layers.values())
    if "lora_adapter_metadata" in file.metadata and has_alphas:
        yield UiFinding("adapter_metadata")
    if not file.metadata:
        yield UiFinding("no_metadata")
    elif base.is_published and base.layout is not None and not file.version.startswith(base.layout.version):
        yield UiFinding("another_version")
    if file.header is not None and file.header.length > LONG_HEADER:
        yield UiFinding("long_header")


def _is_joined(place: PublishedLayer) -> bool:
    return place.encoder is not None and place.encoder.joined


def _is_unfit(layer: LoraLayer, base: Base) -> bool:
    """Whether its tensors do not fit together, or not to the base's layer."""
    if layer.missing or not layer.kind.tells_size:
        return False
    place = base.places.get(layer.name)
    if layer.size is None or place is None:
        return layer.size is None
    return base.is_published and not fits(layer.size, place.shape)


def _is_of_other_dimensions(layer: LoraLayer, base: Base) -> bool:
    """2-D for a convolution of 1 x 1, or 4-D for a linear layer."""
    place = base.places.get(layer.name)
    if layer.kind.name != "lora" or place is None or not base.is_published or layer.missing:
        return False
    if base.has("either_projection") and layer.name.endswith(("proj_in", "proj_out")):
        return False
    same = len(layer.shapes["lora_down.weight"]) == len(place.shape)
    return not same and math.prod(place.shape[2:]) == 1
