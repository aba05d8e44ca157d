"""What is the matter with a file, in the rows of the table of UIs."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping

from lora_studio.families.layer_names import (
    KNOWN,
    OTHER_DENOISER,
    OTHER_PREFIX,
    OUTSIDE,
    OWN,
    SIZES_BY_PATH,
    PublishedBase,
    PublishedLayer,
    is_attention,
    reads_text,
)
from lora_studio.families.layer_names.published_transformers import PublishedTransformer
from lora_studio.families.layer_names.writers import Spelling
from lora_studio.lora_file.layer import LoraLayer
from lora_studio.lora_file.lora_file import LoraFile
from lora_studio.tensor_file.header import Header
from lora_studio.verify.uis import Base
from lora_studio.verify.uis.contents import PEFT, of_tensors
from lora_studio.verify.uis.table import UiFinding
from lora_studio.verify.uis.transformers import of_transformer

_ATTENTION = re.compile(r"(.*_self_attn_)(q|k|v|out)_proj")
_MODULE_PATH = re.compile(r"lora_te\d?_(encoder_layers|final_layer_norm)_.*")
MANY = 12  # unknown keys from which on some loaders refuse a file
LONG_HEADER = 1 << 20


def findings(file: LoraFile, base: Base, *, numbers: bool = True) -> list[UiFinding]:
    """Every row that is true of a LoRA file; without `numbers`, none of those that all of it is read for."""
    if not file.layers:
        return [UiFinding("nothing", file.extras)]
    doubles = [pair for pair in file.doubles() if numbers and not pair[0].equals(pair[1])]
    found = {
        "not_finite": file.not_finite if numbers else [],
        "zero": file.zero if numbers and len(file.zero) == len(file.layers) else [],
        "doubled": [one.written for _, one in doubles],
    }
    of_base = [UiFinding("in_no_ui")] if base.has("in_no_ui") else []
    if isinstance(base.layout, PublishedTransformer):
        found |= _of_any_file(file, base)
        rows = [UiFinding(row, names) for row, names in found.items() if names]
        return [*_part(file), *rows, *of_transformer(file, base.layout), *_of_file(file, base), *of_base]
    found |= {**_of_names(file, base), **of_tensors(file, base)}
    rows = [UiFinding(row, names) for row, names in found.items() if names]
    return [*_part(file), *rows, *_of_encoders(file, base), *_of_file(file, base), *of_base]


def _part(file: LoraFile) -> list[UiFinding]:
    return [UiFinding("part", file.shard.others)] if file.shard else []


_OF_ANY = (  # rows of tensors that are true whatever the family
    *("incomplete", "unfit", "no_alpha", "alpha_shape", "alpha_zero", "eight_bits", "long_numbers"),
    *("glora", "set_weight", "untried"),
)


def _of_any_file(file: LoraFile, base: Base) -> dict[str, list[str]]:
    """Of a transformer family's file, what is so with files of every family."""
    known = {**of_tensors(file, base)}
    unknown = [name for name, one in file.layers.items() if one.place is None]
    unknown += [
        name
        for name, one in file.layers.items()
        if one.place is not None and name not in base.places and not one.is_beside
    ]
    return {"unknown_name": unknown} | {row: known[row] for row in _OF_ANY}


def is_embedding(header: Header) -> bool:
    """Whether its tensors are called as those of a learned token are, for any base."""
    known = {key for layout in KNOWN for key in layout.vectors}
    return bool(header.entries) and header.entries.keys() <= known


def embedding_findings(header: Header) -> list[UiFinding]:
    """For a learned token: not tried everywhere, of keys that no base has, or of the pocket base."""
    found, base = [UiFinding("embedding_untried")], embedded_in(header)
    if base is None:
        found.append(UiFinding("embedding_keys", list(header.entries)))
    elif "in_no_ui" in base.quirks:
        found.append(UiFinding("in_no_ui"))
    return found


def embedded_in(header: Header) -> PublishedBase | None:
    """The published base, or the pocket base, that has encoders of its keys and widths."""
    widths = {key: one.shape[1] for key, one in header.entries.items() if len(one.shape) == 2}
    return next((layout for layout in KNOWN if layout.vectors == widths), None)


def _of_names(file: LoraFile, base: Base) -> dict[str, list[str]]:
    layers, places = file.layers, base.places
    unknown = [name for name, one in layers.items() if name not in places and not one.is_beside]
    by_path = [name for name in unknown if _MODULE_PATH.fullmatch(name)]
    kohya = {name: places[name].how for name, one in layers.items() if name in places and is_kohya(one)}
    other_names = [name for name, how in kohya.items() if how == OTHER_DENOISER]
    other_prefix = [name for name, how in kohya.items() if how == OTHER_PREFIX]
    keys = [key for name in unknown for key in layers[name].keys] + file.extras
    found = {
        "unknown_name": [name for name in unknown if name not in by_path],
        "module_path": by_path,
        "many_unknown": keys if len(keys) > MANY else [],
        **_of_spellings(layers),
        "outside": [name for name, how in kohya.items() if how == OUTSIDE],
        "sizes_by_path": [name for name in kohya if SIZES_BY_PATH in name],
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
    unread = [key for name in found["peft_attention"] for key in layers[name].keys] + file.bundled
    unread += [key for one in layers.values() if one.kind.name in _UNREAD for key in one.keys]
    found["many_unread"] = unread if len(keys) <= MANY < len(keys + unread) else []
    return found


_UNREAD = ("oft", "set")  # kinds of which Forge counts all tensors as unknown


def is_kohya(layer: LoraLayer) -> bool:
    return layer.spelling in (Spelling.KOHYA, Spelling.LETTERED)


def _of_spellings(layers: Mapping[str, LoraLayer]) -> dict[str, list[str]]:
    of: dict[Spelling, list[str]] = {spelling: [] for spelling in Spelling}
    for name, one in layers.items():
        is_judged_by_layer = is_kohya(one) or one.spelling in PEFT
        of[one.spelling].append(name if is_judged_by_layer else one.written)
    peft, by_module = of[Spelling.PEFT] + of[Spelling.PEFT_MODULE], of[Spelling.PEFT_MODULE]
    return {
        "peft" if len(peft) == len(layers) else "peft_among": peft,
        "peft_attention": [name for name in peft if is_attention(name)],
        "peft_module": by_module,
        "peft_module_second": [name for name in by_module if name.startswith("lora_te2_")],
        "lettered": of[Spelling.LETTERED],
        "processor": of[Spelling.PROCESSOR],
        "bare_processor": of[Spelling.BARE_PROCESSOR],
        "comfy": of[Spelling.COMFY],
        "lycoris": of[Spelling.LYCORIS],
        "untried_names": of[Spelling.OTHER],
    }


def _of_encoders(file: LoraFile, base: Base) -> Iterator[UiFinding]:
    kohya = [name for name, one in file.layers.items() if name in base.places and is_kohya(one)]
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
    if file.scalars:
        yield UiFinding("scalars", file.scalars)
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
