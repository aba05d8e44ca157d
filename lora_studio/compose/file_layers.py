"""LoRA files in every spelling there is, read into layers with one set of names.

kohya's and LyCORIS' (`lora_unet_..._to_q.lora_down.weight`, `hada_w1_a`, `lokr_w1`, `dora_scale`, `diff`,
`oft_blocks`), PEFT's (`unet....to_q.lora_A.weight`) and diffusers' older ones (`processor.to_q_lora.down`,
`lora_linear_layer.up`), with and without wrappers and alphas. A key that is none of these is an error.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from lora_studio.compose.layers import OPTIONAL, REQUIRED, FileLayer
from lora_studio.data.names import some
from lora_studio.errors import StudioError, reason_of
from lora_studio.export.opening import open_tensors
from lora_studio.families.layer_names import Layout, Place, layout_of, place_of

_ENDINGS: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern + "$"), name)
    for pattern, name in (
        (r"\.lora_(down|up|mid)(?:\.weight)?", r"\1"),
        (r"\.lora_A(?:\.[^.]+)?(?:\.weight)", "down"),
        (r"\.lora_B(?:\.[^.]+)?(?:\.weight)", "up"),
        (r"(?:\.|_)lora(?:_linear_layer)?\.(down|up)(?:\.weight)", r"\1"),
        (r"\.(?:lora_magnitude_vector(?:\.[^.]+)?(?:\.weight)?|dora_scale)", "magnitude"),
        (r"\.((?:hada|lokr)_(?:w[12](?:_[ab])?|t[12]))(?:\.weight)?", r"\1"),
        (r"\.(alpha|diff|oft_blocks|rescale)", r"\1"),
        (r"\.(diff_b|w_norm|b_norm)", r"\1"),
    )
)
_VECTORS = ("magnitude", "rescale")  # may be
_WITHOUT_WEIGHT = {"diff_b", "w_norm", "b_norm"}
_ADAPTER_METADATA, _PEFT_CONFIG = "lora_adapter_metadata", "adapter_config.json"


@dataclass(frozen=True)
class FileLayers:
    """A file's layers by their places, and what it says about itself."""

    path: Path
    layers: dict[Place, FileLayer]
    metadata: dict[str, str]
    layout: Layout  # of the base that it is for


class Said(NamedTuple):
    """What a file, or the configuration beside it, says of scales apart from its tensors."""

    alphas: Mapping[Place | str, float]  # of single layers, and of whole parts
    by_square_root: frozenset[str]  # parts whose alphas count against the root of the rank


def read_layers(path: Path) -> FileLayers:
    """Every layer as the file has it. Raises StudioError as `read_any`."""
    tensors, metadata = open_tensors(path)
    found: dict[Place, dict[str, Tensor]] = {}
    keys: dict[Place, str] = {}
    unknown: list[str] = []
    for key, tensor in tensors.items():
        stem, end = _split(key)
        place = place_of(stem) if end else None
        if place is None or end is None:
            unknown.append(key)
        elif end in found.setdefault(place, {}):
            raise StudioError(f"{path.name} has {stem} twice, in two spellings; it was put together wrongly.")
        else:
            found[place][end] = tensor
            keys.setdefault(place, stem)
    if unknown or not found:
        what = f"{len(unknown)} of {len(tensors)} tensors that no LoRA has: {some(unknown)}"
        raise StudioError(f"{path.name} holds {what if unknown else 'nothing'}; it is not converted.")
    said = _said_alphas(path, metadata)
    layers = {place: _layer(path, place, keys[place], ends, said) for place, ends in found.items()}
    widths = {
        layer.tensors["down"].shape[1]
        for place, layer in layers.items()
        if place.path.endswith(("attn2.to_k", "attn2.to_v")) and "down" in layer.tensors
    }
    version = metadata.get("ss_base_model_version", "")
    return FileLayers(path, layers, metadata, layout_of(layers, widths=widths, version=version))


def _split(key: str) -> tuple[str, str | None]:
    """A key without its ending, and what that means; None if it means nothing."""
    for pattern, name in _ENDINGS:
        match = pattern.search(key)
        if match:
            return key[: match.start()], match.expand(name)
    return key, None


def _layer(path: Path, place: Place, key: str, ends: dict[str, Tensor], said: Said) -> FileLayer:
    """Raises StudioError if it is not whole, or more than a change of a weight."""
    if beside := sorted(_WITHOUT_WEIGHT & ends.keys()):
        raise StudioError(
            f"{path.name} also changes what is no weight of a layer ({key}.{beside[0]}), which plain LoRA "
            "cannot; it is not converted."
        )
    kind = next((one for one, needed in REQUIRED.items() if any(e in ends for e in sum(needed, ()))), None)
    missing = [] if kind is None else [one[0] for one in REQUIRED[kind] if not any(e in ends for e in one)]
    values = {end: tensor for end, tensor in ends.items() if end != "alpha"}
    strange = [end for end in values if kind and end not in sum(REQUIRED[kind], OPTIONAL[kind])]
    if strange:
        raise StudioError(
            f"{path.name}: {key} is {kind} and has {strange[0]} beside that; it is not converted."
        )
    if kind is None or missing or (kind == "oft" and values["oft_blocks"].ndim != 3):
        what = f"lacks its {', '.join(missing)}" if missing else "is of a kind that is not known"
        raise StudioError(f"{path.name}: {key} {what}; it is not converted.")
    for end, one in values.items():
        if not one.numel() or (one.ndim < 2 and end not in _VECTORS):
            raise StudioError(
                f"{path.name}: {end} of {key} has the shape {list(one.shape)}; it is not converted."
            )
    if not all(one.isfinite().all() for one in ends.values()):
        raise StudioError(f"{path.name}: {key} is not finite; it is not converted.")
    alpha = float(ends["alpha"].item()) if "alpha" in ends and ends["alpha"].numel() == 1 else None
    if alpha is None and kind == "lora":
        alpha = said.alphas.get(place, said.alphas.get(place.part))
        if alpha is not None and place.part in said.by_square_root:  # rsLoRA: alpha / sqrt(rank)
            alpha *= len(values["down"]) ** 0.5
    named = {end.removeprefix("hada_").removeprefix("lokr_"): tensor for end, tensor in values.items()}
    return FileLayer(place, key, kind, named, alpha)


def _said_alphas(path: Path, metadata: Mapping[str, str]) -> Said:
    """Alphas that PEFT and diffusers keep apart from the tensors, of single layers and of whole parts."""
    beside = path.with_name(_PEFT_CONFIG)
    try:
        if _ADAPTER_METADATA in metadata:
            values: dict[str, Any] = json.loads(metadata[_ADAPTER_METADATA])
        elif path.stem == "adapter_model" and beside.is_file():
            values = json.loads(beside.read_text("utf-8"))
        else:
            return Said({}, frozenset())
        found: dict[Place | str, float] = {}
        roots = set()
        for key, value in values.items():
            part, _, option = key.rpartition(".")
            if option == "use_rslora" and value:
                roots.add(part or "unet")
            if option == "lora_alpha":
                found[part or "unet"] = float(value)
            for layer, alpha in (value or {}).items() if option == "alpha_pattern" else ():
                if place := place_of(f"{part}.{layer.strip('^$')}".lstrip(".")):
                    found[place] = float(alpha)
    except (ValueError, TypeError, AttributeError) as error:
        raise StudioError(
            f"{path.name} says its alphas in a form that cannot be read ({reason_of(error)})."
        ) from None
    return Said(found, frozenset(roots))
