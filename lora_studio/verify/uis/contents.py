"""What is the matter with the tensors of a file's layers, in the rows of the table of UIs."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping

from lora_studio.families.layer_names import DENOISER, reads_text
from lora_studio.families.layer_names.spellings import TEXT
from lora_studio.families.layer_names.writers import Spelling
from lora_studio.lora_file.kinds.base import ALPHA, BIAS, MAGNITUDE
from lora_studio.lora_file.kinds.lora import MID
from lora_studio.lora_file.kinds.whole import NORM
from lora_studio.lora_file.layer import EIGHT_BITS, LoraLayer
from lora_studio.lora_file.lora_file import LoraFile
from lora_studio.lora_file.open import fits
from lora_studio.verify.uis import Base

_WITH_FACTORS = ("lora", "loha", "lokr")
PEFT = (Spelling.PEFT, Spelling.PEFT_MODULE)


def of_tensors(file: LoraFile, base: Base) -> dict[str, list[str]]:
    """Layers by what is unusual in their tensors, but for the numbers of those that are large."""
    layers, alphas = file.layers, file.alphas
    with_factors = {name: one for name, one in layers.items() if one.kind.name in _WITH_FACTORS}
    own = {name: one for name, one in with_factors.items() if one.spelling is Spelling.KOHYA}
    flat = {n: one for n, one in with_factors.items() if one.uses_alpha and one.spelling not in PEFT}
    return {
        "incomplete": [name for name, one in layers.items() if one.missing],
        "unfit": [name for name, one in layers.items() if _is_unfit(one, base)],
        "no_alpha": [name for name, one in own.items() if ALPHA not in one.entries and not one.missing],
        "alpha_shape": [name for name, one in flat.items() if one.shapes[ALPHA]],
        "alpha_zero": [name for name in flat if alphas.get(name) == 0],
        "other_strength": list(_of_other_strength(file)),
        "dimensions": [name for name, one in layers.items() if _is_of_other_dimensions(one, base)],
        "peft_alpha": [n for n, one in layers.items() if one.spelling in PEFT and ALPHA in one.entries],
        "eight_bits": [name for name, one in layers.items() if _dtypes(one) & set(EIGHT_BITS)],
        "long_numbers": [name for name, one in layers.items() if "float64" in _dtypes(one)],
        **_of_kinds(file, base),
        **_of_dora(file),
    }


def _dtypes(layer: LoraLayer) -> set[str]:
    return {entry.dtype for end, entry in layer.entries.items() if end != ALPHA}


def _of_kinds(file: LoraFile, base: Base) -> dict[str, list[str]]:
    of_kind: dict[str, dict[str, LoraLayer]] = {}
    for name, one in file.layers.items():
        of_kind.setdefault(one.kind.name, {})[name] = one
    lokr, full, oft = (of_kind.get(kind, {}) for kind in ("lokr", "full", "oft"))
    turned = {name: one for name, one in oft.items() if len(one.shapes.get("oft_blocks", ())) == 3}
    bound = [name for name, one in turned.items() if one.scale or "rescale" in one.entries]
    own = {name: one for name, one in file.layers.items() if one.spelling is Spelling.KOHYA}
    biases = {name: one for name, one in own.items() if BIAS in one.entries}
    norms = [n for n, one in own.items() if one.kind is NORM or (one.is_no_matrix and "diff" in one.entries)]
    is_told = any(_tells_base(one) for one in file.layers.values())
    return {
        "mid": [name for name, one in file.layers.items() if MID in one.entries],
        "loha_lokr": [*of_kind.get("loha", ()), *lokr],
        "lokr_unidentified": list(lokr) if base.has("lokr_unidentified") and not is_told else [],
        "lokr_tucker": [name for name, one in lokr.items() if "lokr_t2" in one.entries],
        "whole": [name for name, one in full.items() if name in own and not one.is_no_matrix],
        "bias": [name for name, one in biases.items() if "diff" not in one.entries],
        "bias_nowhere": [name for name in biases if name in full and name.endswith(_WITHOUT_BIAS)],
        "norms": norms,
        "turned": [name for name in turned if name not in bound],
        "turned_bound": bound,
        "glora": list(of_kind.get("glora", ())),
        "set_weight": list(of_kind.get("set", ())),
        "untried": [*(name for name in oft if name not in turned), *_of_untried_places(own)],
    }


def _of_untried_places(layers: Mapping[str, LoraLayer]) -> Iterator[str]:
    """Norms of text encoders, and embeddings: UIs were given the denoiser's norms alone."""
    for name, one in layers.items():
        if one.place is not None and one.is_beside and (one.place.part != DENOISER or not one.is_no_matrix):
            yield name


_WITHOUT_BIAS = ("_to_q", "_to_k", "_to_v")


def _tells_base(layer: LoraLayer) -> bool:
    """Whether InvokeAI, which looks at the width of text alone, knows the base by it."""
    reads = reads_text(layer.name) or (layer.name.startswith("lora_te_") and "_self_attn_" in layer.name)
    return reads and (layer.kind.name != "lokr" or layer.rank is None)


def _of_dora(file: LoraFile) -> dict[str, list[str]]:
    dora = {name: one for name, one in file.layers.items() if MAGNITUDE in one.entries}
    along_inputs = [name for name, one in dora.items() if one.shapes[MAGNITUDE][:1] == (1,)]
    return {
        "dora_inputs": along_inputs,
        "dora_outputs": [name for name in dora if name not in along_inputs],
        "dora_loha": [name for name, one in dora.items() if one.kind.name == "loha"],
        "dora_lokr": [name for name, one in dora.items() if one.kind.name == "lokr"],
    }


def _of_other_strength(file: LoraFile) -> Iterator[str]:
    """Layers to which diffusers gives another scale than theirs, as it does with kohya's names.

    It takes a part's commonest alpha for every layer whose own it does not find again: those of attention,
    whose names it changes meanwhile, those of a text encoder without `text_model`, as transformers 5 has it,
    and layers without alpha among others that have one.
    """
    parts: dict[str, dict[str, LoraLayer]] = {}
    for name, one in file.layers.items():
        if one.place is not None and one.spelling is Spelling.KOHYA and one.kind.name == "lora" and one.rank:
            parts.setdefault(one.place.part, {})[name] = one
    for part, layers in parts.items():
        alphas = {name: file.alphas[name] for name in layers if name in file.alphas}
        usual = Counter(alphas.values()).most_common(1)
        for name, one in layers.items() if usual else ():
            is_found = name in alphas and part != TEXT and "attn" not in name
            given = alphas[name] if is_found else usual[0][0]
            if not math.isclose(given / (one.rank or 1), one.scale, rel_tol=1e-6):
                yield name


def _is_unfit(layer: LoraLayer, base: Base) -> bool:
    """Whether its tensors do not fit together, or not to the base's layer."""
    if layer.missing or not layer.kind.tells_size or layer.is_no_matrix:
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
    if MID in layer.entries or (
        base.has("either_projection") and layer.name.endswith(("proj_in", "proj_out"))
    ):
        return False
    same = len(layer.shapes["lora_down.weight"]) == len(place.shape)
    return not same and math.prod(place.shape[2:]) == 1
