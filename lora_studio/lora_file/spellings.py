"""LoRA files in every spelling there is, read into layers with one set of names.

kohya's and LyCORIS' (`lora_te_..._q_proj.lora_down.weight`, `hada_w1_a`, `lokr_w1`, `dora_scale`, `diff`,
`oft_blocks`), PEFT's (`<part>....to_q.lora_A.weight`) and diffusers' older ones (`processor.to_q_lora.down`,
`lora_linear_layer.up`), with and without wrappers and alphas. A key that is none of these is an error.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lora_studio.errors import StudioError, preview_names, reason_of
from lora_studio.families.base import ModelFamily
from lora_studio.families.layer_names import DENOISER, reads_text
from lora_studio.families.layer_names.spellings import KohyaLayout, LayerPlace, kernel_of, layout_of, place_of
from lora_studio.lora_file.header import open_tensors
from lora_studio.lora_file.layers import OPTIONAL, REQUIRED, FileLayer
from lora_studio.lora_file.lora_file import LoraFile, base_layers
from lora_studio.lora_file.plain import Plain

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
    layers: dict[LayerPlace, FileLayer]
    metadata: dict[str, str]
    layout: KohyaLayout  # of the base that it is for


class DeclaredAlphas(NamedTuple):
    """What a file, or the configuration beside it, says of scales apart from its tensors."""

    alphas: Mapping[LayerPlace | str, float]  # of single layers, and of whole parts
    by_square_root: frozenset[str]  # parts whose alphas count against the root of the rank


def read_layers(path: Path) -> FileLayers:
    """Every layer as the file has it. Raises StudioError as `read_any`."""
    tensors, metadata = open_tensors(path)
    found: dict[LayerPlace, dict[str, Tensor]] = {}
    keys: dict[LayerPlace, str] = {}
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
        what = f"{len(unknown)} of {len(tensors)} tensors that no LoRA has: {preview_names(unknown)}"
        raise StudioError(f"{path.name} holds {what if unknown else 'nothing'}; it is not converted.")
    said = _said_alphas(path, metadata)
    layers = {place: _layer(path, place, keys[place], ends, said) for place, ends in found.items()}
    widths = {
        layer.tensors["down"].shape[1]
        for place, layer in layers.items()
        if reads_text(place.path) and "down" in layer.tensors
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


def _layer(
    path: Path, place: LayerPlace, key: str, ends: dict[str, Tensor], said: DeclaredAlphas
) -> FileLayer:
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


def _said_alphas(path: Path, metadata: Mapping[str, str]) -> DeclaredAlphas:
    """Alphas that PEFT and diffusers keep apart from the tensors, of single layers and of whole parts."""
    beside = path.with_name(_PEFT_CONFIG)
    try:
        if _ADAPTER_METADATA in metadata:
            values: dict[str, Any] = json.loads(metadata[_ADAPTER_METADATA])
        elif path.stem == "adapter_model" and beside.is_file():
            values = json.loads(beside.read_text("utf-8"))
        else:
            return DeclaredAlphas({}, frozenset())
        found: dict[LayerPlace | str, float] = {}
        roots = set()
        for key, value in values.items():
            part, _, option = key.rpartition(".")
            if option == "use_rslora" and value:
                roots.add(part or DENOISER)
            if option == "lora_alpha":
                found[part or DENOISER] = float(value)
            for layer, alpha in (value or {}).items() if option == "alpha_pattern" else ():
                if place := place_of(f"{part}.{layer.strip('^$')}".lstrip(".")):
                    found[place] = float(alpha)
    except (ValueError, TypeError, AttributeError) as error:
        raise StudioError(
            f"{path.name} says its alphas in a form that cannot be read ({reason_of(error)})."
        ) from None
    return DeclaredAlphas(found, frozenset(roots))


@dataclass(frozen=True)
class PlainLayers:
    """A file's layers as plain LoRA."""

    layers: dict[LayerPlace, Plain]
    names: dict[LayerPlace, str]  # that UIs know them by
    file: FileLayers  # as it was read


def read_any(path: Path, *, base: ModelFamily | None = None) -> LoraFile:
    """A file in any spelling and of any kind as plain LoRA with the names that UIs know.

    `alpha` is float32 without dimensions. `base` is needed for kinds whose change depends on its weights.
    Raises StudioError for what is no LoRA, names unknown keys, and says which layers are not whole.
    """
    found = read_plain_layers(path, base=base)
    layers = {
        found.names[place]: {
            "lora_down.weight": one.down,
            "lora_up.weight": one.up,
            "alpha": torch.tensor(one.scale * len(one.down)),
        }
        for place, one in found.layers.items()
    }
    return LoraFile(path, layers, [], found.file.metadata)


def read_plain_layers(path: Path, *, base: ModelFamily | None = None) -> PlainLayers:
    """Every layer as plain LoRA. Raises as `read_any`."""
    file = read_layers(path)
    known = {} if base is None else base_layers(base)
    names = {place: _name(place, file, base) for place in file.layers}
    if unknown := [name for name in names.values() if base is not None and name not in known]:
        raise StudioError(
            f"{path.name}: {len(unknown)} of its {len(names)} layers are not in this base, "
            f"first {unknown[0]}; it is for another kind of base."
        )
    linear = _projects_linearly(file)
    plain = {}
    for place, layer in file.layers.items():
        name = names[place]
        weight = known[name].weight if name in known else None
        if layer.needs_base and weight is None:
            raise StudioError(
                f"{path.name} holds {layer.key}, whose change depends on the base's weights; make plain LoRA "
                f"of it with `lora-studio convert {path.name} --to kohya --base BASE`, which is told them."
            )
        try:
            one = layer.plain(weight)
            plain[place] = _with_sides(one, place, None if weight is None else weight.shape, linear=linear)
        except (RuntimeError, ArithmeticError, LookupError, ValueError):  # torch's, of shapes and numbers
            raise StudioError(
                f"{path.name}: the tensors of {layer.key} do not fit together; get the file again from where "
                "it came."
            ) from None
    return PlainLayers(plain, names, file)


def _name(place: LayerPlace, file: FileLayers, base: ModelFamily | None) -> str:
    """What UIs call it; as the base says it, if there is one: a miniature may count its blocks otherwise."""
    try:
        return file.layout.name(place) if base is None else base.ui_name(*place)
    except (KeyError, ValueError):
        raise StudioError(
            f"{file.path.name}: {file.layers[place].key} is a layer of a part that this kind of base has not."
        ) from None


def _projects_linearly(file: FileLayers) -> bool | None:
    """Whether the base's projections are linear layers and not convolutions; None if nothing tells."""
    widths = {
        len(layer.tensors["down"][0])
        for place, layer in file.layers.items()
        if reads_text(place.path) and "down" in layer.tensors
    }
    if file.layout.original or 1024 in widths:
        return True
    return False if 768 in widths else None


def _with_sides(plain: Plain, place: LayerPlace, shape: torch.Size | None, *, linear: bool | None) -> Plain:
    """With as many sides as the layer's weight has: some tools write linear layers as convolutions."""
    down, up = plain.down, plain.up
    if shape is None:
        last, kernel = place.path.rpartition(".")[2], kernel_of(place.path)
        is_projection = last in ("proj_in", "proj_out")
        if kernel == 1 and is_projection and linear is None:
            return plain
        convolved = kernel > 1 or last == "conv_shortcut" or (is_projection and linear is False)
        inputs = down[0].numel() // kernel**2
        sides: tuple[int, ...] = (kernel, kernel) if convolved else ()
    else:
        inputs, sides = int(shape[1]), tuple(shape[2:])
    up = up.reshape(up.shape[0], -1, *(1 for _ in sides))
    return plain._replace(down=down.reshape(len(down), inputs, *sides), up=up)
