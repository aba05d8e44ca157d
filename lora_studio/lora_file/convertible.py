"""A LoRA file of any tool, kind and spelling put into plain LoRA; a key that no LoRA has is an error."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch

from lora_studio.errors import StudioError, preview_names, reason_of
from lora_studio.families.base import ModelFamily
from lora_studio.families.layer_names import DENOISER, reads_text
from lora_studio.families.layer_names.spellings import KohyaLayout, LayerPlace, kernel_of, layout_of, place_of
from lora_studio.lora_file.factors import PlainLora
from lora_studio.lora_file.kinds import KINDS
from lora_studio.lora_file.kinds.base import BESIDE
from lora_studio.lora_file.kinds.lora import DOWN
from lora_studio.lora_file.layer import Held, LoraLayer, Stored
from lora_studio.lora_file.lora_file import ENDINGS, LoraFile, any_key, base_layers
from lora_studio.tensor_file.header import Header, read_header

_WITHOUT_WEIGHT = {"diff_b", "w_norm", "b_norm"}
_ADAPTER_METADATA, _PEFT_CONFIG = "lora_adapter_metadata", "adapter_config.json"


@dataclass(frozen=True)
class PlacedLayers:
    path: Path
    layers: dict[LayerPlace, LoraLayer]  # named as in the file
    metadata: dict[str, str]
    layout: KohyaLayout  # of the base that it is for


class DeclaredAlphas(NamedTuple):
    """What a file, or the configuration beside it, says of scales apart from its tensors."""

    alphas: Mapping[LayerPlace | str, float]  # of single layers, and of whole parts
    by_square_root: frozenset[str]  # parts whose alphas count against the root of the rank


def read_places(path: Path) -> PlacedLayers:
    """Every layer as the file has it. Raises StudioError as `read_any`."""
    header = read_header(path)
    found: dict[LayerPlace, dict[str, str]] = {}
    stems: dict[LayerPlace, str] = {}
    unknown: list[str] = []
    for key in header.entries:
        stem, end = any_key(key) or (key, "")
        place = place_of(stem) if end else None
        if place is None:
            unknown.append(key)
        elif end in found.setdefault(place, {}):
            raise StudioError(f"{path.name} has {stem} twice, in two spellings; it was put together wrongly.")
        else:
            found[place][end] = key
            stems.setdefault(place, stem)
    if unknown or not found:
        what = f"{len(unknown)} of {len(header.entries)} tensors that no LoRA has: {preview_names(unknown)}"
        raise StudioError(f"{path.name} holds {what if unknown else 'nothing'}; it is not converted.")
    said = _said_alphas(path, header.metadata)
    layers = {place: _layer(header, place, stems[place], keys, said) for place, keys in found.items()}
    version = header.metadata.get("ss_base_model_version", "")
    layout = layout_of(layers, widths=_text_widths(layers), version=version)
    return PlacedLayers(path, layers, header.metadata, layout)


def _text_widths(layers: Mapping[LayerPlace, LoraLayer]) -> set[int]:
    reading = [one.shapes for place, one in layers.items() if reads_text(place.path)]
    return {shapes[DOWN][1] for shapes in reading if DOWN in shapes}


def _layer(
    header: Header, place: LayerPlace, stem: str, keys: Mapping[str, str], said: DeclaredAlphas
) -> LoraLayer:
    """Raises StudioError if it is not complete, or more than a change of a weight."""
    name = header.path.name
    if beside := sorted(_WITHOUT_WEIGHT & keys.keys()):
        raise StudioError(
            f"{name} also changes what is no weight of a layer ({stem}.{beside[0]}), which plain LoRA "
            "cannot; it is not converted."
        )
    layer = LoraLayer(stem, Stored(header, keys))
    kind = next((one for one in KINDS if any(end in keys for end in one.endings)), None)
    foreign = [end for end in keys if kind and end not in (*kind.endings, *kind.beside)]
    shapes = layer.shapes
    if kind is None or (kind.name == "oft" and len(shapes.get("oft_blocks", ())) != 3):
        what = "is of a kind that is not known"
    elif foreign:
        what = f"is {kind.name} and has {foreign[0]} beside that"
    elif layer.missing:
        what = f"lacks its {', '.join(layer.missing)}"
    elif odd := [
        end
        for end, one in shapes.items()
        if (len(one) < 2 and end not in BESIDE) or (0 in one and end != "alpha")
    ]:
        what = f"has {odd[0]} in the shape {list(shapes[odd[0]])}"
    elif layer.state == "not finite":
        what = "is not finite"
    elif layer.rank and layer.alpha == 0:
        what = "has an alpha of 0, which most UIs take for switched off and kohya for the rank"
    else:
        return LoraLayer(stem, layer.tensors, said_alpha=_alpha(layer, place, said))
    raise StudioError(f"{name}: {stem} {what}; it is not converted.")


def _alpha(layer: LoraLayer, place: LayerPlace, said: DeclaredAlphas) -> float | None:
    alpha = said.alphas.get(place, said.alphas.get(place.part)) if layer.kind.name == "lora" else None
    if alpha is None or place.part not in said.by_square_root:
        return alpha
    return alpha * float(layer.rank or 1) ** 0.5


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
        said = f"{path.name} says its alphas in a form that cannot be read ({reason_of(error)})."
        raise StudioError(said) from None
    return DeclaredAlphas(found, frozenset(roots))


@dataclass(frozen=True)
class PlainLayers:
    layers: dict[LayerPlace, PlainLora]
    names: dict[LayerPlace, str]  # that UIs know them by
    file: PlacedLayers  # as it was read


def read_any(path: Path, *, base: ModelFamily | None = None) -> LoraFile:
    """A file in any spelling and of any kind as plain LoRA with the names that UIs know.

    `alpha` is float32 without dimensions. `base` is needed for kinds whose change depends on its weights.
    Raises StudioError for what is no LoRA, names unknown keys, and says which layers are not complete.
    """
    found, layers = read_plain_layers(path, base=base), {}
    for place, one in found.layers.items():
        values = (one.down, one.up, torch.tensor(one.scale * len(one.down)))
        layers[found.names[place]] = LoraLayer(found.names[place], Held(zip(ENDINGS, values, strict=True)))
    return LoraFile(path, layers, found.file.metadata)


def read_plain_layers(path: Path, *, base: ModelFamily | None = None) -> PlainLayers:
    """Every layer as plain LoRA. Raises as `read_any`."""
    file = read_places(path)
    known = {} if base is None else base_layers(base)
    names = {place: _name(place, file, base) for place in file.layers}
    if unknown := [name for name in names.values() if base is not None and name not in known]:
        raise StudioError(
            f"{path.name}: {len(unknown)} of its {len(names)} layers are not in this base, "
            f"first {unknown[0]}; it is for another kind of base."
        )
    # Whether the base's projections are linear layers and not convolutions; None if nothing tells.
    widths = _text_widths(file.layers)
    linear = True if file.layout.original or 1024 in widths else False if 768 in widths else None
    plain = {}
    for place, layer in file.layers.items():
        name = names[place]
        weight = known[name].weight if name in known else None
        if layer.needs_base and weight is None:
            raise StudioError(
                f"{path.name} holds {layer.name}, whose change depends on the base's weights; make plain "
                f"LoRA of it with `lora-studio convert {path.name} --to kohya --base BASE`, which knows them."
            )
        try:
            one = layer.plain(weight)
            plain[place] = _with_sides(one, place, None if weight is None else weight.shape, linear=linear)
        except (RuntimeError, ArithmeticError, LookupError, ValueError):  # torch's, of shapes and numbers
            raise StudioError(
                f"{path.name}: the tensors of {layer.name} do not fit together; get the file again from "
                "where it came."
            ) from None
    return PlainLayers(plain, names, file)


def _name(place: LayerPlace, file: PlacedLayers, base: ModelFamily | None) -> str:
    """What UIs call it; as the base says it, if there is one: a miniature may count its blocks otherwise."""
    try:
        return file.layout.name(place) if base is None else base.ui_name(*place)
    except (KeyError, ValueError):
        raise StudioError(
            f"{file.path.name}: {file.layers[place].name} is of a part that this kind of base does not have."
        ) from None


def _with_sides(
    plain: PlainLora, place: LayerPlace, shape: torch.Size | None, *, linear: bool | None
) -> PlainLora:
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
